"""Training: loops, hooks, several processes."""
