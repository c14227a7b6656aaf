"""CAS-ViT (arXiv 2408.03703) as a backbone for OpenMMLab."""

from mmcasvit.apis.config import config_path, find_bases_quickly, get_config, list_configs
from mmcasvit.apis.model import get_model
from mmcasvit.apis.published import published_file
from mmcasvit.engine.hooks.check_weights import CheckWeightsHook
from mmcasvit.engine.hooks.checkpoint import CheckpointHook
from mmcasvit.engine.hooks.deploy import DeployHook
from mmcasvit.engine.hooks.invalid_loss import StopOnInvalidLossHook
from mmcasvit.engine.hooks.speed import ChannelsLastHook, CompileHook, KeepMemoryHook, ShortcutsHook
from mmcasvit.engine.hooks.stage_health import StageHealthHook
from mmcasvit.engine.loops import ResumableEpochLoop, ResumableIterLoop
from mmcasvit.models.casvit import CASViT
from mmcasvit.models.deploy import deploy
from mmcasvit.models.load_checks import watch_models
from mmcasvit.ops.install import install_operators
from mmcasvit.plugin.core import plug
from mmcasvit.utils.errors import PlugError, RunStopped, WeightsError
from mmcasvit.version import __version__
from mmcasvit.weights.checkpoint import extend_mmengine_loader, find_published_with
from mmcasvit.weights.pretrained import load_pretrained

# Importing this package also changes how mmengine reads and loads checkpoints; docs/guides/weights.md says why.
extend_mmengine_loader()
find_bases_quickly()
find_published_with(published_file)
watch_models()
# mmdet and mmseg import mmcv.ops, which fails where mmcv was installed without compiled operators.
install_operators()

__all__ = [
    'CASViT',
    'ChannelsLastHook',
    'CheckWeightsHook',
    'CheckpointHook',
    'CompileHook',
    'DeployHook',
    'KeepMemoryHook',
    'PlugError',
    'ResumableEpochLoop',
    'ResumableIterLoop',
    'RunStopped',
    'ShortcutsHook',
    'StageHealthHook',
    'StopOnInvalidLossHook',
    'WeightsError',
    '__version__',
    'config_path',
    'deploy',
    'get_config',
    'get_model',
    'list_configs',
    'load_pretrained',
    'plug',
]
