"""Benchmarks: models, forms, fair timing, counts, plots."""
