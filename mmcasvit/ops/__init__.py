"""Stand-in for the compiled operators of mmcv: mmdet and mmseg run on an mmcv that is pure Python."""

from .install import install_operators, operators_in_use

__all__ = ['install_operators', 'operators_in_use']
