"""CAS-ViT (arXiv 2408.03703) as a backbone for OpenMMLab."""
from .casvit import CASViT
from .hooks import ChannelsLastHook, CheckWeightsHook
from .version import __version__
from .weights import WeightsError, load_pretrained

__all__ = ['CASViT', 'ChannelsLastHook', 'CheckWeightsHook', 'WeightsError', '__version__', 'load_pretrained']
