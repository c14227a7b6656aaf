"""What can be compared: CAS-ViT, the same with softmax attention, peers of other libraries, whole configs."""

import ast
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.apis.config import load_config
from mmcasvit.archs import ARCHS
from mmcasvit.models.casvit import CASViT
from mmcasvit.utils.errors import MissingLibrary, UsageError

# What has to be installed for which library, in words that can be followed.
_INSTALL = dict(
    mmdet='pip install onedl-mmdetection, see requirements/',
    mmseg='pip install onedl-mmsegmentation, see requirements/',
    transformers='pip install "mmcasvit[benchmark]"',
    timm='pip install "mmcasvit[timm]", and a torchvision that was built for the installed PyTorch',
)
_NOISE_SIZE = (128, 128)


@dataclass(frozen=True)
class Peer:
    """A backbone of another library, with random weights.

    Attributes:
        library: whose implementation it is.
        build: returns a module that gives its maps as a tuple.
        outputs: what it gives: four maps as a detector reads them, or the last map alone where the library has no
            other form of it. No classifier is ever included.
        fixed_size: whether it takes images of one size alone, which it is built for: ``build(img_size=(H, W))``.
    """

    library: str
    build: Callable[..., nn.Module]
    outputs: str = '4 maps'
    fixed_size: bool = False


class _LastMap(nn.Module):
    """A feature extractor of transformers that gives its last map, as a tuple of one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.model(x).last_hidden_state,)


class _FeatureMaps(nn.Module):
    """A backbone of transformers, its maps as a tuple."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(x).feature_maps)


class _AsTuple(nn.Module):
    """A backbone of timm, its list of maps as a tuple."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model(x))


def _mmdet(name: str, **settings) -> Peer:
    def build():
        from mmdet import models

        return getattr(models, name)(**settings)

    return Peer('mmdet', build)


def _mmseg(name: str, **settings) -> Peer:
    def build():
        from mmseg import models

        return getattr(models, name)(**settings)

    return Peer('mmseg', build)


def _transformers(name: str, wrapper: type[nn.Module] = _LastMap, outputs: str = 'last map', **settings) -> Peer:
    def build():
        import transformers

        config_name = name.removesuffix('Model').removesuffix('Backbone') + 'Config'
        return wrapper(getattr(transformers, name)(getattr(transformers, config_name)(**settings)))

    return Peer('transformers', build, outputs)


def _timm(name: str, fixed_size: bool = False) -> Peer:
    def build(**size):
        import timm

        return _AsTuple(timm.create_model(name, pretrained=False, features_only=True, **size))

    return Peer('timm', build, 'all maps', fixed_size)


_FOUR_STAGES = dict(wrapper=_FeatureMaps, outputs='4 maps', out_features=['stage1', 'stage2', 'stage3', 'stage4'])
PEERS: dict[str, Peer] = {
    'resnet-18': _mmdet('ResNet', depth=18, norm_eval=False),
    'resnet-50': _mmdet('ResNet', depth=50, norm_eval=False),
    'mobilenetv2': _mmdet('MobileNetV2'),
    # mmseg dilates its last stages instead of striding: more arithmetic than the classifier of this name.
    'mobilenetv3-large-dilated': _mmseg('MobileNetV3', arch='large', out_indices=(1, 3, 6, 16)),
    'pvtv2-b0': _mmdet('PyramidVisionTransformerV2', embed_dims=32, num_layers=[2, 2, 2, 2]),
    'pvtv2-b1': _mmdet('PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2]),
    'swin-t': _mmdet('SwinTransformer', drop_path_rate=0.0),
    'mit-b0': _mmseg(
        'MixVisionTransformer',
        embed_dims=32,
        num_stages=4,
        num_layers=[2, 2, 2, 2],
        num_heads=[1, 2, 5, 8],
        patch_sizes=[7, 3, 3, 3],
        sr_ratios=[8, 4, 2, 1],
        qkv_bias=True,
    ),
    'poolformer-s12': _transformers('PoolFormerModel', depths=[2, 2, 6, 2]),
    'poolformer-s24': _transformers('PoolFormerModel', depths=[4, 4, 12, 4]),
    'swiftformer-xs': _transformers('SwiftFormerModel', depths=[3, 3, 6, 4], embed_dims=[48, 56, 112, 220]),
    'swiftformer-s': _transformers('SwiftFormerModel', depths=[3, 3, 9, 6], embed_dims=[48, 64, 168, 224]),
    'swiftformer-l1': _transformers('SwiftFormerModel', depths=[4, 3, 10, 5], embed_dims=[48, 96, 192, 384]),
    'mobilevitv2-1.0': _transformers('MobileViTV2Model'),
    'convnextv2-atto': _transformers(
        'ConvNextV2Backbone', hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2], **_FOUR_STAGES
    ),
    'convnextv2-tiny': _transformers(
        'ConvNextV2Backbone', hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], **_FOUR_STAGES
    ),
    'efficientnet-b0': _transformers(
        'EfficientNetModel', image_size=224, width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280
    ),
    'mobilenetv3-large': _timm('mobilenetv3_large_100'),
    'fastvit-sa12': _timm('fastvit_sa12'),
    'fastvit-sa24': _timm('fastvit_sa24'),
    'repvit-m1.1': _timm('repvit_m1_1'),
    'efficientformerv2-s1': _timm('efficientformerv2_s1', fixed_size=True),
    'edgenext-small': _timm('edgenext_small'),
}
_SOFTMAX = '-softmax'
CASVITS = (*ARCHS, *(f'{arch}{_SOFTMAX}' for arch in ARCHS))


def check_library(name: str) -> None:
    """Raises :class:`MissingLibrary` where the library of a peer cannot be imported."""
    library = PEERS[name].library
    if importlib.util.find_spec(library) is None:
        raise MissingLibrary(name, f'needs {library}, which is not installed: {_INSTALL[library]}')
    if library == 'timm':
        try:
            importlib.import_module('timm')
        except Exception as error:
            raise MissingLibrary(name, f'needs timm, which cannot be imported ({error}): {_INSTALL["timm"]}') from error


def parse_name(name: str) -> tuple[str, dict]:
    """Splits ``xs:with_cp=True,norm_eval=True`` into the name and the arguments of CAS-ViT.

    Raises:
        UsageError: an unknown name, or arguments of another model than CAS-ViT.
    """
    base, _, text = name.partition(':')
    if name.endswith('.py'):
        return name, {}
    if base not in CASVITS and base not in PEERS:
        raise UsageError(
            f'unknown model {base!r}. Valid: a config file, {", ".join([*CASVITS, *PEERS])}, or peers for '
            'all of those behind the CAS-ViTs.'
        )
    if text and base not in CASVITS:
        raise UsageError(f'{name}: arguments behind a colon are those of CASViT, and {base} is none.')
    settings = {}
    for part in filter(None, text.split(',')):
        key, equals, value = part.partition('=')
        if not equals:
            raise UsageError(f'{name}: expected argument=value behind the colon, got {part!r}.')
        try:
            settings[key] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            settings[key] = value
    return base, settings


class Backbone:
    """A backbone alone: an image in, maps out.

    Attributes:
        module: it takes ``(N, 3, H, W)`` and gives a tuple of maps.
        library: whose implementation it is.
        outputs: what it gives, in words.
        noise_size: height and width of the noise that the statistics of its norms are taken from.
    """

    def __init__(self, name: str, size: tuple[int, int]):
        base, settings = parse_name(name)
        self.noise_size = _NOISE_SIZE
        self.is_casvit = base in CASVITS and not base.endswith(_SOFTMAX)
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
        """A number that sends a gradient into every map; its own cost is next to none."""
        return sum(out.float().mean() for out in self.module(x))


class WholeModel:
    """A detector or a segmentor of a config, on made-up images: the network without its post-processing.

    Attributes: as of :class:`Backbone`.
    """

    outputs = 'raw predictions'
    noise_size = _NOISE_SIZE

    def __init__(self, name: str):
        cfg = load_config(name)
        self.library = cfg.default_scope
        cfg.model.get('backbone', {}).pop('init_cfg', None)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.module = revert_sync_batchnorm(MODELS.build(cfg.model))
        self.is_casvit = any(isinstance(module, CASViT) for module in self.module.modules())
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

    def infer(self, data: dict):
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
    """Builds a model by its name, always with the same random weights, its BatchNorm statistics those of noise.

    Statistics as they are built (mean 0, variance 1) would let the maps of a deep model shrink to nothing, and a wrong
    folding of norms pass unseen.

    Args:
        name: an arch, a peer, or a config file.
        size: height and width of the images it will be given, for peers that are built for one size.

    Raises:
        UsageError: the name or its arguments are wrong.
        MissingLibrary: its library is not installed.
    """
    torch.manual_seed(0)
    subject = WholeModel(name) if Path(name).suffix == '.py' else Backbone(name, size)
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
