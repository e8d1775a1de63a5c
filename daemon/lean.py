"""Imported first by the daemon: keeps what it never uses out of its memory.

- pydantic imports its plugin loader, and with it the readers of package metadata, archives and mail (2 MB),
  whenever a model is built. This daemon has no plugins, so an empty loader takes that one's place; should
  pydantic move it, this does nothing and the memory is used again.
- hashlib loads OpenSSL (4 MB) for digests that the interpreter's own modules compute as well: without
  `_hashlib` it falls back to those, which is its documented way on builds without OpenSSL. TLS and keys are
  the work of short-lived helper programs.
"""

from __future__ import annotations

import sys
from types import ModuleType

_LOADER = "pydantic.plugin._loader"


class _NoPlugins(ModuleType):
    def get_plugins(self) -> tuple[()]:
        return ()


sys.modules.setdefault(_LOADER, _NoPlugins(_LOADER))
sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]
