_base_ = 'casvit-xs_8xb128-300e_in1k-224.py'

model = dict(backbone=dict(arch='m'), head=dict(in_channels=384))
