"""Imported first by centralinod: keeps what it never uses out of its memory.

- That this module is loaded makes `daemon.settings` leave pydantic (10 MB) to a helper process: see
  daemon.settings.words.
- hashlib loads OpenSSL (4 MB) for digests that the interpreter's own modules compute as well: without
  `_hashlib` it falls back to those, which is its documented way on builds without OpenSSL. TLS and keys are
  the work of short-lived helper programs.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]
