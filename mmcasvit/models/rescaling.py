"""Moving the activations of a deploy form into the range of fp16, by powers of two that change no result.

A layer whose output channel is too large gets its weights multiplied by 2^-k, and the next linear layer takes up the
inverse. This is exact where only convolutions, ReLU, sums, pooling and products lie between, since a multiplication by
a power of two rounds nothing. In a CAS-ViT these maps can be moved, each channel by its own power:

- between the two convolutions of the stem;
- the residual stream of a stage, from its downsampling to the next one and to the output norm or the 1x1 convolution of
  an FPN: all that writes to it and all that reads it is linear;
- in the integration subnet, between the 1x1 and the depthwise convolution;
- query and key, by the same power, because they are added. The gates allow it: convolutions compute them from query and
  key and take up the inverse, and what they multiply by lies between 0 and 1;
- within a spatial gate, between its convolutions;
- the context map and the values, whose product the last depthwise convolution reads.

These cannot be moved: the inputs and outputs of GELU, in the integration subnet and in the MLP, since GELU(a x) is not
a GELU(x); the logits of the gates, where an overflow is harmless, since the sigmoid of infinity is 1; and the outputs
of the backbone.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .deployed_casvit import Affine, DeployedBlock, DeployedCASViT, DeployedStage

# Size from which on a channel is moved. Other images than those measured may be 16 times larger.
LIMIT = 4096.0
_LARGEST = torch.finfo(torch.float16).max


class _Peaks(dict):
    """Largest absolute value of each channel ``(C,)`` of maps ``(N, C, H, W)``, by name."""

    def note(self, name: str, x: Tensor, halves: int = 1) -> None:
        """Note a map, or several next to each other that share their powers."""
        peak = x.detach().float().abs().amax((0, 2, 3)).view(halves, -1).amax(0)
        self[name] = torch.maximum(self[name], peak) if name in self else peak


@contextmanager
def measured_peaks(deployed: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that gets the largest absolute value of each channel while a model runs inside the context.

    Args:
        deployed: Result of :func:`mmcasvit.deploy`. Run it on images that are typical, and on rare ones.

    Yields:
        Peaks ``(C,)`` by the names of the maps, for the argument ``peaks`` of :func:`mmcasvit.deploy`.
    """
    peaks, handles = _Peaks(), []
    for name, part in deployed.named_modules():
        if isinstance(part, DeployedCASViT):
            handles += _watch(part, name, peaks)
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()


def _watch(backbone: DeployedCASViT, name: str, peaks: _Peaks) -> list:
    """Register the hooks that note the peaks of a backbone, and return their handles."""

    def output(module: nn.Module, key: str, halves: int = 1):
        return module.register_forward_hook(lambda _, __, x: peaks.note(f'{name}/{key}', x, halves))

    def given(module: nn.Module, key: str, halves: int = 1):
        return module.register_forward_pre_hook(lambda _, x: peaks.note(f'{name}/{key}', x[0], halves))

    handles = [output(backbone.downsamples[0][0], 'stem')]
    for i, stage in enumerate(backbone.stages):
        if not isinstance(stage, DeployedStage):
            continue
        handles += [output(backbone.downsamples[i], f'{i}.stream'), output(stage, f'{i}.stream')]
        for j, block in enumerate(stage):
            handles += [
                output(block.local[0], f'{i}.{j}.local'),
                given(block.query_key, f'{i}.stream'),
                output(block.query_key, f'{i}.{j}.query_key', 2),
                output(block.spatial_gates.depthwise, f'{i}.{j}.gates'),
                given(block.dwc, f'{i}.{j}.query_key'),
                output(block.dwc, f'{i}.{j}.context'),
                output(block.value, f'{i}.{j}.value'),
                given(block.proj, f'{i}.{j}.product'),
                *_after_mixer(block, f'{name}/{i}.stream', peaks),
            ]
    return handles


def _after_mixer(block: DeployedBlock, key: str, peaks: _Peaks) -> list:
    """Note the residual stream between the token mixer and the MLP, which no module is given on a CPU."""
    before = []
    return [
        block.query_key.register_forward_pre_hook(lambda _, x: before.append(x[0])),
        block.proj.register_forward_hook(lambda _, __, x: peaks.note(key, before.pop() + x)),
    ]


def _powers(peak: Tensor) -> Tensor:
    """Return the powers of two, at most 1, that bring peaks below the limit."""
    return torch.tensor([2.0 ** -max(0, math.ceil(math.log2(max(value, 1.0) / LIMIT))) for value in peak.tolist()])


def _write(conv: nn.Conv2d, factors: Tensor) -> None:
    """Multiply the outputs of a convolution by factors ``(C_out,)``."""
    factors = factors.to(conv.weight)
    conv.weight *= factors[:, None, None, None]
    if conv.bias is not None:
        conv.bias *= factors


def read(conv: nn.Conv2d, factors: Tensor) -> None:
    """Divide the weights of a convolution in place, so that it takes inputs multiplied by factors ``(C_in,)``."""
    width = conv.weight.shape[1]
    factors = factors.to(conv.weight).view(conv.groups, 1, width)
    conv.weight /= factors.expand(-1, conv.out_channels // conv.groups, -1).reshape(-1, width, 1, 1)


@torch.no_grad()
def rescale(backbone: DeployedCASViT, peaks: Mapping[str, Tensor]) -> list[Tensor]:
    """Move the activations of a backbone into the range of fp16, in place.

    Args:
        backbone: Deploy form.
        peaks: Peaks of :func:`measured_peaks`, without the name of the backbone.

    Returns:
        For each stage the factors ``(C,)`` of what it returns, to be taken up by the reader of its output. They are 1
        where the stage has an output norm of its own.

    Raises:
        ValueError: A peak is not finite, or a weight leaves the range of fp16.
    """
    wrong = [name for name, peak in peaks.items() if not peak.isfinite().all()]
    if wrong:
        raise ValueError(f'the activations of {", ".join(wrong)} are not finite in fp32: no power of two can help.')
    powers = {name: _powers(peak) for name, peak in peaks.items()}
    stem = backbone.downsamples[0]
    if isinstance(stem[1], nn.ReLU):  # otherwise a norm that is not folded
        _write(stem[0], powers['stem'])
        read(stem[2], powers['stem'])
    returned = []
    for i, (stage, norm) in enumerate(zip(backbone.stages, backbone.output_norms)):
        last = [layer for layer in backbone.downsamples[i] if not isinstance(layer, nn.ReLU)][-1]
        movable = isinstance(stage, DeployedStage) and isinstance(last, nn.Conv2d)
        movable = movable and isinstance(norm, (Affine, nn.Identity))
        stream = powers[f'{i}.stream'] if movable else torch.ones(last.weight.shape[0])
        if movable:
            _write(last, stream)
            for j, block in enumerate(stage):
                own = {key.rpartition('.')[2]: x for key, x in powers.items() if key.startswith(f'{i}.{j}.')}
                _rescale_block(block, stream, own)
            if i + 1 < len(backbone.stages):
                read(backbone.downsamples[i + 1][0], stream)
            if isinstance(norm, Affine):
                norm.scale /= stream[:, None, None].to(norm.scale)
        returned.append(stream if isinstance(norm, nn.Identity) else torch.ones_like(stream))
    large = [name for name, x in backbone.named_parameters() if x.abs().max() > _LARGEST]
    if large:
        raise ValueError(f'the weights of {", ".join(large)} would leave the range of fp16.')
    return returned


def _rescale_block(block: DeployedBlock, stream: Tensor, powers: Mapping[str, Tensor]) -> None:
    for reader in (block.local[0], block.query_key, block.value, block.fc1):
        read(reader, stream)
    for writer in (block.local_proj, block.proj, block.fc2):
        _write(writer, stream)
    _write(block.local[0], powers['local'])
    read(block.local[1], powers['local'])

    both = powers['query_key'].repeat(2)
    _write(block.query_key, both)
    for reader in (block.spatial_gates.depthwise, block.channel_gate[0]):
        read(reader, both)
    read(block.dwc, powers['query_key'])
    _write(block.spatial_gates.depthwise, powers['gates'])
    read(block.spatial_gates.proj, powers['gates'])

    context, value = powers['context'], torch.minimum(powers['value'], powers['product'] / powers['context'])
    _write(block.dwc, context)
    _write(block.value, value)
    read(block.proj, context * value)
