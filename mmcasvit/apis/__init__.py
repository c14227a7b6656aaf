"""Entry points: configs, models, runners, inferencers, checks before a run, and conversion of checkpoints."""
