"""Two nodes as one: roles, virtual addresses, replication, the peer link."""
