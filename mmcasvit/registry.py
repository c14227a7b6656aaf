"""Registries of the ``mmcasvit`` scope, children of mmengine's root registries.

mmdet, mmseg and mmpretrain resolve a scoped name such as ``mmcasvit.CASViT`` through the root registries, so one
registration serves all of them.
"""

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import STRATEGIES as MMENGINE_STRATEGIES
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISBACKENDS as MMENGINE_VISBACKENDS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmcasvit', locations=['mmcasvit.models.casvit'])
HOOKS = Registry(
    'hook',
    parent=MMENGINE_HOOKS,
    scope='mmcasvit',
    locations=['mmcasvit.engine.hooks', 'mmcasvit.export.hook', 'mmcasvit.report.hook'],
)
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmcasvit',
    locations=['mmcasvit.datasets.few_images', 'mmcasvit.datasets.seeded'],
)
DATA_SAMPLERS = Registry(
    'data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='mmcasvit', locations=['mmcasvit.datasets.seeded']
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='mmcasvit',
    locations=['mmcasvit.datasets.unreadable', 'mmcasvit.datasets.folders', 'mmcasvit.export.evaluation'],
)
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmcasvit', locations=['mmcasvit.engine.loops'])
STRATEGIES = Registry(
    'strategy', parent=MMENGINE_STRATEGIES, scope='mmcasvit', locations=['mmcasvit.engine.distributed']
)
VISBACKENDS = Registry(
    'vis_backend', parent=MMENGINE_VISBACKENDS, scope='mmcasvit', locations=['mmcasvit.apis.trackers']
)
# Valid values of the argument token_mixer of CASViT. No other library has such a registry.
TOKEN_MIXERS = Registry(
    'token mixer', scope='mmcasvit', locations=['mmcasvit.models.casvit', 'mmcasvit.models.token_mixers']
)
