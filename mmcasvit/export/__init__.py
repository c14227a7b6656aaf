"""Exported models: formats, graphs, comparison, evaluation."""
