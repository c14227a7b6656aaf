"""Token mixers to put in the place of CAS-ViT's own, ``CASViT(token_mixer=...)``, and how they are found by name.

A mixer is a module that takes ``(N, C, H, W)``, behind the norm of its block, and gives the same shape. Its constructor
takes the number of channels first; what else it takes is set by a dict: ``token_mixer=dict(type='pooling', size=5)``.
CAS-ViT's own mixer is in :mod:`mmcasvit.casvit`. docs/ablation.md shows how to add one.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmcasvit.registry import TOKEN_MIXERS


def build_token_mixer(token_mixer: str | dict, channels: int, **given) -> nn.Module:
    """Builds a mixer by its name.

    Args:
        token_mixer: a registered name, or a dict with the name under ``type`` and arguments of the mixer.
        channels: of the maps that it gets.
        given: what the backbone offers beside the channels, of which a mixer gets what its constructor names.

    Raises:
        ValueError: no mixer has the name. The message lists those that there are.
        TypeError: the mixer has no such argument. The message lists those that it has.
    """
    settings = dict(token_mixer) if isinstance(token_mixer, dict) else dict(type=token_mixer)
    name = settings.pop('type', None)
    TOKEN_MIXERS.import_from_location()
    known = TOKEN_MIXERS.module_dict
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f'unknown token_mixer {token_mixer!r}. Valid: {", ".join(sorted(known))}, or a dict with one '
            'of these as its type and arguments of it.'
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
    """Multi-head self-attention: every position is compared with every other, ``softmax(q k^T / sqrt(d)) v``.

    Quadratic in the number of positions. PyTorch's fused kernel never holds the matrix of all pairs.

    Source: arXiv 1706.03762, equation 1 and section 3.2.2; without bias in front, as in CAS-ViT's own mixer.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        channels: C.
        head_channels: d at most; it is the largest number up to this one that divides C.
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
        # (N, 3C, H, W) to three of (N, heads, HW, d); the fused kernel takes no others than contiguous ones
        q, k, v = (part.reshape(heads).transpose(2, 3).contiguous() for part in self.qkv(x).chunk(3, dim=1))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(2, 3).reshape(n, c, h, w))


@TOKEN_MIXERS.register_module('separable')
class SeparableSelfAttention(nn.Module):
    """Separable self-attention: one context vector, a weighted sum of all keys, scales every value.

    Linear in the number of positions. MobileViTv2 computes it among every fourth position, after unfolding 2x2 patches;
    here all positions share one context.

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
    """Efficient additive attention: one global query, a weighted sum of all queries, multiplies every key.

    Linear in the number of positions. Queries and keys have unit length, and so have the weights of all positions
    together: the paper's equations leave these normalisations out, the authors' model has them.

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
    """The mean of a neighbourhood less the position itself, without parameters.

    At the border the mean is that of the positions inside.

    Source: PoolFormer, arXiv 2111.11418, equation 4.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.

    Args:
        channels: C, of which nothing depends.
        size: side of the neighbourhood, an odd number.
    """

    def __init__(self, channels: int, size: int = 3):
        super().__init__()
        _check_positive('size', size)
        if size % 2 == 0:
            raise ValueError(f'size of a neighbourhood must be odd, got {size}.')
        self.pool = nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x


@TOKEN_MIXERS.register_module('identity')
class Identity(nn.Module):
    """No mixing at all: what is left are the integration subnet and the MLP.

    Source: IdentityFormer, arXiv 2210.13452, section 3.
    Shape: ``(N, C, H, W)`` to ``(N, C, H, W)``.
    """

    def __init__(self, channels: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x
