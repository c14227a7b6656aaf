"""The deploy form: a copy of a model, for inference alone, in which norms are folded into convolutions.

The file reads: folds (pure functions from layers to new layers), the layers of the deploy form, the backbone made of
them, whole models, and the hook that evaluates with the deploy form.
"""

import copy
import functools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.wrappers import Conv2d as WrappedConv2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .casvit import AdditiveTokenMixer, CASViT, CASViTBlock, ChannelGate, SpatialGate, affine_of
from .memory_format import to_channels_last

# Pixels whose four times wider channels in the MLP are computed together: they then stay in the caches of a core.
PIXELS_PER_THREAD = 1024
# Methods that hand the maps of the backbone to the neck and to nobody else, and necks that read them with 1x1
# convolutions: here the norms of the backbone's outputs can be folded into the neck.
_PLAIN_EXTRACTION = (
    'mmdet.models.detectors.single_stage.SingleStageDetector.extract_feat',
    'mmdet.models.detectors.two_stage.TwoStageDetector.extract_feat',
    'mmseg.models.segmentors.encoder_decoder.EncoderDecoder.extract_feat',
)
_FPN = ('mmdet.models.necks.fpn.FPN', 'mmseg.models.necks.fpn.FPN')


def is_affine(norm: nn.Module) -> bool:
    """Whether a norm in eval mode multiplies and shifts every channel by a constant, as BatchNorm and SyncBN do."""
    return isinstance(norm, _BatchNorm) and norm.running_mean is not None


def conv_like(
    conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int | None = None, kind: type[nn.Conv2d] = nn.Conv2d
) -> nn.Conv2d:
    """A convolution with the geometry of another one and weights of its own."""
    groups = conv.groups if groups is None else groups
    new = nn.utils.skip_init(
        kind,
        weight.shape[1] * groups,
        weight.shape[0],
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=groups,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    new.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return new


def fold_affine(scale: Tensor, shift: Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution that does to ``x`` what ``conv`` does to ``scale * x + shift``.

    Exact for convolutions without padding alone: zeros around the map would have to be shifted as well.
    """
    bias = conv.weight.flatten(1) @ shift
    return conv_like(conv, conv.weight * scale[:, None, None], bias if conv.bias is None else bias + conv.bias)


def fold_offset(offset: Tensor, conv: nn.Conv2d) -> nn.Conv2d:
    """The 1x1 convolution that does to ``x`` what ``conv`` does to ``x + offset``."""
    return fold_affine(torch.ones_like(offset), offset, conv)


def side_by_side(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One grouped convolution for two of the same geometry: their inputs and outputs behind each other."""
    bias = None if first.bias is None else torch.cat([first.bias, second.bias])
    return conv_like(first, torch.cat([first.weight, second.weight]), bias, groups=first.groups + second.groups)


def without_bias(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution without its bias."""
    return conv_like(conv, conv.weight, None)


def output_channels(conv: nn.Conv2d, start: int, stop: int) -> nn.Conv2d:
    """The convolution to a range of the output channels."""
    return conv_like(conv, conv.weight[start:stop], None if conv.bias is None else conv.bias[start:stop])


def fold_sequence(layers: nn.Sequential) -> nn.Sequential:
    """Folds each norm behind a convolution into it, where that can be done."""
    folded = []
    for layer in layers:
        if is_affine(layer) and folded and isinstance(folded[-1], nn.Conv2d):
            folded[-1] = fuse_conv_bn_eval(folded[-1], layer)
        else:
            folded.append(nn.ReLU(inplace=True) if isinstance(layer, nn.ReLU) else layer)
    return nn.Sequential(*folded)


@functools.cache
def _fuses_gelu() -> bool:
    """Whether this PyTorch has oneDNN's fused product, which is no part of its public interface."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


class InPlaceGELU(nn.GELU):
    """GELU written over its input, which PyTorch's own layer cannot do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(x, approximate=self.approximate)


def in_place(act: nn.Module) -> nn.Module:
    """The activation written over its input, where it can be."""
    if type(act) is nn.GELU:
        return InPlaceGELU(act.approximate)
    act = copy.deepcopy(act)
    if hasattr(act, 'inplace'):
        act.inplace = True
    return act


def _is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations run one by one on a CPU, so that it pays to choose them by hand.

    Compilers, tracers and exporters get plain convolutions, and so does autocast, which leaves operations that write
    into their first argument alone.
    """
    return (
        x.device.type == 'cpu'
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled('cpu')
    )


def _is_compiled_for_cpu(x: Tensor) -> bool:
    """Whether ``torch.compile`` traces for a CPU, where it pays to give it what it can fuse."""
    return (
        x.device.type == 'cpu'
        and torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
        and not torch.is_autocast_enabled('cpu')
    )


def _pixels(x: Tensor) -> Tensor:
    """A map ``(N, C, H, W)`` in channels_last format, seen as ``(N * H * W, C)``."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _multiply_into(total: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Adds the product for ``(M, C_in)`` to ``(M, C_out)``, which takes no longer than the product alone."""
    total.addmm_(pixels, weight.t())
    if bias is not None:
        total.add_(bias)


def _add_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None, approximate: str
) -> None:
    """Adds to a map in channels_last format what two 1x1 convolutions with GELU between them make of it.

    Done for some pixels after the other, so that what lies between the convolutions stays in the caches.
    """
    weight1, weight2 = weight1.flatten(1), weight2.flatten(1)
    for pixels in _pixels(x).split(PIXELS_PER_THREAD * torch.get_num_threads()):
        if x.dtype == torch.float32 and _fuses_gelu():
            expanded = torch.ops.mkldnn._linear_pointwise(pixels, weight1, bias1, 'gelu', [], approximate)
        else:
            expanded = torch.ops.aten.gelu_(F.linear(pixels, weight1, bias1), approximate=approximate)
        _multiply_into(pixels, expanded, weight2, bias2)


@torch.library.custom_op('mmcasvit::with_mlp', mutates_args=())
def _with_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None, approximate: str
) -> Tensor:
    """The same as one operator to the compiler, which by itself would write and read the expanded map as a whole."""
    x = x.clone(memory_format=torch.channels_last)
    _add_mlp(x, weight1, bias1, weight2, bias2, approximate)
    return x


@_with_mlp.register_fake
def _(x, weight1, bias1, weight2, bias2, approximate):
    return torch.empty_like(x, memory_format=torch.channels_last)


class Pointwise(nn.Conv2d):
    """A 1x1 convolution, which in channels_last format is a matrix product.

    Shape: ``(N, C_in, H, W)`` to ``(N, C_out, H, W)``.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'Pointwise':
        return conv_like(conv, conv.weight, conv.bias, kind=cls)

    def forward(self, x: Tensor) -> Tensor:
        if _is_eager_on_cpu(x):
            return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
        return super().forward(x)


class SpatialGates(nn.Module):
    """The spatial gates of query and key, done as one.

    Shape: ``(N, 2C, H, W)`` to two of ``(N, 1, H, W)``, between zero and one.
    """

    def __init__(self, query: nn.Sequential, key: nn.Sequential):
        super().__init__()
        self.depthwise = side_by_side(*(fuse_conv_bn_eval(gate[0], gate[1]) for gate in (query, key)))
        # Without groups, with zeros for what an output does not read: faster, since there are two outputs alone.
        weight = torch.block_diag(query[3].weight.flatten(1), key[3].weight.flatten(1))[:, :, None, None]
        self.proj = conv_like(query[3], weight, None, kind=Pointwise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(x).relu_()
        if not _is_compiled_for_cpu(x):
            return self.proj(x).sigmoid().chunk(2, 1)
        # A compiler makes one loop of this, and of what comes before and after.
        maps, (query, key) = x.chunk(2, 1), self.proj.weight.chunk(2, 1)
        return tuple((map * weight).sum(1, keepdim=True).sigmoid() for map, weight in zip(maps, (query[:1], key[1:])))


class DeployedBlock(nn.Module):
    """A block of CAS-ViT whose norms are affine, with these folded away.

    Two more things are done once instead of at every step. Query and key, which pass gates of the same form, go through
    them together. And the biases at the ends of the three branches are constants that the residual stream carries to
    the end of the stage: since only 1x1 convolutions read the stream, what is carried goes into their biases.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``; the input may be overwritten.

    Args:
        block: the block in eval mode.
        carried: ``(C, )``, what the stream lacks at the input.
        carry_on: leave the same out of the output, plus the biases of this block; otherwise they are all added.
    """

    def __init__(self, block: CASViTBlock, carried: Tensor, carry_on: bool):
        super().__init__()
        conv, norm, depthwise, act, local = block.local_perception.network
        self.local = nn.Sequential(
            Pointwise.of(fold_offset(carried, fuse_conv_bn_eval(conv, norm))), depthwise, in_place(act)
        )
        self.local_proj = Pointwise.of(without_bias(local))
        carried = carried + local.bias

        mixer, channels = block.attn, len(carried)
        qkv = fold_offset(carried, fold_affine(*affine_of(block.norm1), mixer.qkv))
        self.query_key = Pointwise.of(output_channels(qkv, 0, 2 * channels))
        self.value = Pointwise.of(output_channels(qkv, 2 * channels, 3 * channels))
        (spatial_q, channel_q), (spatial_k, channel_k) = (
            (oper[0].block, oper[1].block) for oper in (mixer.oper_q, mixer.oper_k)
        )
        self.spatial_gates = SpatialGates(spatial_q, spatial_k)
        self.channel_gate = nn.Sequential(side_by_side(channel_q[1], channel_k[1]), nn.Sigmoid())
        self.dwc = mixer.dwc
        self.proj = without_bias(mixer.proj)
        carried = carried + mixer.proj.bias

        self.fc1 = Pointwise.of(fold_offset(carried, fold_affine(*affine_of(block.norm2), block.mlp.fc1)))
        self.act = in_place(block.mlp.act)
        self.has_gelu = isinstance(self.act, nn.GELU)
        fc2 = block.mlp.fc2
        self.fc2 = Pointwise.of(conv_like(fc2, fc2.weight, None if carry_on else carried + fc2.bias))

    def mix(self, x: Tensor) -> Tensor:
        """The convolutional additive token mixer without its last bias: ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        query_key = self.query_key(x)
        query_gate, key_gate = self.spatial_gates(query_key)
        query, key = query_key.chunk(2, 1)  # mobile processors know no more than four dimensions
        if _is_eager_on_cpu(x):
            query, key = query.mul_(query_gate), key.mul_(key_gate)
        else:  # written over its part of a map, each would be written twice
            query, key = query * query_gate, key * key_gate
        means = torch.cat((query.mean((2, 3), keepdim=True), key.mean((2, 3), keepdim=True)), 1)  # (N, 2C, 1, 1)
        query_gate, key_gate = self.channel_gate(means).chunk(2, 1)
        added = torch.addcmul(query * query_gate, key, key_gate)
        return self.proj(self.dwc(added).mul_(self.value(x)))

    def forward(self, x: Tensor) -> Tensor:
        if _is_eager_on_cpu(x):
            return self.overwrite(x)
        x = x + self.local_proj(self.local(x))
        x = x + self.mix(x)
        if _is_compiled_for_cpu(x) and self.has_gelu and x.shape[0] * x.shape[2] * x.shape[3] > 2 * PIXELS_PER_THREAD:
            return _with_mlp(x, *self.mlp_parameters())
        return x + self.fc2(self.act(self.fc1(x)))

    def overwrite(self, x: Tensor) -> Tensor:
        """The same, written over ``x``, which must be in channels_last format."""
        local = self.local(x).contiguous(memory_format=torch.channels_last)
        _multiply_into(_pixels(x), _pixels(local), self.local_proj.weight.flatten(1), self.local_proj.bias)
        x.add_(self.mix(x))
        if self.has_gelu:
            _add_mlp(x, *self.mlp_parameters())
        else:
            x.add_(self.fc2(self.act(self.fc1(x))))
        return x

    def mlp_parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, str]:
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias, self.act.approximate


class DeployedStage(nn.Sequential):
    """The blocks of one stage.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``; an input in channels_last format is overwritten.
    """

    @classmethod
    def of(cls, blocks: Sequence[CASViTBlock]) -> 'DeployedStage':
        carried, layers = torch.zeros_like(blocks[0].mlp.fc2.bias), []
        for block in blocks:
            layers.append(DeployedBlock(block, carried, carry_on=block is not blocks[-1]))
            carried = carried + sum(
                conv.bias for conv in (block.local_perception.network[-1], block.attn.proj, block.mlp.fc2)
            )
        return cls(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class Affine(nn.Module):
    """``scale * x + shift`` with one of each per channel.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale.detach()[:, None, None])
        self.shift = nn.Parameter(shift.detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class _AroundTrace(nn.Module):
    """What ``torch.jit.script`` gets: a trace itself it would not take."""

    def __init__(self, trace: torch.jit.ScriptModule):
        super().__init__()
        self.trace = trace

    def forward(self, x):
        return self.trace(x)


def _is_whole(mixer: nn.Module) -> bool:
    """Whether a token mixer is CAS-ViT's own, with all its gates."""
    return type(mixer) is AdditiveTokenMixer and all(
        [type(gate) for gate in gates] == [SpatialGate, ChannelGate] for gates in (mixer.oper_q, mixer.oper_k)
    )


def _fold_around(block: CASViTBlock) -> None:
    """Folds, in place, the norms of a block whose token mixer is another one; the mixer stays as it is."""
    behind = [
        block.local_perception.network,
        *(part.block for part in block.attn.modules() if type(part) is SpatialGate),
    ]
    for layers in behind:
        if is_affine(layers[1]):
            layers[0], layers[1] = fuse_conv_bn_eval(layers[0], layers[1]), nn.Identity()
    if is_affine(block.norm2):
        block.mlp.fc1, block.norm2 = fold_affine(*affine_of(block.norm2), block.mlp.fc1), nn.Identity()
    if is_affine(block.norm1):
        if type(block.attn) is AdditiveTokenMixer:
            block.attn.qkv, block.norm1 = fold_affine(*affine_of(block.norm1), block.attn.qkv), nn.Identity()
        else:
            block.norm1 = Affine(*affine_of(block.norm1))


def _deployed_stage(blocks: nn.Sequential) -> nn.Sequential:
    if all(_is_whole(block.attn) for block in blocks):
        norms = [
            norm
            for block in blocks
            for norm in (block.norm1, block.norm2, block.local_perception.network[1], block.attn.oper_q[0].block[1])
        ]
        return DeployedStage.of(blocks) if all(map(is_affine, norms)) else blocks
    for block in blocks:
        _fold_around(block)
    return blocks


class DeployedCASViT(nn.Module):
    """The deploy form of a CAS-ViT backbone; :func:`deploy` makes it.

    Layers with norms that cannot be folded (GroupNorm, or BatchNorm without running statistics) stay as they are. So do
    token mixers other than CAS-ViT's own; the norms around these are folded.

    Args:
        backbone: what it is made from; left alone.
        plain_outputs: the stages whose output norm is left out, since whoever reads that output applies it.

    Attributes:
        out_indices: the stages whose outputs are returned.
        out_channels: channels of each returned map.
        out_strides: stride of each returned map, in pixels.

    Shape:
        As of :class:`mmcasvit.CASViT`. The maps are in channels_last format.
    """

    def __init__(self, backbone: CASViT, plain_outputs: Sequence[int] = ()):
        super().__init__()
        # Whoever watches the backbone, such as the lock on one whose head has no weights, now watches this.
        for key, hook in backbone._forward_pre_hooks.items():
            self.register_forward_pre_hook(hook, with_kwargs=key in backbone._forward_pre_hooks_with_kwargs)
        backbone = copy.deepcopy(backbone).eval()
        self.out_indices = backbone.out_indices
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        stem, *downsamples = map(
            fold_sequence,
            (backbone.patch_embed, *(nn.Sequential(layer.proj, layer.norm) for layer in backbone.network[1::2])),
        )
        self.downsamples = nn.ModuleList([stem, *downsamples])
        self.stages = nn.ModuleList(map(_deployed_stage, backbone.network[::2]))
        self.output_norms = nn.ModuleList()
        for stage in range(len(self.stages)):
            norm = getattr(backbone, f'norm{2 * stage}', nn.Identity())
            if stage in plain_outputs:
                norm = nn.Identity()
            self.output_norms.append(Affine(*affine_of(norm)) if is_affine(norm) else norm)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> 'DeployedCASViT':
        """Refuses training: norms that are folded away cannot be learned.

        Raises:
            RuntimeError: ``mode`` is true.
        """
        if mode:
            raise RuntimeError(
                'The deploy form is for inference: its norms are folded away and its weights are fixed. '
                'Train the model that it was made from, and deploy that again.'
            )
        return super().train(mode)

    def __prepare_scriptable__(self) -> nn.Module:
        # What the forward pass chooses by hand, no script can hold. Its trace has no branch, and takes any size.
        weight = next(self.parameters())
        return _AroundTrace(torch.jit.trace(self, weight.new_zeros(1, weight.shape[1], 64, 64)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for i, (downsample, stage, norm) in enumerate(zip(self.downsamples, self.stages, self.output_norms)):
            x = stage(downsample(x))
            if i in self.out_indices:
                outputs.append(norm(x))
        return tuple(outputs)


def _name(item: object) -> str:
    return f'{item.__module__}.{item.__qualname__}'


def _necks(model: nn.Module) -> Iterator[tuple[CASViT, nn.Module]]:
    """Backbones whose outputs are read by the 1x1 convolutions of an FPN alone, each with its FPN."""
    for part in model.modules():
        backbone, neck = getattr(part, 'backbone', None), getattr(part, 'neck', None)
        if (
            isinstance(backbone, CASViT)
            and _name(type(neck)) in _FPN
            and _name(type(part).extract_feat) in _PLAIN_EXTRACTION
        ):
            yield backbone, neck


def _laterals(backbone: CASViT, neck: nn.Module) -> Iterator[tuple[int, ConvModule]]:
    """The stages whose output norm can be folded into the neck, each with the convolution that reads it."""
    levels = range(neck.start_level, neck.backbone_end_level)
    extra = neck.num_outs > len(levels) and neck.add_extra_convs == 'on_input'
    for level, lateral in zip(levels, neck.lateral_convs):
        # An extra level is computed from the last input by a 3x3 convolution with padding.
        read_twice = extra and level == levels[-1]
        stage = backbone.out_indices[level]
        if not read_twice and _is_plain(lateral) and is_affine(getattr(backbone, f'norm{2 * stage}')):
            yield stage, lateral


def _is_plain(layer: ConvModule) -> bool:
    """Whether a ConvModule begins with a convolution that computes with its weights as they are."""
    return (
        layer.order[0] == 'conv'
        and type(layer.conv) in (nn.Conv2d, WrappedConv2d)
        and not layer.with_explicit_padding
        and not layer.with_spectral_norm
    )


def _fold_conv_module(layer: ConvModule) -> None:
    """Folds the norm behind the convolution of one of mmcv's ConvModules, where that can be done."""
    if layer.with_norm and layer.order[:2] == ('conv', 'norm') and _is_plain(layer) and is_affine(layer.norm):
        layer.conv = fuse_conv_bn_eval(layer.conv, layer.norm)  # a new one: some heads share convolutions, not norms
        setattr(layer, layer.norm_name, nn.Identity())
        layer.with_norm = False


def deploy(model: nn.Module) -> nn.Module:
    """The deploy form of a model: a copy for inference, faster and with the same outputs up to rounding.

    Every BatchNorm of a CAS-ViT backbone is folded into a neighbouring convolution, those before the mixer and the MLP
    included; those of the outputs go into the FPN of a detector or segmentor, or become one multiplication and one
    addition. BatchNorms in ConvModules of necks and heads are folded as well. Convolutions are in channels_last format,
    and mmcv's operators get contiguous maps (see :class:`mmcasvit.ChannelsLastHook`).

    On a CPU and without a compiler around it, the backbone multiplies matrices and writes results over maps that nobody
    needs any more; under ``torch.jit.trace``, ``torch.export`` and autocast it is made of plain convolutions, under
    ``torch.compile`` of these and an operator of its own. ``torch.jit.script`` gets a trace. Fold in full precision and
    convert afterwards: ``deploy(model).bfloat16()``.

    Args:
        model: a :class:`mmcasvit.CASViT`, or a model with one inside: a detector, a segmentor, a classifier. It is left
            as it is.

    Returns:
        A new module in eval mode. Its parameters have other names and shapes than those of the model and get no
        gradient, and ``.train()`` is an error. Its state dict goes back into the deploy form of the same config:
        ``deploy(build(config)).load_state_dict(...)``.

    Raises:
        ValueError: there is no CAS-ViT in the model, for example because it is a deploy form already.

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
            f'deploy: there is no CASViT in this {type(model).__name__}. A model is deployed once, and '
            'before it is compiled or exported.'
        )
    read_by_neck = [
        (backbone, stage, lateral) for backbone, neck in _necks(model) for stage, lateral in _laterals(backbone, neck)
    ]
    # What is in here is not copied but taken instead of the original.
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
    deployed.requires_grad_(False)
    to_channels_last(deployed)
    return deployed
