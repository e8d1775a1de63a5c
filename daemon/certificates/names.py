"""Whether a name of a certificate covers the name that a client asks for."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address


def covers(held: Sequence[str], name: str) -> bool:
    """Whether one of the names or addresses `held` by a certificate is valid for `name`."""
    try:
        address = str(ip_address(name))
    except ValueError:
        return any(_covers(pattern, name) for pattern in held)
    return address in held


def uncovered(held: Sequence[str], names: Sequence[str]) -> list[str]:
    """Those of `names` that no name `held` covers."""
    return [name for name in names if not covers(held, name)]


def _covers(pattern: str, name: str) -> bool:
    """RFC 6125 section 6.4.3: a wildcard stands for exactly one whole left-most label."""
    pattern, name = pattern.lower().rstrip("."), name.lower().rstrip(".")
    if pattern.startswith("*."):
        _, dot, rest = name.partition(".")
        return bool(dot) and rest == pattern[2:] and "." in rest
    return pattern == name
