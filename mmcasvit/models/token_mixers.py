"""Token mixers to compare with that of CAS-ViT, ``CASViT(token_mixer=...)``, and the function that builds them by name.

A mixer is a module that maps ``(N, C, H, W)``, after the norm of its block, to the same shape. The first argument of
its constructor is the number of channels. A dict sets the others: ``token_mixer=dict(type='pooling', size=5)``. The
additive mixer of CAS-ViT is in :mod:`mmcasvit.models.casvit`. docs/reference/ablation.md shows how to add one.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcasvit.registry import TOKEN_MIXERS


def build_token_mixer(token_mixer: str | dict, channels: int, **given) -> nn.Module:
    """Build a mixer by its name.

    Args:
        token_mixer: A registered name, or a dict with the name under ``type`` and arguments of the mixer.
        channels: Number of channels of its input.
        given: Settings of the backbone. The mixer gets those that its constructor names.

    Raises:
        ValueError: The name is unknown. The message lists the known ones.
        TypeError: The mixer has no such argument. The message lists its arguments.
    """
    settings = dict(token_mixer) if isinstance(token_mixer, dict) else dict(type=token_mixer)
    name = settings.pop('type', None)
    TOKEN_MIXERS.import_from_location()
    known = TOKEN_MIXERS.module_dict
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f'unknown token_mixer {token_mixer!r}. Valid: {", ".join(sorted(known))}, or a dict with one of these as '
            'its type, and arguments.'
        )
    names = inspect.signature(known[name]).parameters
    own = [parameter for parameter in names if parameter not in ('channels', *given)]
    if wrong := [argument for argument in settings if argument not in own]:
        raise TypeError(
            f'token_mixer {name!r} has no argument {", ".join(map(repr, wrong))}. It takes: {", ".join(own) or "none"}.'
        )
    return known[name](channels, **{key: value for key, value in given.items() if key in names}, **settings)


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f'{name} must be a positive integer, got {value!r}.')


@TOKEN_MIXERS.register_module('self_attention')
class SelfAttention(nn.Module):
    """Multi-head self-attention, which compares all pairs of positions: ``softmax(q k^T / sqrt(d)) v``.

    Its cost is quadratic in the number of positions. PyTorch's fused kernel never holds the matrix of all pairs.

    Source: arXiv 1706.03762, equation 1 and section 3.2.2. Queries, keys and values have no bias, as in the additive
    mixer.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        channels: C.
        head_channels: Upper bound of d, which is the largest divisor of C up to this number.
    """

    def __init__(self, channels: int, head_channels: int = 32):
        super().__init__()
        _check_positive('head_channels', head_channels)
        self.head_channels = max(width for width in range(1, head_channels + 1) if channels % width == 0)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        heads = (n, c // self.head_channels, self.head_channels, h * w)
        # (N, 3C, H, W) to three of (N, heads, HW, d), contiguous for the fused kernel
        q, k, v = (part.reshape(heads).transpose(2, 3).contiguous() for part in self.qkv(x).chunk(3, dim=1))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(2, 3).reshape(n, c, h, w))


@TOKEN_MIXERS.register_module('separable')
class SeparableSelfAttention(nn.Module):
    """Separable self-attention, in which one context vector, a weighted sum of all keys, scales every value.

    Its cost is linear in the number of positions. MobileViTv2 unfolds 2x2 patches and computes a context for each of
    the four positions of a patch; here all positions share one context.

    Source: arXiv 2206.02680, section 3.2 and equation 3.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.qkv = nn.Conv2d(channels, 1 + 2 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        score, key, value = self.qkv(x).split([1, channels, channels], dim=1)
        score = score.flatten(2).softmax(dim=2).view_as(score)  # over all positions
        context = (key * score).sum((2, 3), keepdim=True)  # (N, C, 1, 1)
        return self.proj(value.relu() * context)


@TOKEN_MIXERS.register_module('efficient_additive')
class EfficientAdditiveAttention(nn.Module):
    """Efficient additive attention, in which one global query, a weighted sum of all queries, multiplies every key.

    Its cost is linear in the number of positions. Each query, each key and the vector of all weights are normalized to
    unit length, as in the authors' model; the equations of the paper leave this out.

    Source: SwiftFormer, arXiv 2303.15446, section 3.2, equations 4 to 6.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.weight = nn.Parameter(torch.randn(channels))
        self.proj = nn.Conv2d(channels, channels, 1)
        self.final = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key = F.normalize(self.query(x)), F.normalize(self.key(x))
        score = (query * self.weight[:, None, None]).sum(1, keepdim=True) * x.shape[1] ** -0.5  # (N, 1, H, W)
        score = F.normalize(score.flatten(2), dim=2).view_as(score)
        common = (query * score).sum((2, 3), keepdim=True)  # (N, C, 1, 1)
        return self.final(self.proj(key * common) + query)


@TOKEN_MIXERS.register_module('pooling')
class Pooling(nn.Module):
    """Mean of a neighborhood minus the position itself, without parameters.

    At the border, only positions inside the map count.

    Source: PoolFormer, arXiv 2111.11418, equation 4.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        channels: Not used.
        size: Side length of the neighborhood, an odd number.
    """

    def __init__(self, channels: int, size: int = 3):
        super().__init__()
        _check_positive('size', size)
        if size % 2 == 0:
            raise ValueError(f'size of the neighborhood must be odd, got {size}.')
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


@TOKEN_MIXERS.register_module('identity')
class Identity(nn.Module):
    """Mixer that does nothing, so that a block consists of the integration subnet and the MLP.

    Source: IdentityFormer, arXiv 2210.13452, section 3.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
