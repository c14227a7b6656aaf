"""The classification head of CAS-ViT for mmpretrain.

mmpretrain is optional, so this module is not imported with the package: configs name it in ``custom_imports``.
"""

from torch import Tensor, nn

from mmcasvit.registry import MODELS

try:
    from mmpretrain.models.heads import ClsHead
except (ImportError, RuntimeError) as error:  # a torchvision of another PyTorch raises the latter
    raise ImportError(
        'mmcasvit.models.cls_head needs mmpretrain, pip install "mmcasvit[classification]", and the '
        f'torchvision that was built for the installed PyTorch: {error}'
    ) from error


@MODELS.register_module()
class CASViTClsHead(ClsHead):
    """Authors' head of two linear layers on the pooled features, whose logits are averaged.

    How the authors trained the second layer is not published; its name, ``dist_head``, suggests distillation from a
    teacher. Here both layers learn the labels: the mean of their losses is minimized.

    Args:
        num_classes: Number of classes.
        in_channels: Number of channels of the last stage, ``CASViT.arch_settings[arch]['channels'][-1]``.
        init_cfg: As in mmengine.
        kwargs: Arguments of mmpretrain's ``ClsHead``: ``loss``, ``topk``, ``cal_acc``.

    Raises:
        TypeError: An argument is unknown.

    Shape:
        Input: a tuple whose last item is the pooled features, ``(N, in_channels)``. Output: logits
        ``(N, num_classes)``.
    """

    def __init__(self, num_classes: int, in_channels: int, init_cfg: dict | list | None = None, **kwargs) -> None:
        super().__init__(init_cfg=init_cfg or dict(type='TruncNormal', layer='Linear', std=0.02), **kwargs)
        self.head = nn.Linear(in_channels, num_classes)
        self.dist_head = nn.Linear(in_channels, num_classes)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        x = self.pre_logits(feats)
        return (self.head(x) + self.dist_head(x)) / 2

    def loss(self, feats: tuple[Tensor, ...], data_samples: list, **kwargs) -> dict[str, Tensor]:
        """Return the mean of the losses of both layers, and with ``cal_acc`` the accuracy of the averaged logits."""
        x = self.pre_logits(feats)
        scores = self.head(x), self.dist_head(x)
        losses = self._get_loss(sum(scores) / 2, data_samples, **kwargs)
        losses['loss'] = sum(self._get_loss(score, data_samples, **kwargs)['loss'] for score in scores) / 2
        return losses
