"""A CAS-ViT that is small enough for a test."""

from helpers.reference import fill
from mmcasvit import CASViT

CHANNELS = (8, 12, 16, 24)
TINY = dict(depths=(1, 1, 2, 1), channels=CHANNELS)


def tiny(**kwargs):
    """Return a small backbone with reference weights."""
    return fill(CASViT(TINY, **kwargs))
