"""Benchmarks: models and their forms, time, memory and counts, tables and plots."""
