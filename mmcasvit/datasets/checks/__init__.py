"""Checks of the data of a config before a run: every image, mask and annotation is read."""
