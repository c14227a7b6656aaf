"""``plug`` on configs of mmdet and mmseg: the fields that it changes, what it refuses, and trials of the result."""

import copy

import numpy as np
import pytest
import torch
from helpers.plug_configs import BYTETRACK, FASTER_RCNN, FCOS, PSPNET, TINY
from mmengine.registry import DefaultScope

import mmcasvit
from mmcasvit import CASViT, WeightsError
from mmcasvit.plugin import PlugError, TrialError, plug, try_out
from mmcasvit.plugin.compatibility import CONFIGS
from mmcasvit.plugin.core import plug_with_notes
from mmcasvit.plugin.source import read_config

ALL, NO_FIRST = ((0, 1, 2, 3), [8, 12, 16, 24]), ((1, 2, 3), [12, 16, 24])
# Expected result for each config of the compatibility table: the stages that are read, and the fields that read them.
MATRIX = {
    FASTER_RCNN: (ALL[0], {'neck.in_channels': ALL[1]}),
    'mmdet::cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py': (ALL[0], {'neck.in_channels': ALL[1]}),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1], 'neck.start_level': 0}),
    FCOS: (
        NO_FIRST[0],
        {
            'neck.in_channels': NO_FIRST[1],
            'data_preprocessor.mean': [123.675, 116.28, 103.53],
            'data_preprocessor.std': [58.395, 57.12, 57.375],
            'data_preprocessor.bgr_to_rgb': True,
        },
    ),
    'mmdet::gfl/gfl_r50_fpn_1x_coco.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1]}),
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py': (
        NO_FIRST[0],
        {'neck.in_channels': NO_FIRST[1], 'data_preprocessor.bgr_to_rgb': True},
    ),
    'mmdet::tood/tood_r50_fpn_1x_coco.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1]}),
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1]}),
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1]}),
    'mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py': (ALL[0], {'panoptic_head.in_channels': ALL[1]}),
    'mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py': (NO_FIRST[0], {'neck.in_channels': NO_FIRST[1]}),
    'mmdet::solov2/solov2_r50_fpn_1x_coco.py': (ALL[0], {'neck.in_channels': ALL[1]}),
    'mmdet::htc/htc_r50_fpn_1x_coco.py': (ALL[0], {'neck.in_channels': ALL[1]}),
    PSPNET: (
        (2, 3),
        {
            'decode_head.in_channels': 24,
            'decode_head.in_index': 1,
            'auxiliary_head.in_channels': 16,
            'auxiliary_head.in_index': 0,
        },
    ),
    'mmseg::deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512.py': (
        (0, 2, 3),
        {
            'decode_head.in_channels': 24,
            'decode_head.in_index': 2,
            'decode_head.c1_in_channels': 8,
            'auxiliary_head.in_channels': 16,
            'auxiliary_head.in_index': 1,
        },
    ),
    'mmseg::ocrnet/ocrnet_hr18_4xb4-80k_ade20k-512x512.py': (
        ALL[0],
        {'decode_head.0.in_channels': ALL[1], 'decode_head.1.in_channels': ALL[1]},
    ),
    'mmseg::ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py': (
        (3,),
        {'decode_head.0.in_channels': 24, 'decode_head.0.in_index': 0, 'decode_head.1.in_channels': 24},
    ),
    'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py': (ALL[0], {'decode_head.in_channels': ALL[1]}),
    'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py': (ALL[0], {'decode_head.in_channels': ALL[1]}),
    'mmseg::point_rend/pointrend_r50_4xb4-160k_ade20k-512x512.py': (
        ALL[0],
        {'neck.in_channels': ALL[1], 'decode_head.0.in_channels': [256] * 4, 'decode_head.1.in_index': [0]},
    ),
    'mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512.py': (
        NO_FIRST[0],
        {'neck.in_channels': tuple(NO_FIRST[1]), 'decode_head.in_channels': 2048, 'auxiliary_head.in_channels': 16},
    ),
}
# Other kinds of readers; without a trial they are fast.
MORE = {
    'mmdet::ssd/ssd300_coco.py': (
        (1, 2),
        {
            'neck.in_channels': (12, 16),
            'neck.out_channels': (12, 16, 512, 256, 256, 256),
            'bbox_head.in_channels': (12, 16, 512, 256, 256, 256),
        },
    ),
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py': ((2, 3), {'neck.in_channels': (16, 24)}),
    'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py': ((1, 2, 3), {'neck.in_channels': [24, 16, 12]}),
    'mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py': ((3,), {'neck.in_channels': 24}),
    'mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco.py': ((3,), {'neck.in_channels': 24}),
    'mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py': (
        (1, 2, 3),
        {'neck.0.in_channels': [12, 16, 24], 'neck.1.in_channels': 256},
    ),
    # A neck with an operator that only exists for GPUs.
    'mmdet::carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py': (ALL[0], {'neck.in_channels': ALL[1]}),
    # A neck that fails without its first input, and so keeps its start_level.
    'mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_fcoshead-gn-head_4xb4-1x_coco.py': (
        ALL[0],
        {'neck.in_channels': ALL[1], 'neck.start_level': 1},
    ),
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py': (
        (2,),
        {
            'rpn_head.in_channels': 16,
            'roi_head.bbox_roi_extractor.out_channels': 16,
            'roi_head.bbox_head.in_channels': 16,
        },
    ),
    'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py': (
        (2, 3),
        {
            'decode_head.kernel_generate_head.in_channels': 24,
            'decode_head.kernel_update_head.0.in_channels': 512,
            'auxiliary_head.in_index': 0,
        },
    ),
    'mmseg::hrnet/fcn_hr18_4xb4-80k_ade20k-512x512.py': (ALL[0], {'decode_head.in_channels': ALL[1]}),
    'mmseg::mobilenet_v2/mobilenet-v2-d8_deeplabv3plus_4xb4-160k_ade20k-512x512.py': (
        (0, 2, 3),
        {'decode_head.in_channels': 24, 'decode_head.c1_in_channels': 8},
    ),
}
REFUSED = {
    BYTETRACK: ['ByteTrack wraps another model', 'model.detector.backbone', 'config of the inner model'],
    'mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py': ['SoftTeacher wraps another'],
    'mmdet::detectors/cascade-rcnn_r50-rfp_1x_coco.py': ['model.neck has a backbone of its own', 'another neck'],
    'mmdet::faster_rcnn/faster-rcnn_r50-caffe-c4_ms-1x_coco.py': ['model.roi_head.shared_head', 'FPN neck'],
    'mmdet::cornernet/cornernet_hourglass104_10xb5-crop511-210e-mstest_coco.py': ['2 maps of the same stride, 4'],
    'mmdet::glip/glip_atss_swin-t_a_fpn_dyhead_pretrain_obj365.py': ['GLIP reads text too', 'without a language model'],
    'mmseg::unet/unet-s5-d16_fcn_4xb4-40k_drive-64x64.py': ['UNet outputs maps of strides [16, 8, 4, 2, 1]', 'decoder'],
    'mmseg::vit/vit_deit-s16_upernet_8xb2-80k_ade20k-512x512.py': ['plain transformer', 'multi-stage backbone'],
    'mmseg::mae/mae-base_upernet_8xb2-amp-160k_ade20k-512x512.py': ['MAE outputs 4 maps of the same stride, 16'],
    'mmseg::ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py': ['does not return a tuple of maps'],
    'mmseg::bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py': ['BiSeNetV2', 'decoder of its own'],
}


def at(cfg, path):
    for key in path.split('.'):
        cfg = cfg[int(key)] if key.isdigit() else cfg[key]
    return cfg


def check_fields(cfg, out_indices, fields):
    assert cfg.model.backbone.type == 'mmcasvit.CASViT'
    assert cfg.model.backbone.out_indices == out_indices
    assert {path: at(cfg.model, path) for path in fields} == fields


def test_compatibility_table_lists_the_configs_tested_here():
    assert CONFIGS == tuple(MATRIX)


@pytest.mark.slow
@pytest.mark.parametrize('name', MATRIX)
def test_config_trains_and_predicts_with_casvit(name):
    cfg, notes = plug_with_notes(name, TINY, verify=False)
    check_fields(cfg, *MATRIX[name])
    assert not [note for note in notes if 'cannot be built' in note]
    trial = try_out(cfg)
    assert trial.unused == []
    assert trial.losses['loss'] > 0
    assert len(trial.predictions) == 2


@pytest.mark.parametrize('name', MORE)
def test_every_kind_of_reader_gets_the_map_of_its_stride(name):
    check_fields(plug(name, TINY, verify=False), *MORE[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py',
        'mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco.py',
        'mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    ],
)
def test_config_with_an_unusual_reader_trains(name):
    assert try_out(plug(name, TINY, verify=False)).unused == []


@pytest.mark.parametrize('name', REFUSED)
def test_config_that_does_not_fit_is_refused_with_the_reason(name):
    with pytest.raises(PlugError) as caught:
        plug(name, TINY)
    for words in REFUSED[name]:
        assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_argument_and_global_state_stay_unchanged():
    cfg = read_config(FCOS)
    before, state, numbers = copy.deepcopy(cfg.to_dict()), torch.get_rng_state(), np.random.get_state()
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        new = plug(cfg, TINY)
        assert DefaultScope.get_current_instance().scope_name == 'mmpretrain'
    assert cfg.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers[1])
    new.model.neck.in_channels.append(1)
    new.model.data_preprocessor.mean.append(1)
    assert plug(cfg, TINY, verify=False).model.neck.in_channels == [12, 16, 24]
    assert cfg.to_dict() == before


def test_new_backbone_field_by_field():
    cfg = plug(FASTER_RCNN, 'm', verify=False)
    assert cfg.model.backbone == dict(
        type='mmcasvit.CASViT', arch='m', out_indices=(0, 1, 2, 3), norm_eval=True, drop_path_rate=0.1
    )
    assert cfg.model.neck.in_channels == [64, 96, 192, 384]
    assert cfg.custom_imports == dict(imports=['mmcasvit'], allow_failed_imports=False)
    cfg = plug(PSPNET, 's', drop_path_rate=0.2, norm_eval=False, frozen_stages=1, verify=False)
    assert cfg.model.backbone == dict(
        type='mmcasvit.CASViT',
        arch='s',
        out_indices=(2, 3),
        norm_eval=False,
        drop_path_rate=0.2,
        frozen_stages=1,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    )
    assert cfg.model.pretrained is None
    assert plug(FASTER_RCNN, 's', verify=False).model.backbone.get('drop_path_rate') is None


def test_optimizer_entries_of_old_layers_are_removed_and_others_kept():
    name = 'mmdet::mask2former/mask2former_swin-t-p4-w7-224_8xb2-lsj-50e_coco.py'
    old, new = read_config(name), plug(name, TINY, verify=False)
    old_keys, new_keys = (cfg.optim_wrapper.paramwise_cfg.custom_keys for cfg in (old, new))
    assert {'backbone', 'query_embed', 'query_feat', 'level_embed'} <= set(new_keys)
    gone = set(old_keys) - set(new_keys)
    assert {'relative_position_bias_table', 'absolute_pos_embed', 'backbone.stages.0.blocks.0.norm'} <= gone
    assert new_keys['backbone'] == old_keys['backbone']


def test_layer_wise_learning_rates_are_removed_if_the_old_backbone_cannot_be_built():
    name = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    cfg, notes = plug_with_notes(name, TINY, verify=False)
    assert 'constructor' not in cfg.optim_wrapper
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert cfg.custom_imports['imports'] == ['mmcasvit']
    assert cfg.model.neck.in_channels == [8, 12, 16, 24]
    assert any('decay' in note for note in notes)


def test_weights_of_the_old_model_are_removed():
    cfg = read_config('mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py')
    cfg.load_from, cfg.resume = 'rtmdet.pth', True
    new, notes = plug_with_notes(cfg, TINY, verify=False)
    assert (new.load_from, new.resume, new.checkpoint) == (None, False, None)
    assert cfg.load_from == 'rtmdet.pth'
    assert 'load_from: rtmdet.pth -> None, weights of the old model' in notes
    assert not [text for text in new.pretty_text.splitlines() if 'cspnext-s' in text]


def test_trial_loads_pretrained_weights(tmp_path):
    file = tmp_path / 'weights.pth'
    torch.save(CASViT(TINY).state_dict(), file)
    cfg = plug(FCOS, TINY, pretrained=file)
    assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=str(file))
    with pytest.raises(WeightsError, match='does not fit'):
        plug(FCOS, 'xs', pretrained=file)


def test_trial_finds_errors():
    cfg = plug(FCOS, TINY, verify=False)
    wrong = copy.deepcopy(cfg)
    wrong.model.neck.in_channels = [12, 16, 25]
    with pytest.raises(TrialError, match=r'FCOS with mmcasvit.CASViT fails in a training step.*channels') as caught:
        try_out(wrong, sizes=[64])
    assert caught.value.stage == 'train'
    wrong = copy.deepcopy(cfg)
    wrong.model.bbox_head.no_such_argument = 1
    with pytest.raises(TrialError, match=r'cannot be built.*no_such_argument') as caught:
        try_out(wrong)
    assert caught.value.stage == 'build'
    wrong = copy.deepcopy(cfg)
    wrong.model.bbox_head.loss_cls.loss_weight = float('nan')
    with pytest.raises(TrialError, match='not finite'):
        try_out(wrong, sizes=[64])
    unused = copy.deepcopy(cfg)
    unused.model.backbone.out_indices = (0, 1, 2, 3)
    unused.model.neck.update(in_channels=[8, 12, 16, 24], start_level=1)
    assert try_out(unused, sizes=[64]).unused == ['norm0.weight', 'norm0.bias']


def test_unused_parameters_set_find_unused_parameters():
    cfg = read_config('mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    cfg.model.neck.update(end_level=2, num_outs=2, add_extra_convs=False)
    cfg.model.bbox_head.anchor_generator.strides = [8, 16]
    new, notes = plug_with_notes(cfg, TINY)
    assert new.find_unused_parameters is True
    assert any(note.startswith('find_unused_parameters') for note in notes)
    assert any(note.startswith('verified: ') for note in notes)
    assert 'find_unused_parameters' not in plug(FCOS, TINY)


def test_model_that_also_fails_with_its_own_backbone_is_returned_unverified():
    cfg = read_config(FCOS)
    cfg.model.backbone.depth = 18
    cfg.model.neck.in_channels = [64, 128, 256, 512]
    cfg.model.bbox_head.in_channels = 128
    new, notes = plug_with_notes(cfg, TINY)
    assert new.model.neck.in_channels == [12, 16, 24]
    assert [note for note in notes if note.startswith('NOT VERIFIED') and 'FCOS with mmcasvit.CASViT fails' in note]
    assert not any(note.startswith('verified: ') for note in notes)


def test_unrecognized_reader_raises_an_error_that_names_it():
    cfg = read_config(PSPNET)
    cfg.model.auxiliary_head.update(num_convs=0, concat_input=False, channels=1024)
    with pytest.raises(TrialError, match=r'self.in_channels == self.channels.* Override it by hand') as caught:
        plug(cfg, TINY)
    assert caught.value.stage == 'build'


@pytest.mark.parametrize(
    'name, words',
    [
        ('no_such.py', 'config not found: /'),
        ('mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_cocoo.py', 'Did you mean fcos_r50-caffe_fpn_gn-head_1x_coco.py?'),
        ('mmnothing::a.py', 'mmnothing is not installed'),
    ],
)
def test_missing_config(name, words):
    with pytest.raises(PlugError) as caught:
        plug(name, TINY)
    assert words in str(caught.value)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(PlugError, match='unknown arch'):
        plug(FCOS, 'xxl')
    with pytest.raises(PlugError, match='frozen_stages'):
        plug(FCOS, 'xs', frozen_stages=7)
    with pytest.raises(PlugError, match='drop_path_rate'):
        plug(FCOS, 'xs', drop_path_rate=1.0)


def test_head_that_does_not_fit_its_old_backbone_is_named():
    cfg = read_config(PSPNET)
    cfg.model.auxiliary_head.in_channels = 512
    with pytest.raises(PlugError, match=r'model\.auxiliary_head \(FCNHead\) reads maps 2 .* has in_channels=512'):
        plug(cfg, TINY, verify=False)


def test_images_with_other_channels():
    cfg = read_config(PSPNET)
    cfg.model.pretrained = None
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(mean=None, std=None, bgr_to_rgb=False)
    new = plug(cfg, TINY)
    assert new.model.backbone.in_channels == 4
    assert new.model.data_preprocessor.mean is None


def test_public_names():
    assert mmcasvit.plug is plug
    assert mmcasvit.PlugError is PlugError
    assert issubclass(PlugError, ValueError)
