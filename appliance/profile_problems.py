"""What is wrong with a profile, in words: pydantic's errors as problems with remedies, and secrets found."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import ValidationError

from appliance.errors import Problem

SECRET_KEY = re.compile(r"(passw(or)?d|passphrase|secret|token|private|credential|api_?key)", re.IGNORECASE)
SECRET_VALUE = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY|^untrusted comment: minisign (encrypted )?secret key|\bAKIA[0-9A-Z]{16}\b"
)
URL_PASSWORD = re.compile(r"^[a-z]+://[^/\s:@]+:[^/\s@]+@")
# Keys that sound like secrets and are none.
HARMLESS_KEYS = frozenset({"root_password_hash"})

REMEDIES = {
    "missing": "add it",
    "extra_forbidden": "remove it, or correct its spelling; `centralino-build profile schema` lists all keys",
    "enum": "use one of these",
    "literal_error": "use one of these",
}
FIELD_REMEDIES = {
    "root_password_hash": "make it with `openssl passwd -6`; leave it out to lock root",
    "ssh_keys": "give the line of a .pub file",
    "gateway": "give an address without prefix, as in 192.0.2.1",
    "hostname": "use letters, digits and hyphens, labels separated by dots",
    "iso_label": "use at most 32 letters, digits, _ and -",
    "version": "use digits and dots, as in 1.4.2",
    "name": "use lower-case letters, digits and hyphens, starting with a letter",
    "mirror": "give an http, https or file address",
    "url": "give an http, https or file address",
    "address": "give an address with its prefix, as in 192.0.2.10/24",
    "modules": "write name:stream, as in mariadb:10.11",
}
FORBIDDEN = "a profile is not a place for secrets"
SECRET_REMEDY = "remove it: there are root_password_hash, public keys, and signing.key_file with a path"  # noqa: S105


def problems_of(error: ValidationError) -> list[Problem]:
    """One problem per error of pydantic, with the dotted path and, where there is one, a remedy."""
    problems = []
    for item in error.errors(include_url=False):
        place = [part for part in item["loc"] if not _is_union_branch(part)]
        path = ".".join(str(part) for part in place) or "(document)"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"].startswith("ip_"):
            message = f"is not an IP {item['type'].rpartition('_')[2]}"
        elif item["type"] == "string_pattern_mismatch":
            message = f"has a form that is not allowed ({item['ctx']['pattern']})"
        elif item["type"] == "missing":
            message = "is missing"
        elif item["type"] == "extra_forbidden":
            message = "is no key of a profile"
        remedy = REMEDIES.get(item["type"], "")
        if not remedy and item["type"] != "value_error":
            names = [part for part in place if isinstance(part, str)]
            remedy = FIELD_REMEDIES.get(names[-1], "") if names else ""
        if "; " in message and item["type"] == "value_error":
            message, _, remedy = message.partition("; ")
        problems.append(Problem(path, _decapitalize(message), remedy))
    # A union reports each of its branches; the reader wants the field once.
    return list({(problem.path, problem.remedy): problem for problem in reversed(problems)}.values())[::-1]


def _is_union_branch(part: int | str) -> bool:
    return isinstance(part, str) and (part[:4] in ("IPv4", "IPv6") or "[" in part)


def _decapitalize(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def secrets_in(document: object) -> list[Problem]:
    """Every place of a document that holds, or by its name asks to hold, a secret."""
    return [Problem(path, f"{what}; {FORBIDDEN}", SECRET_REMEDY) for path, what in _secrets(document, "")]


def _secrets(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            inner_path = f"{path}.{key}" if path else str(key)
            if SECRET_KEY.search(str(key)) and key not in HARMLESS_KEYS:
                yield inner_path, "is named like a secret"
            else:
                yield from _secrets(inner, inner_path)
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _secrets(inner, f"{path}.{position}")
    elif isinstance(value, str):
        if SECRET_VALUE.search(value):
            yield path, "holds a private key or an access key"
        elif URL_PASSWORD.match(value):
            yield path, "holds a password inside an address"
