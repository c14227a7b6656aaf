"""Configs, models and runners, and the checks before a run."""
