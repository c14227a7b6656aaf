"""The ``mmcasvit`` scope below mmengine's root registries.

mmdet, mmseg and mmpretrain resolve a scoped name such as ``mmcasvit.CASViT`` through the root registry,
so one registration serves all of them.
"""
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmcasvit', locations=['mmcasvit.casvit'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmcasvit', locations=['mmcasvit.hooks'])
