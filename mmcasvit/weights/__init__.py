"""Checkpoint files and the names and shapes in them: nothing here knows a module class."""
