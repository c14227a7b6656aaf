"""The ImageNet classifier as a plain PyTorch module, with the methods that timm expects of its models.

It needs neither timm nor mmpretrain. :mod:`mmcasvit.models.timm_models` registers it with timm. The mmpretrain
classifier of this project has the same weights under the same names, so checkpoints work in both.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from mmcasvit.archs import parse_arch
from mmcasvit.weights.match import load
from mmcasvit.weights.names import OUTPUT_NORM, is_own_classifier, to_own_names

from .casvit import CASViT

_STEM = 'backbone.patch_embed.0.weight'
OUTPUT_NORM_KEY = re.compile(r'backbone\.' + OUTPUT_NORM)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Adapt the weight of a convolution for RGB images to another number of channels, as timm does.

    For one channel, the weights of the three are summed. For more, they are repeated and scaled, so that the output
    for an image with equal channels stays the same.

    Args:
        weight: ``(C, 3, K, K)``.
        channels: Number of channels of the images.

    Returns:
        ``(C, channels, K, K)``.
    """
    if channels == 3:
        return weight
    if channels == 1:
        return weight.sum(1, keepdim=True)
    repeats = -(-channels // 3)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (3 / channels)


def _own_names(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Rename the authors' weights in place, before PyTorch loads them."""
    given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
    renamed = to_own_names(given)
    if renamed.keys() != given.keys():
        for key in given:
            del state_dict[prefix + key]
        state_dict.update({prefix + key: value for key, value in renamed.items()})


class _Heads(nn.Module):
    """Pair of linear layers, ``(N, C)`` to two of ``(N, num_classes)``; with no classes, a pair of identities."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        for name in ('head', 'dist_head'):
            layer = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
            if num_classes:
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(x), self.dist_head(x)


class CASViTClassifier(nn.Module):
    """CAS-ViT with the authors' two linear heads, whose logits are averaged.

    Args:
        arch: As in :class:`mmcasvit.CASViT`.
        num_classes: Number of classes. With 0 there are no heads, and the features are returned.
        in_chans: Number of channels of the image.
        global_pool: ``'avg'``, or ``''`` for no pooling, which requires ``num_classes=0``.
        drop_rate: Dropout rate before the heads.
        drop_path_rate: As in :class:`mmcasvit.CASViT`.
        output_norms: Add the norms that dense models learn after each stage. By default only the last stage has one.
        backbone: Further arguments of :class:`mmcasvit.CASViT`, such as ``norm_eval`` or ``token_mixer``.

    Attributes:
        feature_info: Channels, stride and name of the four stages, in the form that timm uses.

    Raises:
        ValueError: ``global_pool`` is unknown, or is ``''`` with heads.

    Shape:
        Input: ``(N, in_chans, H, W)``, H and W at least 32. Output: logits ``(N, num_classes)``; without heads
        ``(N, C)``; without pooling ``(N, C, H / 32, W / 32)``.
    """

    def __init__(
        self,
        arch: str | dict = 'xs',
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        output_norms: bool = False,
        **backbone,
    ):
        super().__init__()
        out_indices = (0, 1, 2, 3) if output_norms else 3
        self.backbone = CASViT(arch, in_chans, out_indices, drop_path_rate, **backbone)
        self.in_chans = in_chans
        self.output_norms = output_norms
        self.num_features = self.head_hidden_size = self.backbone.out_channels[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.distilled_training = False
        channels = parse_arch(arch)[1]
        self.feature_info: list[dict] = [
            dict(num_chs=channels[stage], reduction=CASViT.strides[stage], module=f'backbone.network.{2 * stage}')
            for stage in range(4)
        ]
        self.reset_classifier(num_classes, global_pool)
        self.register_load_state_dict_pre_hook(_own_names)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay, apart from biases and norms: none."""
        return set()

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that group parameters by depth, for timm's layer-wise learning rates.

        Args:
            coarse: Group by stage instead of by block.
        """
        if coarse:
            return dict(stem=r'^backbone\.patch_embed', blocks=r'^backbone\.network\.(\d+)')
        return dict(
            stem=r'^backbone\.patch_embed',
            blocks=[
                (r'^backbone\.network\.(\d+)\.(?:proj|norm)', (0,)),  # the downsampling before a stage
                (r'^backbone\.network\.(\d+)\.(\d+)', None),
                (r'^backbone\.norm', (99999,)),
            ],
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set what the backward pass recomputes, as ``with_cp`` of :class:`mmcasvit.CASViT` does."""
        for module in self.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = enable

    def set_distilled_training(self, enable: bool = True) -> None:
        """Set whether training returns the logits of both heads instead of their average."""
        self.distilled_training = enable

    def get_classifier(self) -> tuple[nn.Module, nn.Module]:
        """Return the two heads."""
        return self.head.head, self.head.dist_head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the heads by new ones.

        Args:
            num_classes: As in the constructor.
            global_pool: As in the constructor. None leaves the pooling as it is.
        """
        global_pool = self.global_pool if global_pool is None else global_pool
        if global_pool not in ('avg', ''):
            raise ValueError(f"global_pool must be 'avg' or '', got {global_pool!r}.")
        if num_classes and not global_pool:
            raise ValueError("global_pool='' requires num_classes=0, because the heads need pooled features.")
        self.num_classes = num_classes
        self.global_pool: str = global_pool
        like = next(self.backbone.parameters())
        self.head = _Heads(self.num_features, num_classes).to(like.device, like.dtype).train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the outputs of stages.

        Args:
            x: ``(N, in_chans, H, W)``.
            indices: Stages, negative ones counted from the end. An int stands for that many last stages, None for all.
            norm: Apply the norm of each stage to its map, where there is one.
            stop_early: Skip the stages after the last one in ``indices``.
            output_fmt: Must be ``'NCHW'``.
            intermediates_only: Return only the list.

        Returns:
            The output of :meth:`forward_features` (with ``stop_early`` that of the last computed stage), and a list
            of maps ``(N, C_i, H / 2^(i+2), W / 2^(i+2))``.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}.")
        taken = self._stages_of(indices)
        intermediates = []
        x = self.backbone.stem(x)
        for i, layer in enumerate(self.backbone.network):
            x = layer(x)
            if i % 2:
                continue
            normalized = getattr(self.backbone, f'norm{i}', nn.Identity())(x)
            if i // 2 in taken:
                intermediates.append(normalized if norm else x)
            if stop_early and i // 2 == max(taken):
                break
        return intermediates if intermediates_only else (normalized, intermediates)

    def _stages_of(self, indices: int | Sequence[int] | None) -> list[int]:
        count = len(self.backbone.network) // 2 + 1
        if indices is None:
            indices = count
        stages = range(-indices, 0) if isinstance(indices, int) else indices
        if not stages or any(stage not in range(-count, count) for stage in stages):
            raise ValueError(
                f'indices must be one or more of 0 to {count - 1} (or -{count} to -1, counted from the end), '
                f'or the number of last stages, got {indices!r}.'
            )
        return [stage % count for stage in stages]

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers that :meth:`forward_intermediates` does not need for these indices.

        Args:
            indices: As there.
            prune_norm: Remove the norms of all outputs as well.
            prune_head: Remove the heads. They are always removed together with the last stage.

        Returns:
            The stages, counted from 0.
        """
        taken = self._stages_of(indices)
        last = max(taken)
        shortened = 2 * last + 1 < len(self.backbone.network)
        backbone = self.backbone
        del backbone.network[2 * last + 1 :]
        for stage in range(4):
            name = f'norm{2 * stage}'
            if hasattr(backbone, name) and (prune_norm or stage not in taken):
                delattr(backbone, name)
            if stage in taken and not hasattr(backbone, name):
                backbone.add_module(name, nn.Identity())
        backbone.out_indices = tuple(sorted(set(taken)))
        backbone.out_channels = tuple(self.feature_info[stage]['num_chs'] for stage in backbone.out_indices)
        backbone.out_strides = tuple(backbone.strides[stage] for stage in backbone.out_indices)
        self.num_features = self.head_hidden_size = backbone.out_channels[-1]
        if prune_head or shortened:
            self.reset_classifier(0, '')
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the map before the pooling, ``(N, C, H / 32, W / 32)``."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Pool the output of :meth:`forward_features` and classify it.

        Args:
            x: ``(N, C, H / 32, W / 32)``.
            pre_logits: Stop before the heads.
        """
        if self.global_pool:
            x = adaptive_avg_pool2d(x, 1).flatten(1)  # (N, C, H / 32, W / 32) to (N, C)
        x = self.head_drop(x)
        if pre_logits or not self.num_classes:
            return x
        both = self.head(x)
        return both if self.distilled_training and self.training else sum(both) / 2

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return self.forward_head(self.forward_features(x))

    def adapted(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file by the keys of this model, with the first convolution for its ``in_chans``.

        Args:
            weights: Weights of a classifier (the authors' or this project's), a detector, a segmentor or a backbone.
        """
        weights = to_own_names(weights)
        if not any(key.startswith('backbone.') for key in weights):
            weights = {f'backbone.{key}': value for key, value in weights.items()}
        stem = weights.get(_STEM)
        if stem is not None and stem.shape[1] == 3:
            weights[_STEM] = adapt_channels(stem, self.in_chans)
        if self.output_norms and is_own_classifier(weights):  # the norm of a classifier belongs to its heads
            weights = {key: value for key, value in weights.items() if not OUTPUT_NORM_KEY.match(key)}
        return weights

    def load_pretrained(self, checkpoint: str | Path, new_heads: bool = False) -> None:
        """Load a file of the authors, of this project or of timm, without executing its pickle.

        With ``output_norms``, these norms may be missing in the file, as in :func:`mmcasvit.load_pretrained`, and it
        may be a detector or segmentor. If ``in_chans`` is not 3, the first convolution is adapted from RGB.

        Args:
            checkpoint: A file, an http(s) address, or the name of published weights, such as ``xs-384``.
            new_heads: Keep the heads as they are if the file has another number of classes.

        Raises:
            WeightsError: The file cannot be read safely, or lacks weights. The model is left as it was.
        """
        load(
            self,
            checkpoint,
            rename=lambda weights, _: self.adapted(weights),
            may_miss=OUTPUT_NORM_KEY if self.output_norms else None,
            may_differ=re.compile(r'head\.') if new_heads else None,
        )
