"""Deploying whole models: detectors, segmentors and classifiers with a CAS-ViT inside."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .casvit import CASViT
from .deployed_casvit import DeployedCASViT
from .folding import affine_of, fold_affine, is_affine
from .memory_format import to_channels_last
from .rescaling import LIMIT, measured_peaks, read, rescale

# The output norms of a backbone can be folded into its neck if these methods pass the maps of the backbone only to the
# neck, and these necks read them with 1x1 convolutions.
_PLAIN_EXTRACTION = (
    'mmdet.models.detectors.single_stage.SingleStageDetector.extract_feat',
    'mmdet.models.detectors.two_stage.TwoStageDetector.extract_feat',
    'mmseg.models.segmentors.encoder_decoder.EncoderDecoder.extract_feat',
)
_FPN = ('mmdet.models.necks.fpn.FPN', 'mmseg.models.necks.fpn.FPN')


def _full_name(item: type | FunctionType) -> str:
    return f'{item.__module__}.{item.__qualname__}'


def _necks(model: nn.Module) -> Iterator[tuple[CASViT, nn.Module]]:
    """Yield each backbone whose outputs are read only by an FPN, together with that FPN."""
    for part in model.modules():
        backbone, neck = getattr(part, 'backbone', None), getattr(part, 'neck', None)
        if (
            isinstance(backbone, CASViT)
            and _full_name(type(neck)) in _FPN
            and _full_name(type(part).extract_feat) in _PLAIN_EXTRACTION
        ):
            yield backbone, neck


def _laterals(backbone: CASViT, neck: nn.Module) -> Iterator[tuple[int, ConvModule]]:
    """Yield each stage whose output norm can be folded into the neck, with the convolution that reads the output."""
    levels = range(neck.start_level, neck.backbone_end_level)
    extra = neck.num_outs > len(levels) and neck.add_extra_convs == 'on_input'
    for level, lateral in zip(levels, neck.lateral_convs):
        # A 3x3 convolution with padding computes an extra level from the last input.
        read_twice = extra and level == levels[-1]
        stage = backbone.out_indices[level]
        if not read_twice and _is_plain(lateral) and is_affine(getattr(backbone, f'norm{2 * stage}')):
            yield stage, lateral


def _is_plain(layer: ConvModule) -> bool:
    """Return whether a ConvModule begins with a convolution that uses its weights as they are."""
    return (
        layer.order[0] == 'conv'
        and type(layer.conv) in (nn.Conv2d, WrappedConv2d)
        and not layer.with_explicit_padding
        and not layer.with_spectral_norm
    )


def _fold_conv_module(layer: ConvModule) -> None:
    """Fold the norm of a ConvModule into its convolution, where that is possible."""
    if layer.with_norm and layer.order[:2] == ('conv', 'norm') and _is_plain(layer) and is_affine(layer.norm):
        layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)  # a new layer, because heads may share convolutions
        setattr(layer, layer.norm_name, nn.Identity())
        layer.with_norm = False


def _rescale(deployed: nn.Module, peaks: Mapping[str, Tensor]) -> dict[nn.Module, list[Tensor]]:
    """Rescale each backbone, and return the factors of the maps that its stages return."""
    factors = {}
    for name, part in deployed.named_modules():
        if isinstance(part, DeployedCASViT):
            own = {key.removeprefix(f'{name}/'): peak for key, peak in peaks.items() if key.startswith(f'{name}/')}
            try:
                factors[part] = rescale(part, own)
            except (KeyError, RuntimeError) as error:
                raise ValueError('the peaks are not those of the deploy form of this model.') from error
    return factors


def is_deployable(model: nn.Module) -> bool:
    """Return whether a model contains a CAS-ViT, which has a deploy form."""
    return any(isinstance(part, CASViT) for part in model.modules())


def deploy(model: nn.Module, peaks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return the deploy form of a model: a faster copy for inference, with the same outputs up to rounding.

    Every BatchNorm of a CAS-ViT backbone is folded into a neighboring convolution. Those of the outputs are folded into
    the FPN of a detector or segmentor, or become one multiplication and one addition. BatchNorms in the ConvModules of
    necks and heads are folded as well. Convolutions are in channels_last format, and the operators of mmcv get
    contiguous maps (see :class:`mmcasvit.ChannelsLastHook`).

    On a CPU, in fp32 and bf16, the stages run in C++ that is compiled the first time, in seconds, if there is a
    compiler, also under ``torch.compile``. That takes a second copy of the weights, in the order in which C++ reads
    them, which is made in the first pass, and again after they have changed. Only changes in place by ``.data`` are not
    noticed, since PyTorch does not count them. Without a compiler, the stages compute matrix products and overwrite
    maps that are not needed any more. Under ``torch.jit.trace``, ``torch.export``, and autocast they consist of plain
    convolutions. ``torch.jit.script`` gets a trace. Deploy in full precision and convert afterwards:
    ``deploy(model).bfloat16()``.

    Args:
        model: A :class:`mmcasvit.CASViT`, or a detector, segmentor or classifier that contains one. It is left as it
            is.
        peaks: Largest values of the channels of the deploy form, from
            :func:`mmcasvit.models.rescaling.measured_peaks`. Channels that are too large for fp16 are then multiplied
            by powers of two that the next layers take up. In fp32, the outputs stay the same.

    Returns:
        A new module in eval mode. Its parameters get no gradient and differ from those of the model in names and
        shapes, and ``.train()`` is an error. Its state dict fits the deploy form of the same config:
        ``deploy(build(config)).load_state_dict(...)``.

    Raises:
        ValueError: The model contains no CAS-ViT, for example because it is a deploy form already. Or the peaks are
            not those of its deploy form, or cannot be moved into the range of fp16.

    Example:
        >>> import torch
        >>> from mmcasvit import CASViT, deploy
        >>> backbone = CASViT('xs').eval()
        >>> image = torch.rand(1, 3, 64, 64)
        >>> with torch.no_grad():
        ...     print(torch.allclose(deploy(backbone)(image)[3], backbone(image)[3], atol=1e-5))
        True
    """
    backbones = [part for part in model.modules() if isinstance(part, CASViT)]
    if not backbones:
        raise ValueError(
            f'deploy: there is no CASViT in this {type(model).__name__}. Deploy a model only once, and before '
            'compiling or exporting it.'
        )
    read_by_neck = [
        (backbone, stage, lateral) for backbone, neck in _necks(model) for stage, lateral in _laterals(backbone, neck)
    ]
    # The copy takes these in place of the originals.
    memo = {
        id(backbone): DeployedCASViT(backbone, [stage for reader, stage, _ in read_by_neck if reader is backbone])
        for backbone in backbones
    }
    deployed = copy.deepcopy(model, memo).eval()
    for part in deployed.modules():
        if isinstance(part, ConvModule):
            _fold_conv_module(part)
    for backbone, stage, lateral in read_by_neck:
        new = memo[id(lateral)]
        new.conv = fold_affine(*affine_of(getattr(backbone, f'norm{2 * stage}')), new.conv)
    if peaks is not None:
        factors = _rescale(deployed, peaks)
        for backbone, stage, lateral in read_by_neck:
            read(memo[id(lateral)].conv, factors[memo[id(backbone)]][stage])
    deployed.requires_grad_(False)
    to_channels_last(deployed)
    return deployed


@torch.no_grad()
def deploy_for_fp16(model: nn.Module, images: Iterable[Tensor]) -> nn.Module:
    """Return the deploy form of a model, rescaled if activations of the backbone are too large for fp16.

    Args:
        model: As for :func:`deploy`.
        images: Normalized images ``(N, 3, H, W)`` in fp32: typical ones, and rare ones.

    Raises:
        ValueError: As :func:`deploy`, or the activations cannot be moved into the range of fp16.
    """
    deployed = deploy(model)
    with measured_peaks(deployed) as peaks:
        for image in images:
            for part in deployed.modules():
                if isinstance(part, DeployedCASViT):
                    part(image)
    largest = max((float(peak.max()) for peak in peaks.values()), default=0.0)
    if largest <= LIMIT:
        return deployed
    print_log(f'activations of the backbone reach {largest:.3g}: rescaled by powers of two for fp16', logger='current')
    return deploy(model, peaks)
