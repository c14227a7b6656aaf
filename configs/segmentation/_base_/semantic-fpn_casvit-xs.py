_base_ = 'encoder_decoder_casvit-xs.py'

model = dict(
    neck=dict(type='FPN', in_channels=[48, 56, 112, 220], out_channels=256, num_outs=4),
    decode_head=dict(type='FPNHead', in_channels=[256, 256, 256, 256], feature_strides=[4, 8, 16, 32], channels=128),
)
