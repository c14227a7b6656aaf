"""CAS-ViT (arXiv 2408.03703) as a backbone for OpenMMLab."""
from .casvit import CASViT
from .hooks import ChannelsLastHook, CheckWeightsHook
from .loading import watch_models
from .version import __version__
from .weights import WeightsError, extend_mmengine_loader, load_pretrained

# What importing this package changes outside of it; docs/weights.md says why.
extend_mmengine_loader()
watch_models()

__all__ = ['CASViT', 'ChannelsLastHook', 'CheckWeightsHook', 'WeightsError', '__version__', 'load_pretrained']
