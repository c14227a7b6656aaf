"""CAS-ViT in place of the backbone of an existing config."""

from mmcasvit.utils.errors import PlugError, TrialError, WeightsError

from .core import plug
from .trial import Trial, try_out

__all__ = ['PlugError', 'Trial', 'TrialError', 'WeightsError', 'plug', 'try_out']
