_base_ = '../segmentation/semantic-fpn_casvit-xs_600i_shapes.py'
