"""The schema of the one settings document, its migrations, its revisions on disk."""

from daemon.settings.document import SCHEMA, Settings, sections
from daemon.settings.validation import dump, parse, parse_document

__all__ = ["SCHEMA", "Settings", "dump", "parse", "parse_document", "sections"]
