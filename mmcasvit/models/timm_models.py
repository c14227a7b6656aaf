"""Models for timm: import this module, then call ``timm.create_model('casvit_xs')``.

timm is optional, so this module is not imported with the package.
"""

from pathlib import Path

from torch import nn

from mmcasvit.utils.errors import WeightsError

from .classifier import OUTPUT_NORM_KEY, CASViTClassifier

try:
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._builder import resolve_pretrained_cfg
except (ImportError, RuntimeError) as error:  # a torchvision of another PyTorch raises the latter
    raise ImportError(
        'mmcasvit.models.timm_models needs timm, pip install "mmcasvit[timm]", and the torchvision that '
        f'was built for the installed PyTorch: {error}'
    ) from error


# The images that the weights were trained on, and the layers that timm may adapt.
_CFG = dict(
    num_classes=1000,
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=0.875,
    interpolation='bicubic',
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    first_conv='backbone.patch_embed.0',
    classifier=('head.head', 'head.dist_head'),
    paper_ids='arXiv:2408.03703',
    origin_url='https://github.com/Tianfang-Zhang/CAS-ViT',
)
# ft_in1k_384 is the published fine-tuning, which squeezes the whole image into a square. Files are the names of
# published weights.
default_cfgs = generate_default_cfgs(
    {
        f'casvit_{arch}.{tag}': _CFG | dict(file=arch + suffix) | settings
        for arch in ('xs', 's', 'm', 't')
        for tag, suffix, settings in [
            ('in1k', '', {}),
            (
                'ft_in1k_384',
                '-384',
                dict(input_size=(3, 384, 384), pool_size=(12, 12), crop_pct=1.0, crop_mode='squash'),
            ),
        ]
    }
)


class _Model(CASViTClassifier):
    """Classifier that keeps new heads when it loads a file, if the caller asked for another number of classes."""

    def load_pretrained(self, checkpoint: str | Path, new_heads: bool | None = None) -> None:
        if new_heads is None:
            new_heads = self.num_classes != self.pretrained_cfg['num_classes']
        super().load_pretrained(checkpoint, new_heads)


def _put_inside(features: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Adapt the weights of a ``checkpoint_path`` to a feature extractor in place, and drop those that it lacks."""
    expected = features.state_dict()
    if prefix or any(key in expected for key in state_dict):
        return
    weights = features.model.adapted(state_dict)
    state_dict.clear()
    for key, value in expected.items():
        inner = key.removeprefix('model.')
        if inner in weights:
            state_dict[key] = weights[inner]
        elif OUTPUT_NORM_KEY.match(inner):
            state_dict[key] = value


def _create(
    variant: str,
    pretrained: bool = False,
    pretrained_cfg: str | dict | None = None,
    pretrained_cfg_overlay: dict | None = None,
    **kwargs,
) -> nn.Module:
    """Build a model as timm's own entry functions do.

    With ``features_only=True``, the outputs are those of :class:`mmcasvit.CASViT`: each map has passed its norm. With
    ``feature_cls='hook'`` or ``'fx'``, they are the maps before the norms.

    Raises:
        WeightsError: ``pretrained`` is set and there is no file, or it does not fit.
    """
    source = resolve_pretrained_cfg(variant, pretrained_cfg, pretrained_cfg_overlay)
    if pretrained and not (source.has_weights or source.state_dict):
        raise WeightsError(
            f"pretrained_cfg of {variant} names no weights. Leave it out, or add file='cas-vit.pth' or the name of "
            "published weights, such as file='xs'."
        )
    feature_cfg: dict = dict(out_indices=(0, 1, 2, 3), feature_cls='getter')
    if kwargs.get('features_only', False):
        kwargs['num_classes'] = 0
        if kwargs.get('feature_cls', 'getter') == 'getter':
            kwargs['output_norms'] = feature_cfg['norm'] = True
    model = build_model_with_cfg(
        _Model,
        variant,
        pretrained,
        pretrained_cfg,
        # Makes timm call load_pretrained of the model instead of reading the file itself.
        pretrained_cfg_overlay=(pretrained_cfg_overlay or {}) | dict(custom_load=True),
        feature_cfg=feature_cfg,
        arch=variant.removeprefix('casvit_'),
        **kwargs,
    )
    if isinstance(getattr(model, 'model', None), CASViTClassifier):  # timm's FeatureGetterNet
        model.register_load_state_dict_pre_hook(_put_inside)
    return model


@register_model
def casvit_xs(pretrained: bool = False, **kwargs) -> nn.Module:
    """CAS-ViT xs, 3.2 M parameters."""
    return _create('casvit_xs', pretrained, **kwargs)


@register_model
def casvit_s(pretrained: bool = False, **kwargs) -> nn.Module:
    """CAS-ViT s, 5.8 M parameters."""
    return _create('casvit_s', pretrained, **kwargs)


@register_model
def casvit_m(pretrained: bool = False, **kwargs) -> nn.Module:
    """CAS-ViT m, 12.4 M parameters."""
    return _create('casvit_m', pretrained, **kwargs)


@register_model
def casvit_t(pretrained: bool = False, **kwargs) -> nn.Module:
    """CAS-ViT t, 21.8 M parameters, the largest."""
    return _create('casvit_t', pretrained, **kwargs)
