"""Reports of work directories."""
