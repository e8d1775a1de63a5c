"""Supervision of the services: declared as data, watched in layers, restarted, drained, reported."""
