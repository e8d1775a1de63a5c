"""The installer ISO: package closure, repository, remaster, network boot tree, boot test."""
