"""Feature maps of a model, as figures and as a page."""
