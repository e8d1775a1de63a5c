"""Certificates of the appliance: reading, checking, storing, requesting, renewing, proving (S-CE-01..05)."""
