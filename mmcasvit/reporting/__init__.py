"""A report of a work directory: what its logs say, what evaluations left behind, figures, one page."""
