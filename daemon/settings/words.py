"""The words in which the schema is declared: pydantic's, or in the resident daemon those of `records`.

pydantic with the built models takes 10 MB, for a few checks a day. So the process that stays checks nothing
itself: it asks a helper process (`remote`, `worker`), which declares the same classes by pydantic's words,
and keeps the answer in classes of the same names, fields and methods. `daemon.lean`, which centralinod
imports first, chooses the light words; every other process has pydantic's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

RESIDENT = "daemon.lean" in sys.modules

if TYPE_CHECKING or not RESIDENT:
    from pydantic import BaseModel, ConfigDict, Field, StringConstraints
else:
    from daemon.settings.records import ConfigDict, Field, StringConstraints
    from daemon.settings.records import Record as BaseModel

__all__ = ["RESIDENT", "BaseModel", "ConfigDict", "Field", "StringConstraints"]
