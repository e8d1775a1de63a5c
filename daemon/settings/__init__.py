"""The schema of the one settings document, its migrations, its revisions on disk.

Who checks a document depends on the process: see `words`.
"""

from typing import TYPE_CHECKING

from daemon.settings.document import SCHEMA, Settings, sections
from daemon.settings.words import RESIDENT

if TYPE_CHECKING or not RESIDENT:
    from daemon.settings.validation import dump, json_schema, parse, parse_document, restore
else:
    from daemon.settings.remote import dump, json_schema, parse, parse_document, restore

__all__ = [
    "SCHEMA",
    "Settings",
    "dump",
    "json_schema",
    "parse",
    "parse_document",
    "restore",
    "sections",
]
