"""Backbones of other libraries, to compare CAS-ViT with."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mmcasvit.utils.errors import MissingLibrary

# How to install each library.
_INSTALL = dict(
    mmdet='pip install onedl-mmdetection, see requirements/',
    mmseg='pip install onedl-mmsegmentation, see requirements/',
    transformers='pip install "mmcasvit[benchmark]"',
    timm='pip install "mmcasvit[timm]", and a torchvision that was built for the installed PyTorch',
)


@dataclass(frozen=True)
class Peer:
    """Backbone of another library, with random weights and without a classifier.

    Attributes:
        library: Name of the library.
        build: Function that returns a module whose output is a tuple of maps.
        outputs: Description of the output: four maps as a detector reads them, or only the last map where the library
            does not return the others.
        fixed_size: Whether the model is built for one image size: ``build(img_size=(H, W))``.
    """

    library: str
    build: Callable[..., nn.Module]
    outputs: str = '4 maps'
    fixed_size: bool = False


class _Maps(nn.Module):
    """Module that returns the maps of another module as a tuple.

    Args:
        model: Module that takes an image.
        maps_of: Function that takes the maps out of the output of ``model``.
    """

    def __init__(self, model: nn.Module, maps_of: Callable[..., Sequence[Tensor]]):
        super().__init__()
        self.model, self.maps_of = model, maps_of

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.maps_of(self.model(x)))


def _openmmlab(library: str, name: str, **settings) -> Peer:
    return Peer(library, lambda: getattr(importlib.import_module(f'{library}.models'), name)(**settings))


def _transformers(name: str, **settings) -> Peer:
    def build():
        import transformers

        config = getattr(transformers, name.removesuffix('Model') + 'Config')
        return _Maps(getattr(transformers, name)(config(**settings)), lambda output: [output.last_hidden_state])

    return Peer('transformers', build, 'last map')


def _convnextv2(**settings) -> Peer:
    def build():
        from transformers import ConvNextV2Backbone, ConvNextV2Config

        config = ConvNextV2Config(out_features=['stage1', 'stage2', 'stage3', 'stage4'], **settings)
        return _Maps(ConvNextV2Backbone(config), lambda output: output.feature_maps)

    return Peer('transformers', build)


def _timm(name: str, fixed_size: bool = False) -> Peer:
    def build(**size):
        import timm

        return _Maps(timm.create_model(name, pretrained=False, features_only=True, **size), tuple)

    return Peer('timm', build, 'all maps', fixed_size)


PEERS: dict[str, Peer] = {
    'resnet-18': _openmmlab('mmdet', 'ResNet', depth=18, norm_eval=False),
    'resnet-50': _openmmlab('mmdet', 'ResNet', depth=50, norm_eval=False),
    'mobilenetv2': _openmmlab('mmdet', 'MobileNetV2'),
    # mmseg dilates the last stages instead of striding, which takes more arithmetic than the classifier of this name.
    'mobilenetv3-large-dilated': _openmmlab('mmseg', 'MobileNetV3', arch='large', out_indices=(1, 3, 6, 16)),
    'pvtv2-b0': _openmmlab('mmdet', 'PyramidVisionTransformerV2', embed_dims=32, num_layers=[2, 2, 2, 2]),
    'pvtv2-b1': _openmmlab('mmdet', 'PyramidVisionTransformerV2', embed_dims=64, num_layers=[2, 2, 2, 2]),
    'swin-t': _openmmlab('mmdet', 'SwinTransformer', drop_path_rate=0.0),
    'mit-b0': _openmmlab(
        'mmseg',
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
    'convnextv2-atto': _convnextv2(hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2]),
    'convnextv2-tiny': _convnextv2(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3]),
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

# Fast detectors and segmentors, with random weights, as the configs of their libraries build them.
WHOLE_PEERS: dict[str, list[str]] = dict(
    detectors=[
        'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py',
        'mmdet::yolox/yolox_nano_8xb8-300e_coco.py',
        'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    ],
    segmentors=[
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py',
        'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py',
        'mmseg::fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py',
        'mmseg::mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',
    ],
)


def check_library(name: str) -> None:
    """Check that the library of a peer can be imported.

    Raises:
        MissingLibrary: If it cannot.
    """
    library = PEERS[name].library
    if importlib.util.find_spec(library) is None:
        raise MissingLibrary(name, f'needs {library}, which is not installed: {_INSTALL[library]}')
    if library == 'timm':
        try:
            importlib.import_module('timm')
        except Exception as error:
            raise MissingLibrary(name, f'needs timm, which cannot be imported ({error}): {_INSTALL["timm"]}') from error
