"""Identifiers that derive from the inputs, so that two builds of the same thing carry the same ones."""

from __future__ import annotations

import hashlib
from uuid import UUID


def derived_uuid(seed: str, name: str) -> UUID:
    """A UUID (version 4 in form) that depends on nothing but its arguments."""
    return UUID(bytes=hashlib.sha256(f"{seed}\0{name}".encode()).digest()[:16], version=4)
