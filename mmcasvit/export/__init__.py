"""Exported models: the file formats, the graphs written into them, and how their outputs compare with PyTorch's."""
