"""Certificates of the appliance: reading, checking, storing, requesting, renewing, proving (S-CE-01..05).

Keys and TLS are the work of a short-lived helper process (`worker`): `material`, `check`, `making`,
`ordering` and `conditions` run there. The rest belongs to the daemon and never imports them.
"""
