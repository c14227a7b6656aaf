"""Models to compare: CAS-ViT, its variant with softmax attention, peers, and detectors or segmentors of configs."""

import ast
from pathlib import Path
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.apis.config import load_config
from mmcasvit.archs import ARCHS
from mmcasvit.models.casvit import CASViT
from mmcasvit.models.deploy import is_deployable
from mmcasvit.plugin.source import config_file
from mmcasvit.utils.errors import UsageError

from .peers import PEERS, check_library
from .published import reported

_NOISE_SIZE = (128, 128)
_SOFTMAX = '-softmax'
CASVITS = (*ARCHS, *(f'{arch}{_SOFTMAX}' for arch in ARCHS))


def parse_name(name: str) -> tuple[str, dict]:
    """Split ``xs:with_cp=True,norm_eval=True`` into the name and the arguments of CAS-ViT.

    Raises:
        UsageError: If the name is unknown, or another model than CAS-ViT has arguments.
    """
    base, _, text = name.partition(':')
    if name.endswith('.py'):
        return name, {}
    if base not in CASVITS and base not in PEERS:
        raise UsageError(
            f'unknown model {base!r}. Valid: a config file, {", ".join([*CASVITS, *PEERS])}, or peers, detectors or '
            'segmentors for all models of other libraries.'
        )
    if text and base not in CASVITS:
        raise UsageError(f'{name}: arguments after a colon are those of CASViT, and {base} is not a CAS-ViT.')
    settings = {}
    for part in filter(None, text.split(',')):
        key, equals, value = part.partition('=')
        if not equals:
            raise UsageError(f'{name}: expected argument=value after the colon, got {part!r}.')
        try:
            settings[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            settings[key] = value
    return base, settings


class Backbone:
    """Backbone that turns images into maps.

    Attributes:
        module: Module that turns ``(N, 3, H, W)`` into a tuple of maps.
        library: Library of the implementation.
        outputs: Description of the output.
        noise_size: Height and width of the noise from which :func:`build_subject` takes the statistics of the norms.
        deployable: Whether the model has a deploy form.
        published: Accuracy that is published for a config, with its metric and dataset.
    """

    published: str | None = None

    def __init__(self, name: str, size: tuple[int, int]):
        base, settings = parse_name(name)
        self.noise_size = _NOISE_SIZE
        self.deployable = base in CASVITS and not base.endswith(_SOFTMAX)
        if base in CASVITS:
            self.library, self.outputs = 'mmcasvit', '4 maps'
            if base.endswith(_SOFTMAX):
                settings = dict(token_mixer='self_attention') | settings
            try:
                self.module = CASViT(base.removesuffix(_SOFTMAX), **settings)
            except (TypeError, ValueError) as error:
                raise UsageError(f'{name}: {error}') from error
        else:
            check_library(base)
            peer = PEERS[base]
            self.library, self.outputs = peer.library, peer.outputs
            if peer.fixed_size:
                self.noise_size, self.module = size, peer.build(img_size=size)
            else:
                self.module = peer.build()

    def example(self, batch: int, size: tuple[int, int]) -> Tensor:
        return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))

    def infer(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.module(x)

    def loss(self, x: Tensor) -> Tensor:
        """Return a scalar with a gradient to every map, at hardly any cost of its own."""
        return sum(out.float().mean() for out in self.module(x))


class WholeModel:
    """Detector or segmentor of a config on synthetic images, without post-processing.

    Its attributes are those of :class:`Backbone`.
    """

    outputs = 'raw predictions'

    def __init__(self, name: str, size: tuple[int, int]):
        # A head of another library may need larger maps: LR-ASPP of mmseg averages windows of 49x49 positions.
        self.noise_size = size if '::' in name else _NOISE_SIZE
        cfg = load_config(str(config_file(name)) if '::' in name else name)
        self.published = reported(Path(cfg.filename))
        self.library = cfg.default_scope
        cfg.model.get('backbone', {}).pop('init_cfg', None)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.module = revert_sync_batchnorm(MODELS.build(cfg.model))
        self.deployable = is_deployable(self.module)
        self.classes = min(_numbers(cfg.model, 'num_classes'), default=1)
        self.has_masks = bool(getattr(self.module, 'with_mask', False))

    def example(self, batch: int, size: tuple[int, int]) -> dict:
        if self.library == 'mmdet':
            from mmdet.testing import demo_mm_inputs

            return demo_mm_inputs(
                batch, (3, *size), num_items=[8] * batch, num_classes=self.classes, with_mask=self.has_masks
            )
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        rng = torch.Generator().manual_seed(0)
        images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=rng) for _ in range(batch)]
        labels = [torch.randint(0, self.classes, (1, *size), generator=rng) for _ in range(batch)]
        samples = [
            SegDataSample(
                gt_sem_seg=PixelData(data=label), metainfo=dict(img_shape=size, ori_shape=size, pad_shape=size)
            )
            for label in labels
        ]
        return dict(inputs=images, data_samples=samples)

    def infer(self, data: dict) -> Any:
        return self.module(**data, mode='tensor')

    def loss(self, data: dict) -> Tensor:
        return self.module.parse_losses(self.module(**data, mode='loss'))[0]


def _numbers(node, name: str) -> list[int]:
    if isinstance(node, dict):
        own = [node[name]] if isinstance(node.get(name), int) else []
        return own + [number for value in node.values() for number in _numbers(value, name)]
    if isinstance(node, (list, tuple)):
        return [number for value in node for number in _numbers(value, name)]
    return []


def build_subject(name: str, size: tuple[int, int] = _NOISE_SIZE) -> Backbone | WholeModel:
    """Build a model by name, with the same random weights every time and the BatchNorm statistics of noise.

    With initial statistics (mean 0, variance 1), the maps of a deep model would shrink to nothing, and an error in
    folding norms would go unnoticed.

    Args:
        name: Arch, peer or config file.
        size: Height and width of the images, for peers that are built for one size.

    Raises:
        UsageError: If the name or its arguments are wrong.
        MissingLibrary: If the library of a peer is not installed.
    """
    torch.manual_seed(0)
    subject = WholeModel(name, size) if Path(name).suffix == '.py' else Backbone(name, size)
    subject.module.eval()
    norms = [module for module in subject.module.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.training, norm.momentum = True, 1.0
    with torch.no_grad():
        data = subject.example(2, subject.noise_size)
        if isinstance(subject, WholeModel):
            data = subject.module.data_preprocessor(data)
        subject.infer(data)
    for norm, momentum in zip(norms, momenta):
        norm.training, norm.momentum = False, momentum
    return subject
