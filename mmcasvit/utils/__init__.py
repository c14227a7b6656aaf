"""Errors, timing, tables, text and images: nothing here knows of models."""
