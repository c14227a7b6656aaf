"""Data sets: their configs, their files, seeded order, made-up scenes, checks."""
