"""Feature maps and predictions of a model, as figures and as a page."""
