"""What ``tools/benchmark.py`` is made of: models to compare, forms to run them in, fair timing, counts, reports."""
