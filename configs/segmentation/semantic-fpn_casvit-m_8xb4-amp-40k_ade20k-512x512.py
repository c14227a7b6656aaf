_base_ = 'semantic-fpn_casvit-m_8xb4-40k_ade20k-512x512.py'

optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')
