"""CAS-ViT (arXiv 2408.03703) as a backbone for OpenMMLab."""
from .casvit import CASViT
from .version import __version__
from .weights import WeightsError, load_pretrained

__all__ = ['CASViT', 'WeightsError', 'load_pretrained', '__version__']
