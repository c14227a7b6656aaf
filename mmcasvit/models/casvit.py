"""CAS-ViT, a backbone whose token mixer gates tokens instead of comparing them in pairs (arXiv 2408.03703).

The file reads from the smallest layers to the model: gates, residual branches, block, backbone. Parameters have the
names of the published weights, so published files load without renaming.
"""

from collections.abc import Sequence

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule, PretrainedInit
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmcasvit.archs import ARCHS, STRIDES, parse_arch
from mmcasvit.registry import MODELS, TOKEN_MIXERS
from mmcasvit.weights.pretrained import load_pretrained

from .folding import conv_norm, norm_conv
from .gradient_checkpointing import checkpointed
from .token_mixers import build_token_mixer

MLP_RATIO = 4


def _norm(norm_cfg: dict, channels: int) -> nn.Module:
    return build_norm_layer(norm_cfg, channels)[1]


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


class SpatialGate(nn.Module):
    """Gate that weights each position by one factor, shared by all channels.

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
        return x * sigmoid(conv(relu(conv_norm(depthwise, norm, x))))


class ChannelGate(nn.Module):
    """Gate that weights each channel by one factor, shared by all positions.

    Source: the channel operation of CATM (arXiv 2408.03703, section 3.2).
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.block = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.block(x)


class Branch(nn.Module):
    """Residual branch of a block: a dense convolution, then a cheap part.

    The cheap part consists of depthwise convolutions, norms, activations and gates, and ends with a convolution, which
    is never recomputed. It holds most of the activations and little of the arithmetic, so that recomputing it saves
    much memory in little time.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        with_cp: What the backward pass recomputes instead of keeping it in memory. False: nothing. ``'selective'``:
            the cheap part, from the output of the dense convolution. True: the whole branch, from its input.
    """

    def __init__(self, with_cp: bool | str):
        super().__init__()
        self.with_cp = with_cp

    def dense(self, x: Tensor, *norm: nn.Module) -> Tensor:
        """Apply the dense convolution, after a norm if one is given. Only ``with_cp=True`` recomputes this part."""
        raise NotImplementedError

    def cheap(self, x: Tensor) -> Tensor:
        """Apply the rest to the output of the dense convolution. Any ``with_cp`` but False recomputes this part."""
        raise NotImplementedError

    def forward(self, x: Tensor, *norm: nn.Module) -> Tensor:
        if not self.with_cp or not self.training:
            return self.cheap(self.dense(x, *norm))
        if self.with_cp == 'selective':
            return checkpointed(self.cheap, self.dense(x, *norm), [self])
        return checkpointed(lambda x: self.cheap(self.dense(x, *norm)), x, [self, *norm])


@TOKEN_MIXERS.register_module('additive')
class AdditiveTokenMixer(Branch):
    """Convolutional additive token mixer (CATM), which adds gated queries and keys where attention multiplies them.

    Its cost is linear in the number of positions, because no two positions are compared.

    Source: arXiv 2408.03703, section 3.2.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        channels: C.
        norm_cfg: The norm of the spatial gates, as mmcv builds it.
        with_cp: As in :class:`Branch`.
        spatial_gate: Whether query and key pass a spatial gate. Only ablations turn it off.
        channel_gate: Whether query and key pass a channel gate. Only ablations turn it off.
    """

    def __init__(
        self, channels: int, norm_cfg: dict, with_cp: bool | str, spatial_gate: bool = True, channel_gate: bool = True
    ):
        super().__init__(with_cp)

        def gates() -> nn.Sequential:  # a missing gate keeps its place, so that the other one keeps its name
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
        return norm_conv(norm, self.qkv, x)

    def cheap(self, x: Tensor) -> Tensor:
        q, k, v = x.chunk(3, dim=1)  # (N, 3C, H, W) to three of (N, C, H, W)
        return self.proj(self.dwc(self.oper_q(q) + self.oper_k(k)) * v)


class LocalPerception(Branch):
    """Integration subnet, which mixes a 3x3 neighborhood before the token mixer.

    Source: the published weights. They hold a 1x1, a 3x3 depthwise and a 1x1 convolution, where the paper's text
    describes three depthwise ones.
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
        return conv_norm(conv, norm, x)

    def cheap(self, x: Tensor) -> Tensor:
        _, _, depthwise, act, conv = self.network
        return conv(act(depthwise(x)))


class Mlp(Branch):
    """Two 1x1 convolutions with four times as many channels in between.

    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int, act_cfg: dict, with_cp: bool | str):
        super().__init__(with_cp)
        self.fc1 = nn.Conv2d(channels, MLP_RATIO * channels, 1)
        self.act = build_activation_layer(act_cfg)
        self.fc2 = nn.Conv2d(MLP_RATIO * channels, channels, 1)

    def dense(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm_conv(norm, self.fc1, x)

    def cheap(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(x))


class CASViTBlock(nn.Module):
    """Block of an integration subnet, a token mixer and an MLP, each with a residual connection.

    Drop path acts on the token mixer and on the MLP, but not on the integration subnet, as in the published model.

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

    def mix(self, x: Tensor) -> Tensor:
        """Apply the norm and the token mixer."""
        if isinstance(self.attn, Branch):
            return self.attn(x, self.norm1)
        # Other mixers know nothing of norms and of checkpointing.
        if self.with_cp is True and self.training:
            return checkpointed(lambda x: self.attn(self.norm1(x)), x, [self.norm1, self.attn])
        return self.attn(self.norm1(x))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.local_perception(x)
        x = x + self.drop_path(self.mix(x))
        return x + self.drop_path(self.mlp(x, self.norm2))


class Downsample(nn.Module):
    """Downsampling between two stages: a 3x3 convolution of stride 2 and a norm.

    Shape: ``(N, C_in, H, W)`` to ``(N, C_out, ceil(H / 2), ceil(W / 2))``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: dict):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = _norm(norm_cfg, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self.proj, self.norm, x)


@MODELS.register_module()
class CASViT(BaseModule):
    """CAS-ViT as a multi-scale backbone.

    Args:
        arch: A name in ``CASViT.arch_settings`` (``'xs'``, ``'s'``, ``'m'``, ``'t'``, ``'l'``), or a dict with the
            same two fields: ``depths``, the number of blocks in each of the four stages, and ``channels``, their
            widths.
        in_channels: Number of channels of the input image.
        out_indices: Stages whose outputs are returned, counted from 0. Negative ones count from the end.
        drop_path_rate: Drop path rate of the last block. The rate rises linearly from 0 over all blocks.
        frozen_stages: -1 freezes nothing, 0 the stem, and ``k`` the stem and the first ``k`` stages, each with the
            downsampling before it. Frozen parts get no gradient and stay in eval mode. The output norms are never
            frozen: no published ImageNet weights contain them, and they are learned together with the neck.
        norm_eval: Keep every BatchNorm of the backbone (including SyncBN) in eval mode under ``.train()``. In each
            training step, all but the output norms are then folded into the convolutions next to them. This saves
            time and memory and leaves the gradients the same, but hooks on these norms do not fire in training.
        norm_cfg: Norm layers, as mmcv builds them. By default BatchNorm.
        act_cfg: Activation of the integration subnet and of the MLP, by default GELU. The stem and the gates use
            ReLU.
        with_cp: What the backward pass recomputes instead of keeping it in memory. False: nothing. ``'selective'``:
            the cheap part of each branch (depthwise convolutions, norms, activations, gates). True: the stem and
            every branch of every block. Gradients stay the same, and statistics of norms are recorded once. With
            ``'selective'``, nothing is recomputed in token mixers other than the additive one.
        token_mixer: ``'additive'``, the mixer of CAS-ViT, or one to compare it with: ``'self_attention'``,
            ``'separable'``, ``'efficient_additive'``, ``'pooling'``, ``'identity'``, or your own, see
            :mod:`mmcasvit.models.token_mixers`. A dict passes arguments to it, such as
            ``dict(type='additive', spatial_gate=False)``. All published weights are for the additive mixer.
        init_cfg: As in mmengine. With ``type='Pretrained'``, the file may be a published one or a checkpoint of a
            detector or segmentor; :func:`mmcasvit.load_pretrained` describes which files are accepted.

    Attributes:
        arch_settings: Class attribute, ``depths`` and ``channels`` of each arch.
        strides: Class attribute, strides of the four stages relative to the input, in pixels.
        out_channels: Number of channels of each returned map: the ``in_channels`` of a neck.
        out_strides: Stride of each returned map, in pixels.

    Raises:
        ValueError: The arch or the token mixer is unknown, the arch dict is malformed, or a value is out of range.
        TypeError: An argument of the backbone or of the token mixer is unknown.

    Shape:
        Input: ``(N, in_channels, H, W)``, H and W at least 32. Output: a tuple with one map
        ``(N, C_i, H / 2^(i+2), W / 2^(i+2))`` for each ``i`` of ``out_indices``, sizes rounded up. Each map has
        passed its own norm.

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
        # As in the published names, stages have even indices and the downsampling between them odd ones. Stages after
        # the last output are not built, because their parameters would never get a gradient.
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
        self.train()  # applies frozen_stages and norm_eval

    @staticmethod
    def _parse_out_indices(out_indices: int | Sequence[int]) -> tuple[int, ...]:
        indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        wrong = [i for i in indices if i not in range(-4, 4)]
        resolved = tuple(i % 4 for i in indices if i not in wrong)
        if wrong or not indices or sorted(set(resolved)) != list(resolved):
            raise ValueError(
                'out_indices must be one or more of 0, 1, 2, 3 (or -4 to -1, counted from the end), '
                f'each once and in ascending order, got {out_indices!r}.'
            )
        return resolved

    def _freeze_stages(self) -> None:
        if self.frozen_stages >= 0:
            for module in (self.patch_embed, *self.network[: max(0, 2 * self.frozen_stages - 1)]):
                module.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> 'CASViT':
        """Set the mode as in PyTorch; frozen stages, and with ``norm_eval`` all BatchNorms, stay in eval mode."""
        super().train(mode)
        self._freeze_stages()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialize as in mmengine, but check a pretrained file tensor by tensor and load it only if it fits.

        Raises:
            mmcasvit.WeightsError: The file does not fit this backbone.
        """
        cfgs = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg or {}]
        pretrained = [cfg for cfg in cfgs if cfg.get('type') in ('Pretrained', PretrainedInit)]
        if self.is_init or not pretrained:
            super().init_weights()
            return
        given = self.init_cfg
        try:
            self.init_cfg: dict | list | None = [cfg for cfg in cfgs if cfg not in pretrained]
            super().init_weights()
        finally:
            self.init_cfg = given
        for cfg in pretrained:
            load_pretrained(self, **{key: value for key, value in cfg.items() if key != 'type'})

    def _stem(self, x: Tensor) -> Tensor:
        conv1, norm1, relu1, conv2, norm2, relu2 = self.patch_embed
        x = relu1(conv_norm(conv1, norm1, x))
        return relu2(conv_norm(conv2, norm2, x))

    def stem(self, x: Tensor) -> Tensor:
        """Compute the input of the first stage: ``(N, in_channels, H, W)`` to ``(N, C_0, H / 4, W / 4)``."""
        if self.with_cp is True and self.patch_embed.training:
            return checkpointed(self._stem, x, [self.patch_embed])
        return self._stem(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outputs = []
        for i, layer in enumerate(self.network):
            x = layer(x)
            if i % 2 == 0 and i // 2 in self.out_indices:
                outputs.append(getattr(self, f'norm{i}')(x))
        return tuple(outputs)
