"""Entry points for torch.hub: ``torch.hub.load('path/of/the/repository', 'casvit_xs', source='local')``.

The package is imported where an entry point is called, so that listing them takes no time.
"""

dependencies = ['torch', 'numpy', 'mmengine', 'mmcv']


def _refuse_pretrained(arguments):
    if arguments.pop('pretrained', False):
        raise ValueError(
            'no weights are hosted where a program could download them. Download the file by hand, see '
            "docs/weights.md, and give it: checkpoint='cas-vit.pth' instead of pretrained=True."
        )


def _classifier(arch, checkpoint, arguments):
    _refuse_pretrained(arguments)
    from mmcasvit.models.classifier import CASViTClassifier

    model = CASViTClassifier(arch, **arguments)
    if checkpoint is not None:
        model.load_pretrained(checkpoint, new_heads='num_classes' in arguments)
    return model


def _backbone(arch, checkpoint, arguments):
    _refuse_pretrained(arguments)
    from mmcasvit import CASViT, load_pretrained

    model = CASViT(arch, **arguments)
    if checkpoint is not None:
        load_pretrained(model, checkpoint)
    return model


def casvit_xs(checkpoint=None, **kwargs):
    """ImageNet classifier CAS-ViT xs, 3.2 M parameters; (N, 3, H, W) to logits (N, 1000).

    checkpoint: a file of the authors or of this project, read without executing its pickle; random weights without.
    kwargs: of mmcasvit.classifier.CASViTClassifier, such as num_classes (new heads where the file has others),
        in_chans, drop_path_rate.
    """
    return _classifier('xs', checkpoint, kwargs)


def casvit_s(checkpoint=None, **kwargs):
    """ImageNet classifier CAS-ViT s, 5.8 M parameters; arguments as of casvit_xs."""
    return _classifier('s', checkpoint, kwargs)


def casvit_m(checkpoint=None, **kwargs):
    """ImageNet classifier CAS-ViT m, 12.4 M parameters; arguments as of casvit_xs."""
    return _classifier('m', checkpoint, kwargs)


def casvit_t(checkpoint=None, **kwargs):
    """ImageNet classifier CAS-ViT t, 21.8 M parameters, the largest; arguments as of casvit_xs."""
    return _classifier('t', checkpoint, kwargs)


def casvit_xs_backbone(checkpoint=None, **kwargs):
    """Backbone CAS-ViT xs; (N, 3, H, W) to a tuple of four maps of strides 4, 8, 16 and 32.

    checkpoint: a file with this backbone, of a classifier, detector or segmentor, read without executing its pickle.
    kwargs: of mmcasvit.CASViT, such as out_indices, norm_eval, frozen_stages.
    """
    return _backbone('xs', checkpoint, kwargs)


def casvit_s_backbone(checkpoint=None, **kwargs):
    """Backbone CAS-ViT s; arguments as of casvit_xs_backbone."""
    return _backbone('s', checkpoint, kwargs)


def casvit_m_backbone(checkpoint=None, **kwargs):
    """Backbone CAS-ViT m; arguments as of casvit_xs_backbone."""
    return _backbone('m', checkpoint, kwargs)


def casvit_t_backbone(checkpoint=None, **kwargs):
    """Backbone CAS-ViT t; arguments as of casvit_xs_backbone."""
    return _backbone('t', checkpoint, kwargs)


def model(config, checkpoint=None, device='cpu'):
    """Detector, segmentor or classifier of a config, in evaluation mode, as the inference functions take it.

    config: a name such as 'mask-rcnn_casvit-xs_fpn_1x_coco' (list them: python -m mmcasvit), or the path of a config.
    checkpoint: weights of the whole model, read without executing its pickle; random weights without.
    device: where the model goes.
    """
    from mmcasvit import get_model

    return get_model(config, checkpoint, device)
