_base_ = 'casvit-xs_ft-8xb64-30e_in1k-384.py'

model = dict(backbone=dict(arch='m'), head=dict(in_channels=384))
