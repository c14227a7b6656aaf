"""Entry points for torch.hub: ``torch.hub.load('path/of/the/repository', 'casvit_xs', source='local')``.

Calling an entry point imports the package; listing them does not, so that it is fast.
"""

dependencies = ['torch', 'numpy', 'mmengine', 'mmcv']


def _published(arch, checkpoint, arguments):
    if not arguments.pop('pretrained', False):
        return checkpoint
    if checkpoint is not None:
        raise ValueError('give either checkpoint or pretrained=True, not both.')
    return arch


def _classifier(arch, checkpoint, arguments):
    checkpoint = _published(arch, checkpoint, arguments)
    from mmcasvit.models.classifier import CASViTClassifier

    model = CASViTClassifier(arch, **arguments)
    if checkpoint is not None:
        model.load_pretrained(checkpoint, new_heads='num_classes' in arguments)
    return model


def _backbone(arch, checkpoint, arguments):
    checkpoint = _published(arch, checkpoint, arguments)
    from mmcasvit import CASViT, load_pretrained

    model = CASViT(arch, **arguments)
    if checkpoint is not None:
        load_pretrained(model, checkpoint)
    return model


def casvit_xs(checkpoint=None, **kwargs):
    """Build the ImageNet classifier CAS-ViT xs, 3.2 M parameters: (N, 3, H, W) to logits (N, 1000).

    Args:
        checkpoint: A file of the authors or of this project, or the name of published weights such as 'xs-384', read
            without executing its pickle. By default the weights are random.
        kwargs: pretrained=True, which downloads the authors' weights, and arguments of
            mmcasvit.models.classifier.CASViTClassifier, such as num_classes, in_chans or drop_path_rate. If num_classes
            is given and differs from that of the file, the heads are new.
    """
    return _classifier('xs', checkpoint, kwargs)


def casvit_s(checkpoint=None, **kwargs):
    """Build the ImageNet classifier CAS-ViT s, 5.8 M parameters. The arguments are those of casvit_xs."""
    return _classifier('s', checkpoint, kwargs)


def casvit_m(checkpoint=None, **kwargs):
    """Build the ImageNet classifier CAS-ViT m, 12.4 M parameters. The arguments are those of casvit_xs."""
    return _classifier('m', checkpoint, kwargs)


def casvit_t(checkpoint=None, **kwargs):
    """Build the ImageNet classifier CAS-ViT t, 21.8 M parameters. The arguments are those of casvit_xs."""
    return _classifier('t', checkpoint, kwargs)


def casvit_xs_backbone(checkpoint=None, **kwargs):
    """Build the backbone CAS-ViT xs: (N, 3, H, W) to a tuple of four maps of strides 4, 8, 16 and 32.

    Args:
        checkpoint: A file of a classifier, detector, segmentor or backbone with this arch, or the name of published
            weights, read without executing its pickle. By default the weights are random.
        kwargs: pretrained=True, which downloads the authors' ImageNet weights, and arguments of mmcasvit.CASViT, such
            as out_indices, norm_eval or frozen_stages.
    """
    return _backbone('xs', checkpoint, kwargs)


def casvit_s_backbone(checkpoint=None, **kwargs):
    """Build the backbone CAS-ViT s. The arguments are those of casvit_xs_backbone."""
    return _backbone('s', checkpoint, kwargs)


def casvit_m_backbone(checkpoint=None, **kwargs):
    """Build the backbone CAS-ViT m. The arguments are those of casvit_xs_backbone."""
    return _backbone('m', checkpoint, kwargs)


def casvit_t_backbone(checkpoint=None, **kwargs):
    """Build the backbone CAS-ViT t. The arguments are those of casvit_xs_backbone."""
    return _backbone('t', checkpoint, kwargs)


def model(config, checkpoint=None, device='cpu', pretrained=False):
    """Build the detector, segmentor or classifier of a config, in eval mode and ready for the inference functions.

    Args:
        config: A name such as 'mask-rcnn_casvit-xs_fpn_1x_coco' (python -m mmcasvit lists them), or the path of a
            config.
        checkpoint: A file with the weights of the whole model, or the name of published weights, read without executing
            its pickle. By default the weights are random.
        device: The device of the model.
        pretrained: Download and use the authors' weights of this config.
    """
    from mmcasvit import get_model

    return get_model(config, checkpoint, device, pretrained)
