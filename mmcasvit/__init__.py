"""CAS-ViT (arXiv 2408.03703) as a backbone for OpenMMLab."""
from .casvit import CASViT
from .checkpointing import CheckpointHook
from .deployment import DeployHook, deploy
from .hooks import ChannelsLastHook, CheckWeightsHook, CompileHook
from .loading import watch_models
from .model_zoo import config_path, get_config, get_model, list_configs
from .plug import PlugError, plug
from .resuming import ResumableEpochLoop, ResumableIterLoop
from .stopping import RunStopped, StopOnInvalidLossHook
from .version import __version__
from .weights import WeightsError, extend_mmengine_loader, load_pretrained

# What importing this package changes outside of it; docs/weights.md says why.
extend_mmengine_loader()
watch_models()

__all__ = [
    'CASViT', 'ChannelsLastHook', 'CheckWeightsHook', 'CheckpointHook', 'CompileHook', 'DeployHook', 'PlugError',
    'ResumableEpochLoop', 'ResumableIterLoop', 'RunStopped', 'StopOnInvalidLossHook', 'WeightsError', '__version__',
    'config_path', 'deploy', 'get_config', 'get_model', 'list_configs', 'load_pretrained', 'plug'
]
