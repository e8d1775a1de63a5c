"""The on-box daemon, its settings and its command line."""
