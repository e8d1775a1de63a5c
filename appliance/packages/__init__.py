"""Packages that a platform does not have, built in that platform's own root tree."""
