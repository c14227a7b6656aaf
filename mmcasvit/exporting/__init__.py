"""Exported models: what is in a graph, how each format is written and run, and how it is compared and evaluated."""
from .formats import Exported, export, load_exported
from .signature import Signature

__all__ = ['Exported', 'Signature', 'export', 'load_exported']
