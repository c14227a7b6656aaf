_base_ = 'semantic-fpn_casvit-xs_480i_half-shapes.py'

model = dict(backbone=dict(token_mixer='separable'))
