_base_ = '../segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py'

model = dict(backbone=dict(token_mixer='self_attention'))
