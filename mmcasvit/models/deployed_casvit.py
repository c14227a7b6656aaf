"""The deploy form of the backbone: for inference, with norms folded into convolutions and fast operations on a CPU.

The file reads: operations on a CPU, the layers of the deploy form, the backbone made of them.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.weak import WeakIdKeyDictionary

from . import native
from .casvit import AdditiveTokenMixer, CASViT, CASViTBlock, ChannelGate, SpatialGate
from .folding import (
    affine_of,
    conv_like,
    fold_affine,
    fold_offset,
    fold_sequence,
    is_affine,
    output_channels,
    side_by_side,
    without_bias,
)

_T = TypeVar('_T')
# Pixels per thread that the MLP computes together. Their channels, four times as many in between, stay in the caches
# of a core.
PIXELS_PER_THREAD = 1024


@functools.cache
def _fuses_gelu() -> bool:
    """Return whether this PyTorch has oneDNN's fused product, which is not part of its public interface."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


class InPlaceGELU(nn.GELU):
    """GELU that overwrites its input, which PyTorch's own layer cannot do."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.gelu_(x, approximate=self.approximate)


def in_place(act: nn.Module) -> nn.Module:
    """Return a copy of an activation that overwrites its input, if it can."""
    if type(act) is nn.GELU:
        return InPlaceGELU(act.approximate)
    act = copy.deepcopy(act)
    if hasattr(act, 'inplace'):
        act.inplace = True
    return act


def _may_be_overwritten(x: Tensor) -> bool:
    """Return whether other operations than plain convolutions may run, on a CPU.

    Tracers and exporters get plain convolutions. So do gradients, and autocast, which does not convert operations that
    write into their first argument.
    """
    return (
        x.device.type == 'cpu'
        and not (x.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_exporting()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled('cpu')
    )


def _is_eager_on_cpu(x: Tensor) -> bool:
    """Return whether operations run one by one on a CPU, where choosing them by hand makes them faster."""
    return _may_be_overwritten(x) and not torch.compiler.is_compiling()


def _pixels(x: Tensor) -> Tensor:
    """View a map ``(N, C, H, W)`` in channels_last format as ``(N * H * W, C)``."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _multiply_into(total: Tensor, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add ``pixels @ weight.T + bias`` to ``total`` in place, which takes as long as the product by itself.

    Shape: ``total`` ``(M, C_out)``, ``pixels`` ``(M, C_in)``.
    """
    total.addmm_(pixels, weight.t())
    if bias is not None:
        total.add_(bias)


def _add_mlp(
    x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor | None, approximate: str
) -> None:
    """Add to pixels ``(M, C)``, in place, the output of two matrix products with GELU between them.

    It is computed for a few pixels at a time, so that the values between the products stay in the caches.
    """
    for pixels in x.split(PIXELS_PER_THREAD * torch.get_num_threads()):
        if x.dtype == torch.float32 and _fuses_gelu():
            expanded = torch.ops.mkldnn._linear_pointwise(pixels, weight1, bias1, 'gelu', [], approximate)
        else:
            expanded = torch.ops.aten.gelu_(F.linear(pixels, weight1, bias1), approximate=approximate)
        _multiply_into(pixels, expanded, weight2, bias2)


@torch.compiler.assume_constant_result
def _has_native_layers() -> bool:
    return native.is_available()


def _parts(layers: nn.Module) -> list[nn.Module]:
    """Return all modules in layers. In eager mode, ``modules()`` takes as long as computing a small map."""
    if torch.compiler.is_compiling():
        return [part for part in layers.modules() if part is not layers]
    parts = list(layers._modules.values())
    for part in parts:
        parts.extend(part._modules.values())
    return parts


def _weights(layers: nn.Module) -> list[Tensor]:
    """Return all weights in layers. In eager mode, ``parameters()`` takes several times as long."""
    if torch.compiler.is_compiling():
        return list(layers.parameters())
    return [weight for part in _parts(layers) for weight in part._parameters.values() if weight is not None]


def _may_be_native(x: Tensor, layers: nn.Module) -> bool:
    """Return whether C++ may compute layers: on a CPU, if the weights fit, and nobody needs what lies between."""
    return (
        _may_be_overwritten(x)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in _parts(layers))
        and all(weight.dtype == x.dtype and weight.device == x.device for weight in _weights(layers))
        and (torch.compiler.is_compiling() or (type(x) is Tensor and _get_current_dispatch_mode() is None))
        and _has_native_layers()
    )


# What was made of weights for C++, by the first of them: where all of them were, how often they had been changed, the
# weights, so that no others can lie at the same place, and the result.
_made_of = WeakIdKeyDictionary()


def _made_once(weights: Sequence[Tensor], make: Callable[[], _T]) -> _T:
    """Return what a function makes of weights, which is kept until they change.

    A change by ``.data`` in place is not noticed, since PyTorch does not count it.
    """
    if any(weight.is_inference() for weight in weights):  # PyTorch counts no change of these
        return make()
    state, known = [(weight.data_ptr(), weight._version) for weight in weights], _made_of.get(weights[0])
    if known is None or known[0] != state:
        known = _made_of[weights[0]] = state, [weight.detach() for weight in weights], make()
    return known[2]


class _BFloat16Block:
    """Weights of a block in bf16, in which the depthwise convolutions and gates are in C++.

    Args:
        weights: Those of the struct ``Block`` of ``native.cpp``.
    """

    def __init__(self, weights: Sequence[Any]):
        self.local, self.local_bias, depthwise, depthwise_bias, self.local_proj = weights[:5]
        self.query_key, self.query_key_bias, self.value, self.value_bias = weights[5:9]
        self.fc1, self.fc1_bias, self.fc2, self.fc2_bias = weights[16:]
        self.depthwise, self.depthwise_bias = depthwise.float(), depthwise_bias.float()
        self.mixer = [weight.float() for weight in weights[9:16]]

    def overwrite(self, x: Tensor, shape: Sequence[int], approximate: str) -> None:
        """Compute the block in place. Shape: ``x`` ``(N * H * W, C)``, ``shape`` N, H, W and C."""
        hidden = F.linear(x, self.local.t(), self.local_bias)
        hidden = native.depthwise_gelu(hidden, self.depthwise, self.depthwise_bias, shape, approximate == 'tanh')
        _multiply_into(x, hidden, self.local_proj.t(), None)
        query_key = F.linear(x, self.query_key.t(), self.query_key_bias)
        value = F.linear(x, self.value.t(), self.value_bias)
        native.add_mixed(x, query_key, value, self.mixer, shape)
        _add_mlp(x, self.fc1.t(), self.fc1_bias, self.fc2.t(), self.fc2_bias, approximate)


def _by_input(weight: Tensor) -> Tensor:
    """Return the weight ``(C_out, C_in / groups, ...)`` of a convolution as ``(... * C_in / groups, C_out)``."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()


def _native_blocks(weights: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    """Return the blocks of a stage for C++.

    Args:
        weights: As :meth:`DeployedStage.weights` returns them.
        dtype: Their type, fp32 or bf16.
    """
    arranged: list[Tensor | None] = []
    for i, weight in enumerate(weights):
        if weight is not None and weight.dim() > 1:
            by_output = i % native.WEIGHTS in native.BY_OUTPUT
            weight = weight.flatten(1).contiguous() if by_output else _by_input(weight)
        arranged.append(weight)
    kind = native.Block if dtype == torch.float32 else _BFloat16Block
    return [kind(arranged[i : i + native.WEIGHTS]) for i in range(0, len(arranged), native.WEIGHTS)]


@torch.library.custom_op('mmcasvit::stage', mutates_args=())
def _stage(x: Tensor, weights: Sequence[Tensor | None], approximate: str) -> Tensor:
    """Return the output of a stage, as :func:`_overwrite_stage` computes it: an operator for compilers."""
    x = x.clone(memory_format=torch.channels_last)
    present = [weight for weight in weights if weight is not None]
    _overwrite_stage(x, _made_once(present, lambda: _native_blocks(weights, x.dtype)), approximate)
    return x


def _overwrite_stage(x: Tensor, blocks: Sequence[Any], approximate: str) -> None:
    """Compute a stage in place in C++.

    Args:
        x: ``(N, C, H, W)`` in channels_last format, in fp32 or bf16.
        blocks: As :func:`_native_blocks` returns them.
        approximate: That of GELU.
    """
    pixels, shape = _pixels(x), (x.shape[0], *x.shape[2:], x.shape[1])
    if x.dtype == torch.float32:
        buffers = torch.empty_like(pixels), pixels.new_empty(len(pixels), 2 * x.shape[1]), torch.empty_like(pixels)
        for block in blocks:
            native.block(pixels, buffers, block, shape, approximate == 'tanh')
    else:
        for block in blocks:
            block.overwrite(pixels, shape, approximate)


@_stage.register_fake
def _(x, weights, approximate):
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op('mmcasvit::halve', mutates_args=())
def _halve(x: Tensor, weights: Sequence[Tensor], relu: bool) -> Tensor:
    """Return the output of convolutions with stride 2, as :func:`native.halve` computes it: an operator for compilers.

    Args:
        x: ``(N, C_in, H, W)`` in fp32, in any memory format.
        weights: As :meth:`DeployedDownsample.weights` returns them.
        relu: Whether ReLU follows each convolution.
    """
    return native.halve(x, _made_once(weights, lambda: _halvings(weights, relu)))


def _halvings(weights: Sequence[Tensor], relu: bool) -> native.Halvings:
    count = len(weights) // 2
    return native.Halvings([_by_input(weight) for weight in weights[:count]], weights[count:], relu)


@_halve.register_fake
def _(x, weights, relu):
    return native.empty_halved(x, weights[len(weights) // 2 :])


class Pointwise(nn.Conv2d):
    """1x1 convolution, which in channels_last format is a matrix product.

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
    """Spatial gates of query and key, computed together.

    Shape: ``(N, 2C, H, W)`` to two of ``(N, 1, H, W)``, between 0 and 1.
    """

    def __init__(self, query: nn.Sequential, key: nn.Sequential):
        super().__init__()
        self.depthwise = side_by_side(*(fuse_conv_bn_eval(gate[0], gate[1]) for gate in (query, key)))
        # One group, with zeros where an output reads nothing: faster, because there are only two outputs.
        weight = torch.block_diag(query[3].weight.flatten(1), key[3].weight.flatten(1))[:, :, None, None]
        self.proj = conv_like(query[3], weight, None, kind=Pointwise)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.depthwise(x).relu_()
        return self.proj(x).sigmoid().chunk(2, 1)


class DeployedBlock(nn.Module):
    """Block of CAS-ViT with all norms folded away.

    Two more things make it faster. Query and key pass their gates, which have the same form, together. And the biases
    at the ends of the three branches are not added to the residual stream, but carried to the end of the stage: the
    stream is read only by 1x1 convolutions, whose biases take up what is carried.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``. The input may be overwritten.

    Args:
        block: The block in eval mode. All of its norms must be affine.
        carried: ``(C,)``, the constants that have not been added to the input yet.
        carry_on: Do not add them to the output either, nor the biases of this block.
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
        """Apply the token mixer without its last bias: ``(N, C, H, W)`` to ``(N, C, H, W)``."""
        query_key = self.query_key(x)
        query_gate, key_gate = self.spatial_gates(query_key)
        query, key = query_key.chunk(2, 1)
        if _is_eager_on_cpu(x):
            query, key = query.mul_(query_gate), key.mul_(key_gate)
        else:  # in place, each part of the map would be written twice
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
        return x + self.fc2(self.act(self.fc1(x)))

    def overwrite(self, x: Tensor) -> Tensor:
        """Compute the block in place. The input must be in channels_last format."""
        local = self.local(x).contiguous(memory_format=torch.channels_last)
        _multiply_into(_pixels(x), _pixels(local), self.local_proj.weight.flatten(1), self.local_proj.bias)
        x.add_(self.mix(x))
        if self.has_gelu:
            fc1, fc2 = self.fc1, self.fc2
            _add_mlp(_pixels(x), fc1.weight.flatten(1), fc1.bias, fc2.weight.flatten(1), fc2.bias, self.act.approximate)
        else:
            x.add_(self.fc2(self.act(self.fc1(x))))
        return x

    def weights(self) -> list[Tensor | None]:
        """Return the weights of the convolutions, in the order of the struct ``Block`` of ``native.cpp``."""
        local, depthwise, _ = self.local
        gates, channel_gate = self.spatial_gates, self.channel_gate[0]
        return [
            *(parameter for conv in (local, depthwise) for parameter in (conv.weight, conv.bias)),
            self.local_proj.weight,
            *(parameter for conv in (self.query_key, self.value) for parameter in (conv.weight, conv.bias)),
            *(gates.depthwise.weight, gates.depthwise.bias, gates.proj.weight, channel_gate.weight),
            *(self.dwc.weight, self.dwc.bias, self.proj.weight),
            *(parameter for conv in (self.fc1, self.fc2) for parameter in (conv.weight, conv.bias)),
        ]


class DeployedStage(nn.Sequential):
    """Blocks of one stage.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``. An input in channels_last format is overwritten.
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

    def is_native(self, x: Tensor) -> bool:
        """Return whether C++ computes the stage, in fp32 or bf16."""
        return (
            x.dtype in native.DTYPES
            and x.shape[1] >= native.LANES
            and all(block.has_gelu for block in self)
            and _may_be_native(x, self)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.is_native(x):
            approximate = self[0].act.approximate
            if torch.compiler.is_compiling():
                return _stage(x, self.weights(), approximate)
            x = x.contiguous(memory_format=torch.channels_last)
            blocks = _made_once(_weights(self), lambda: _native_blocks(self.weights(), x.dtype))
            _overwrite_stage(x, blocks, approximate)
            return x
        return super().forward(x.contiguous(memory_format=torch.channels_last))

    def weights(self) -> list[Tensor | None]:
        """Return the weights of all blocks in turn."""
        return [weight for block in self for weight in block.weights()]


class DeployedDownsample(nn.Sequential):
    """3x3 convolutions with stride 2: one before a stage, or the two of the stem, each with ReLU after it.

    Shape: ``(N, C_in, H, W)`` to ``(N, C_out, H / 2, W / 2)``, or by 4 in the stem.
    """

    def is_native(self, x: Tensor) -> bool:
        """Return whether C++ computes the layers, in fp32."""
        return (
            x.dtype == torch.float32
            and all(type(layer) is nn.ReLU for layer in list(self)[1::2])  # not a norm that could not be folded
            and all(conv.out_channels >= native.LANES for conv in list(self)[::2])
            and x.shape[1:2] == (self[0].in_channels,)
            and x.dim() == 4
            and x.numel() > 0
            and _may_be_native(x, self)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.is_native(x):
            relu = len(self) > 1
            if torch.compiler.is_compiling():
                return _halve(x, self.weights(), relu)
            return native.halve(x, _made_once(_weights(self), lambda: _halvings(self.weights(), relu)))
        return super().forward(x)

    def weights(self) -> list[Tensor]:
        """Return the weights of all convolutions in turn, then their biases."""
        convs = list(self)[::2]
        return [*(conv.weight for conv in convs), *(conv.bias for conv in convs)]


class Affine(nn.Module):
    """Scale and shift of each channel: ``scale * x + shift``.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale.detach()[:, None, None])
        self.shift = nn.Parameter(shift.detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


class _AroundTrace(nn.Module):
    """Module around a trace, because ``torch.jit.script`` does not accept the trace itself."""

    def __init__(self, trace: torch.jit.ScriptModule):
        super().__init__()
        self.trace = trace

    def forward(self, x):
        return self.trace(x)


def _is_whole(mixer: nn.Module) -> bool:
    """Return whether a token mixer is the additive one with all of its gates."""
    return type(mixer) is AdditiveTokenMixer and all(
        [type(gate) for gate in gates] == [SpatialGate, ChannelGate] for gates in (mixer.oper_q, mixer.oper_k)
    )


def _fold_around(block: CASViTBlock) -> None:
    """Fold the norms of a block in place, around a token mixer that stays as it is."""
    gates = [part.block for part in block.attn.modules() if type(part) is SpatialGate]
    for layers in (block.local_perception.network, *gates):
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
    """Return the fastest form of a stage that its token mixers and norms allow. The blocks may be changed."""
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
    """Deploy form of a CAS-ViT backbone, made by :func:`mmcasvit.deploy`.

    Layers with norms that cannot be folded (GroupNorm, or BatchNorm without running statistics) stay as they are. So do
    token mixers other than the additive one, but the norms around them are folded.

    Args:
        backbone: The backbone, which is left as it is.
        plain_outputs: Stages whose output norm is left out, because the reader of the output applies it.

    Attributes:
        out_indices: Stages whose outputs are returned.
        out_channels: Number of channels of each returned map.
        out_strides: Stride of each returned map, in pixels.

    Shape:
        As :class:`mmcasvit.CASViT`. The maps are in channels_last format.
    """

    def __init__(self, backbone: CASViT, plain_outputs: Sequence[int] = ()):
        super().__init__()
        # Keep the hooks of the backbone, such as the one that prevents predictions with a head that has no weights.
        for key, hook in backbone._forward_pre_hooks.items():
            self.register_forward_pre_hook(hook, with_kwargs=key in backbone._forward_pre_hooks_with_kwargs)
        backbone = copy.deepcopy(backbone).eval()
        self.out_indices = backbone.out_indices
        self.out_channels = backbone.out_channels
        self.out_strides = backbone.out_strides
        downsamples = [nn.Sequential(layer.proj, layer.norm) for layer in backbone.network[1::2]]
        self.downsamples = nn.ModuleList(
            DeployedDownsample(*fold_sequence(layers)) for layers in (backbone.patch_embed, *downsamples)
        )
        self.stages = nn.ModuleList(map(_deployed_stage, backbone.network[::2]))
        self.output_norms = nn.ModuleList()
        for stage in range(len(self.stages)):
            norm = getattr(backbone, f'norm{2 * stage}', nn.Identity())
            if stage in plain_outputs:
                norm = nn.Identity()
            self.output_norms.append(Affine(*affine_of(norm)) if is_affine(norm) else norm)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> 'DeployedCASViT':
        """Refuse training mode, because norms that are folded away cannot be learned.

        Raises:
            RuntimeError: ``mode`` is True.
        """
        if mode:
            raise RuntimeError(
                'The deploy form is for inference: its norms are folded away and its weights are fixed. '
                'Train the original model and deploy it again.'
            )
        return super().train(mode)

    def __prepare_scriptable__(self) -> nn.Module:
        # TorchScript cannot compile the choices of the forward pass. A trace has none, and accepts any image size.
        weight = next(self.parameters())
        return _AroundTrace(torch.jit.trace(self, weight.new_zeros(1, weight.shape[1], 64, 64)))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        outputs = []
        for i, (downsample, stage, norm) in enumerate(zip(self.downsamples, self.stages, self.output_norms)):
            x = stage(downsample(x))
            if i in self.out_indices:
                outputs.append(norm(x))
        return tuple(outputs)
