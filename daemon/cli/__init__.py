"""`centralino`: a client of the D-Bus interface and nothing else."""
