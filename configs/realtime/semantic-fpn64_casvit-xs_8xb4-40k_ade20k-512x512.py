# The published ADE20K recipe of CAS-ViT with 64 channels in the FPN and its head instead of 256 and 128. Its twin on
# the synthetic scenes is semantic-fpn_casvit-xs_300i_shapes.py, which has 64 channels too.
_base_ = '../segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py'

model = dict(neck=dict(out_channels=64), decode_head=dict(in_channels=[64, 64, 64, 64], channels=64))
