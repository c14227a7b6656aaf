"""Datasets: their configs and files, loading for training, synthetic scenes, and checks."""
