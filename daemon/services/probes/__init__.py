"""Ways to ask a service whether it works: each a function with its own time limit that never raises."""
