"""Kickstart: template, rendering, validation."""
