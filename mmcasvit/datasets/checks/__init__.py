"""Checks of the datasets of a config before a run. They read every image, mask, and annotation."""
