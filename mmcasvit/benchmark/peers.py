"""Backbones of other libraries, to compare CAS-ViT with."""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from mmcasvit.utils.errors import MissingLibrary

# How to install each library.
_INSTALL = dict(
    mmdet='pip install onedl-mmdetection, see requirements/',
    mmseg='pip install onedl-mmsegmentation, see requirements/',
    mmpretrain='pip install "mmcasvit[classification]", and a torchvision that was built for the installed PyTorch',
    timm='pip install "mmcasvit[timm]", and a torchvision that was built for the installed PyTorch',
)
# The ends of names that timm writes differently.
_TIMM_NAMES = {
    'convnext-t': 'convnext_tiny',
    'mobilenetv3-large': 'mobilenetv3_large_100',
    'mobilevitv2-1.0': 'mobilevitv2_100',
    'nextvit-s': 'nextvit_small',
}


@dataclass(frozen=True)
class Peer:
    """Backbone of another library, with random weights and without a classifier.

    Attributes:
        library: Name of the library.
        build: Function that returns a module whose output is a sequence of maps.
        outputs: Description of the output.
        fixed_size: Whether the model is built for one image size: ``build(img_size=(H, W))``.
    """

    library: str
    build: Callable[..., nn.Module]
    outputs: str = '4 maps'
    fixed_size: bool = False


def _openmmlab(library: str, name: str, **settings) -> Peer:
    return Peer(library, lambda: getattr(importlib.import_module(f'{library}.models'), name)(**settings))


def _pvtv2(width: int, depths: Sequence[int]) -> Peer:
    return _openmmlab('mmdet', 'PyramidVisionTransformerV2', embed_dims=width, num_layers=depths)


def _van(arch: str) -> Peer:
    return _openmmlab('mmpretrain', 'VAN', arch=arch, out_indices=(0, 1, 2, 3))


def _timm(name: str, outputs: str = '4 maps', fixed_size: bool = False) -> Peer:
    def build(**size):
        import timm

        model = _TIMM_NAMES.get(name, name.replace('-', '_').replace('.', '_'))
        module = timm.create_model(model, pretrained=False, features_only=True, **size)
        finest = [stride >= 4 for stride in module.feature_info.reduction()].index(True)
        if finest:  # without the map of stride 2, which detectors do not read
            indices = range(finest, len(module.feature_info))
            module = timm.create_model(model, pretrained=False, features_only=True, out_indices=indices, **size)
        return module

    return Peer('timm', build, outputs, fixed_size)


def _efficientformer(name: str) -> Peer:
    def build(img_size):
        from timm.models.efficientformer import Attention

        module = _timm(name).build()
        # timm's positional biases are those of images of 224x224 pixels.
        for block in list(module.modules()):
            if isinstance(getattr(block, 'token_mixer', None), Attention):
                width = block.token_mixer.qkv.in_features
                block.token_mixer = Attention(width, resolution=tuple(side // 32 for side in img_size))
        return module

    return Peer('timm', build, fixed_size=True)


PEERS: dict[str, Peer] = {
    'resnet-18': _openmmlab('mmdet', 'ResNet', depth=18, norm_eval=False),
    'resnet-50': _openmmlab('mmdet', 'ResNet', depth=50, norm_eval=False),
    'mobilenetv2': _openmmlab('mmdet', 'MobileNetV2'),
    'pvtv2-b0': _pvtv2(32, [2, 2, 2, 2]),
    'pvtv2-b1': _pvtv2(64, [2, 2, 2, 2]),
    'pvtv2-b2': _pvtv2(64, [3, 4, 6, 3]),
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
    'van-b0': _van('tiny'),
    'van-b1': _van('small'),
    'van-b2': _van('base'),
    **{name: _efficientformer(name) for name in ('efficientformer-l1', 'efficientformer-l3', 'efficientformer-l7')},
    **{f'efficientformerv2-{size}': _timm(f'efficientformerv2-{size}', fixed_size=True) for size in ('s1', 's2', 'l')},
    # Microsoft's EfficientViT, whose maps have strides 16, 32 and 64. efficientvit-b1 and b2 are MIT's.
    'efficientvit-m4': _timm('efficientvit-m4', outputs='3 maps', fixed_size=True),
    **{
        name: _timm(name)
        for name in (
            'convnext-t',
            'convnextv2-atto',
            'convnextv2-tiny',
            'edgenext-small',
            'efficientnet-b0',
            'efficientvit-b1',
            'efficientvit-b2',
            'fastvit-sa12',
            'fastvit-sa24',
            'fastvit-sa36',
            'fastvit-ma36',
            'iformer-m',
            'iformer-l',
            'iformer-l2',
            'mobilenetv3-large',
            'mobilenetv4-conv-small',
            'mobilenetv4-conv-medium',
            'mobilenetv4-hybrid-medium',
            'mobilevitv2-1.0',
            'nextvit-s',
            'poolformer-s12',
            'poolformer-s24',
            'poolformer-s36',
            'repvit-m0.9',
            'repvit-m1.0',
            'repvit-m1.1',
            'repvit-m1.5',
            'repvit-m2.3',
            'shvit-s4',
            'swiftformer-xs',
            'swiftformer-s',
            'swiftformer-l1',
            'swiftformer-l3',
        )
    },
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
    if library in ('mmpretrain', 'timm'):
        try:
            importlib.import_module(library)
        except Exception as error:
            reason = f'needs {library}, which cannot be imported ({error}): {_INSTALL[library]}'
            raise MissingLibrary(name, reason) from error
