"""CAS-ViT, a backbone whose token mixer gates instead of comparing tokens in pairs (arXiv 2408.03703).

The file reads from the bottom layers to the model: what saves memory in training, gates, branches, block, backbone.
Names of parameters are those of the published weights, so that a published file loads without renaming.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, PretrainedInit
from mmengine.model.efficient_conv_bn_eval import efficient_conv_bn_eval_forward
from torch import Tensor, nn, rsqrt
from torch.compiler import is_compiling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmcasvit.archs import ARCHS, STRIDES, parse_arch
from mmcasvit.registry import MODELS, TOKEN_MIXERS
from mmcasvit.weights.pretrained import load_pretrained

from .token_mixers import build_token_mixer

MLP_RATIO = 4


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def affine_of(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The scale and the shift, ``(C, )`` each, that a norm with its running statistics amounts to."""
    scale = rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _folds(norm: nn.Module, conv: nn.Conv2d) -> bool:
    """Whether ``norm_eval`` made a norm an affine map that a convolution in training can absorb.

    In eval mode nothing is folded: exporters, tracers and hooks on norms find every layer in its place.
    """
    return isinstance(norm, _BatchNorm) and norm.track_running_stats and conv.training and not norm.training


def _conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``; with frozen statistics one convolution, which keeps no map for the gradient of the norm.

    Source: "Tune-Mode ConvBN Blocks" (arXiv 2305.11624), mmengine's ``efficient_conv_bn_eval``.
    """
    return efficient_conv_bn_eval_forward(norm, conv, x) if _folds(norm, conv) else norm(conv(x))


def _norm_conv(norm: nn.Module, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """``conv(norm(x))``; with frozen statistics one convolution, which must be 1x1: the norm comes before padding."""
    if not _folds(norm, conv):
        return conv(norm(x))
    scale, shift = affine_of(norm)
    # Multiplied and summed, since autocast would round a matrix product.
    bias = (conv.weight * shift[:, None, None]).sum((1, 2, 3)) + (0 if conv.bias is None else conv.bias)
    return conv._conv_forward(x, conv.weight * scale[:, None, None], bias)


@contextmanager
def _running_stats_kept(norms: Sequence[_BatchNorm]):
    """Batch statistics are used but not recorded: a recomputation must not record them again."""
    kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)


def _recomputed(function: Callable[[Tensor], Tensor], x: Tensor, owners: Sequence[nn.Module]) -> Tensor:
    """``function(x)``, of which the backward pass computes again what it needs; its norms are in ``owners``.

    PyTorch stops at the last tensor that is needed: a convolution at the end of the function is not computed again.
    """
    norms = [
        m
        for owner in owners
        for m in owner.modules()
        if isinstance(m, _BatchNorm) and m.training and m.track_running_stats
    ]
    if not norms or is_compiling():  # a compiled graph records statistics in its forward half alone
        return checkpoint(function, x, use_reentrant=False)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _running_stats_kept(norms)))


class SpatialGate(nn.Module):
    """Weighs every position by one number, the same for all channels.

    Source: the spatial operation of CATM (arXiv 2408.03703, section 3.2).
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int, norm_cfg: dict):
        super().__init__()
        self.block = nn.Sequential(
            _depthwise(channels),
            _norm(norm_cfg, channels),
            nn.ReLU(),
            nn.Conv2d(channels, 1, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        depthwise, norm, relu, conv, sigmoid = self.block
        return x * sigmoid(conv(relu(_conv_norm(depthwise, norm, x))))


class ChannelGate(nn.Module):
    """Weighs every channel by one number, the same for all positions.

    Source: the channel operation of CATM (arXiv 2408.03703, section 3.2).
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)


class Branch(nn.Module):
    """What a residual connection of the block goes around: a dense convolution, then a light part.

    Light are depthwise convolutions, norms, activations and gates, and a 1x1 convolution at the end: many
    activations for little arithmetic. With ``with_cp='selective'`` the backward pass computes them again from the
    output of the dense convolution, with ``with_cp=True`` all of the branch from its input.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, with_cp: bool | str):
        super().__init__()
        self.with_cp = with_cp

    def forward(self, x: Tensor, *norm: nn.Module) -> Tensor:
        """Computes the branch, behind a norm if one is given."""
        if not self.with_cp or not self.training:
            return self.light(self.dense(x, *norm))
        if self.with_cp == 'selective':
            return _recomputed(self.light, self.dense(x, *norm), [self])
        return _recomputed(lambda x: self.light(self.dense(x, *norm)), x, [self, *norm])


@TOKEN_MIXERS.register_module('additive')
class AdditiveTokenMixer(Branch):
    """Convolutional additive token mixer (CATM): adds gated queries and keys where attention multiplies them.

    Linear in the number of positions, since no two positions are ever compared.

    Source: arXiv 2408.03703, section 3.2.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        spatial_gate, channel_gate: without one of them, or both, the mixer of an ablation.
    """

    def __init__(
        self, channels: int, norm_cfg: dict, with_cp: bool | str, spatial_gate: bool = True, channel_gate: bool = True
    ):
        super().__init__(with_cp)

        def gates() -> nn.Sequential:  # what is left out keeps its place, so that the other keeps its name
            return nn.Sequential(
                SpatialGate(channels, norm_cfg) if spatial_gate else nn.Identity(),
                ChannelGate(channels) if channel_gate else nn.Identity(),
            )

        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.oper_q = gates()
        self.oper_k = gates()
        self.dwc = _depthwise(channels)
        self.proj = _depthwise(channels)

    def dense(self, x: Tensor, norm: nn.Module) -> Tensor:
        return _norm_conv(norm, self.qkv, x)

    def light(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=1)  # (N, 3C, H, W) to three of (N, C, H, W)
        return self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)


class LocalPerception(Branch):
    """The integration subnet: mixes a 3x3 neighbourhood before the token mixer.

    Source: the published weights. The paper's text describes three depthwise convolutions, the weights hold a
    1x1, a 3x3 depthwise and a 1x1.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int, norm_cfg: dict, act_cfg: dict, with_cp: bool | str):
        super().__init__(with_cp)
        self.network = nn.Sequential(
            nn.Conv2d(channels, channels, 1),
            _norm(norm_cfg, channels),
            _depthwise(channels),
            build_activation_layer(act_cfg),
            nn.Conv2d(channels, channels, 1),
        )

    def dense(self, x: Tensor) -> Tensor:
        conv, norm, *_ = self.network
        return _conv_norm(conv, norm, x)

    def light(self, x: Tensor) -> Tensor:
        _, _, depthwise, act, conv = self.network
        return conv(act(depthwise(x)))


class Mlp(Branch):
    """Two 1x1 convolutions, four times wider in between.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int, act_cfg: dict, with_cp: bool | str):
        super().__init__(with_cp)
        self.fc1 = nn.Conv2d(channels, MLP_RATIO * channels, 1)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Conv2d(MLP_RATIO * channels, channels, 1)

    def dense(self, x: Tensor, norm: nn.Module) -> Tensor:
        return _norm_conv(norm, self.fc1, x)

    def light(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(x))


class CASViTBlock(nn.Module):
    """Integration subnet, token mixer and MLP, each around a residual connection.

    Drop path acts on the mixer and on the MLP; the integration subnet has none, as in the published model.

    Source: arXiv 2408.03703, figure 3.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(
        self,
        channels: int,
        drop_path: float,
        norm_cfg: dict,
        act_cfg: dict,
        with_cp: bool | str,
        token_mixer: str | dict,
    ):
        super().__init__()
        self.with_cp = with_cp
        self.local_perception = LocalPerception(channels, norm_cfg, act_cfg, with_cp)
        self.norm1 = _norm(norm_cfg, channels)
        self.attn = build_token_mixer(token_mixer, channels, norm_cfg=norm_cfg, with_cp=with_cp)
        self.norm2 = _norm(norm_cfg, channels)
        self.mlp = Mlp(channels, act_cfg, with_cp)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def mixed(self, x: Tensor) -> Tensor:
        """The token mixer behind its norm; one that is no branch knows neither of norms nor of checkpointing."""
        if isinstance(self.attn, Branch):
            return self.attn(x, self.norm1)
        if self.with_cp is True and self.training:
            return _recomputed(lambda x: self.attn(self.norm1(x)), x, [self.norm1, self.attn])
        return self.attn(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception(x)
        x = x + self.drop_path(self.mixed(x))
        return x + self.drop_path(self.mlp(x, self.norm2))


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 and a norm between two stages.

    Shape: ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H / 2), ceil(W / 2))``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = _norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return _conv_norm(self.proj, self.norm, x)


@MODELS.register_module()
class CASViT(BaseModule):
    """CAS-ViT as a multi-scale backbone.

    Args:
        arch: one of ``CASViT.arch_settings`` (``'xs'``, ``'s'``, ``'m'``, ``'t'``, ``'l'``), or a dict with the
            same two fields: ``depths``, the number of blocks of the four stages, and ``channels``, their widths.
        in_channels: channels of the input image.
        out_indices: the stages whose outputs are returned, counted from 0; negative ones count from the end.
        drop_path_rate: the drop path rate of the last block. It rises linearly over all blocks from 0.
        frozen_stages: -1 freezes nothing, 0 the stem, ``k`` the stem and the first ``k`` stages with the
            downsampling in front of each. Frozen parts get no gradient and stay in eval mode. The output norms
            are never frozen: no published weights hold them, they are learned with the neck.
        norm_eval: keep every BatchNorm of the backbone (SyncBN included) in eval mode under ``.train()``. Except for
            the output norms they are then folded into the convolutions next to them in each step, which saves time
            and memory; gradients are the same, but hooks on these norms do not fire in training.
        norm_cfg: the norm layers, as mmcv builds them.
        act_cfg: the activation of the integration subnet and of the MLP. The stem and the gates use ReLU.
        with_cp: what the backward pass computes again instead of keeping it: nothing, with ``True`` the stem and
            every branch of every block, with ``'selective'`` what is cheap in the branches (depthwise convolutions,
            norms, activations, gates). Gradients stay the same, statistics are recorded once. Token mixers other
            than the additive one are kept whole with ``'selective'``.
        token_mixer: ``'additive'``, which is CAS-ViT's own, or one to compare it with: ``'self_attention'``,
            ``'separable'``, ``'efficient_additive'``, ``'pooling'``, ``'identity'``, or one of your own, see
            :mod:`mmcasvit.token_mixers`. A dict gives it arguments, such as
            ``dict(type='additive', spatial_gate=False)``. No published weights hold others than the additive one.
        init_cfg: as in mmengine. With ``type='Pretrained'`` the file may be a published one or a checkpoint of
            a detector or segmentor; see :func:`mmcasvit.load_pretrained` for what is accepted and refused.

    Attributes:
        arch_settings: on the class, ``depths`` and ``channels`` of each arch.
        strides: on the class, the strides of the four stages relative to the input, in pixels.
        out_channels: on the instance, the channels of each returned map: a neck's ``in_channels``.
        out_strides: on the instance, the stride of each returned map.

    Raises:
        ValueError: an unknown arch or token mixer, a malformed arch dict, an index or a number out of range.
        TypeError: an unknown argument, of the backbone or of the token mixer.

    Shape:
        Input ``(N, in_channels, H, W)``, H and W at least 32. Output: a tuple with one
        ``(N, C_i, H / 2^(i+2), W / 2^(i+2))`` per index ``i`` of ``out_indices``, sizes rounded up, each behind
        its own norm.

    Example:
        >>> import torch
        >>> from mmcasvit import CASViT
        >>> backbone = CASViT('xs').eval()
        >>> for output in backbone(torch.rand(1, 3, 64, 96)):
        ...     print(tuple(output.shape))
        (1, 48, 16, 24)
        (1, 56, 8, 12)
        (1, 112, 4, 6)
        (1, 220, 2, 3)
    """

    arch_settings = ARCHS
    strides = STRIDES

    def __init__(
        self,
        arch: str | dict = 'xs',
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        with_cp: bool | str = False,
        token_mixer: str | dict = 'additive',
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg)
        depths, channels = parse_arch(arch)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f'drop_path_rate must be at least 0 and less than 1, got {drop_path_rate}.')
        if frozen_stages not in range(-1, 5):
            raise ValueError(
                f'frozen_stages must be -1 (nothing), 0 (the stem) or 1 to 4 (the stem and that many '
                f'stages), got {frozen_stages!r}.'
            )
        if not isinstance(with_cp, bool) and with_cp != 'selective':
            raise ValueError(f"with_cp must be False, True or 'selective', got {with_cp!r}.")
        norm_cfg = dict(type='BN') if norm_cfg is None else norm_cfg
        act_cfg = dict(type='GELU') if act_cfg is None else act_cfg
        self.arch = arch
        self.out_indices = self._parse_out_indices(out_indices)
        self.out_channels = tuple(channels[i] for i in self.out_indices)
        self.out_strides = tuple(self.strides[i] for i in self.out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp

        stem_channels = channels[0] // 2
        self.patch_embed = nn.Sequential(
            nn.Conv2d(in_channels, stem_channels, 3, stride=2, padding=1),
            _norm(norm_cfg, stem_channels),
            nn.ReLU(),
            nn.Conv2d(stem_channels, channels[0], 3, stride=2, padding=1),
            _norm(norm_cfg, channels[0]),
            nn.ReLU(),
        )
        rates = [drop_path_rate * block / (sum(depths) - 1) for block in range(sum(depths))]
        # Stages stand at the even places and downsampling between them, as the published names count. Stages
        # behind the last output are not built: their parameters would never get a gradient.
        self.network = nn.ModuleList()
        for stage in range(self.out_indices[-1] + 1):
            depth, width = depths[stage], channels[stage]
            if stage:
                self.network.append(Downsample(channels[stage - 1], width, norm_cfg))
            first = sum(depths[:stage])
            self.network.append(
                nn.Sequential(
                    *[
                        CASViTBlock(width, rate, norm_cfg, act_cfg, with_cp, token_mixer)
                        for rate in rates[first : first + depth]
                    ]
                )
            )
        for i in self.out_indices:
            self.add_module(f'norm{2 * i}', _norm(norm_cfg, channels[i]))
        self.train()

    @staticmethod
    def _parse_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        wrong = [i for i in indices if i not in range(-4, 4)]
        resolved = tuple(i % 4 for i in indices if i not in wrong)
        if wrong or not indices or sorted(set(resolved)) != list(resolved):
            raise ValueError(
                'out_indices must be one or more of 0, 1, 2, 3 (or -4 to -1, counted from the end), '
                f'each once and in rising order, got {out_indices!r}.'
            )
        return resolved

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.patch_embed, *self.network[: max(0, 2 * self.frozen_stages - 1)]]

    def _freeze_stages(self) -> None:
        for module in self._frozen_modules():
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'CASViT':
        """Switches modes as in PyTorch; frozen stages, and norms under ``norm_eval``, stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialises as mmengine does, except that a pretrained file is loaded and checked tensor by tensor.

        Raises:
            mmcasvit.WeightsError: the file does not fit this backbone.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg or {}]
        pretrained = [cfg for cfg in cfgs if cfg.get('type') in ('Pretrained', PretrainedInit)]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        given = self.init_cfg
        try:
            self.init_cfg = [cfg for cfg in cfgs if cfg not in pretrained]
            super().init_weights()
        finally:
            self.init_cfg = given
        for cfg in pretrained:
            load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})

    def _stem(self, x: Tensor) -> Tensor:
        conv1, norm1, relu1, conv2, norm2, relu2 = self.patch_embed
        x = relu1(_conv_norm(conv1, norm1, x))
        return relu2(_conv_norm(conv2, norm2, x))

    def stem(self, x: Tensor) -> Tensor:
        """What the first stage is given: ``(N, in_channels, H, W)`` to ``(N, C_0, H / 4, W / 4)``."""
        if self.with_cp is True and self.patch_embed.training:
            return _recomputed(self._stem, x, [self.patch_embed])
        return self._stem(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for place, layer in enumerate(self.network):
            x = layer(x)
            if place % 2 == 0 and place // 2 in self.out_indices:
                outputs.append(getattr(self, f'norm{place}')(x))
        return tuple(outputs)
