"""The schema of the one settings document, its migrations, its revisions on disk."""

from daemon.settings.document import Settings

__all__ = ["Settings"]
