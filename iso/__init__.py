"""The installer ISO: package closure, embedded repository, remaster, boot check."""
