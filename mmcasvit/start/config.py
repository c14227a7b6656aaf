"""The config that a recipe becomes: short, on top of one of this project's, with the reason for each choice."""

import colorsys
import hashlib
import math
import textwrap
from pathlib import Path
from typing import Any

from mmcasvit.archs import ARCHS

from .prepare import Data
from .recipe import Choices, Recipe

_BASES = {
    'retinanet': 'retinanet_casvit-{}_fpn_1x_coco',
    'mask-rcnn': 'mask-rcnn_casvit-{}_fpn_1x_coco',
    'rtmdet': 'rtmdet_casvit-xs_pafpn_1x_coco',
    'semantic-fpn': 'semantic-fpn_casvit-{}_8xb4-40k_ade20k-512x512',
    'upernet': 'upernet_casvit-{}_8xb2-160k_ade20k-512x512',
}
NAMES = {
    'retinanet': 'RetinaNet',
    'mask-rcnn': 'Mask R-CNN',
    'rtmdet': 'RTMDet',
    'semantic-fpn': 'Semantic FPN',
    'upernet': 'UperNet',
}
# What is compared to keep the best checkpoint, by task.
METRICS = dict(detect='coco/bbox_mAP', instances='coco/segm_mAP', semantic='mIoU')
_MARK = '# As written: '
_AUGMENTATION = (
    '# Mild augmentation: other sizes, colors and mirror images, which keep the model from memorizing the images.'
)


def _comment(text: str) -> str:
    return textwrap.fill(text[:1].upper() + text[1:], 118, initial_indent='# ', subsequent_indent='# ')


def _listed(values: list, opening: str, closing: str) -> str:
    """Write a list over as many lines as it takes."""
    text = ', '.join(map(repr, values)) + (',' if len(values) == 1 and opening == '(' else '')
    if len(text) < 90:
        return f'{opening}{text}{closing}'
    body = textwrap.fill(text + ',', 112, initial_indent=' ' * 8, subsequent_indent=' ' * 8, break_long_words=False)
    if any(' ' in str(value) and isinstance(value, str) for value in values) or len(values) < 2:
        body = '\n'.join(f'        {value!r},' for value in values)  # no name is broken
    return f'{opening}\n{body}\n    {closing}'


def _call(entries: dict[str, Any], indent: str = '') -> str:
    """Write a dict as a call of ``dict``, over several lines if it is long. :class:`_Code` stays as it is."""
    parts = [f'{key}={_value(value, indent + "    ")}' for key, value in entries.items()]
    line = f'dict({", ".join(parts)})'
    if len(line) + len(indent) < 100 and '\n' not in line:
        return line
    inner = ''.join(f'{indent}    {part},\n' for part in parts)
    return f'dict(\n{inner}{indent})'


class _Code(str):
    """Python code, as opposed to a string."""


def _value(value: Any, indent: str) -> str:
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, dict):
        return _call(value, indent)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return '[\n' + ''.join(f'{indent}    {_value(part, indent + "    ")},\n' for part in value) + f'{indent}]'
    return repr(value)


def make_palette(count: int) -> list[tuple[int, int, int]]:
    """Return colors for classes that are easy to tell apart."""
    colors = []
    for number in range(count):
        shade = colorsys.hsv_to_rgb(number * 0.618034 % 1, (0.9, 0.6)[number // 8 % 2], (0.95, 0.7)[number % 2])
        colors.append((round(255 * shade[0]), round(255 * shade[1]), round(255 * shade[2])))
    return colors


def base_of(choices: Choices) -> str:
    """Return the name of the config of this project that a config inherits from."""
    return _BASES[choices.model].format(choices.arch)


def write_config(data: Data, choices: Choices, recipe: Recipe, out: Path) -> str:
    """Return the text of the config."""
    sections = [
        _comment(
            f'{NAMES[choices.model]} with CAS-ViT {choices.arch} for {data.root}, written by tools/start.py: '
            f'{data.layout} with {len(data.classes)} class{"es" * (len(data.classes) > 1)}, '
            + ', '.join(f'{count} images for {split}' for split, count in data.counts.items())
            + '. It is yours: change what you like.'
        )
        + f"\n_base_ = __import__('mmcasvit').config_path({base_of(choices)!r})",
        _data_section(data),
    ]
    write = _segmentor if data.task == 'semantic' else _detector
    text = '\n\n'.join([*sections, *write(data, choices, recipe, out)]) + '\n'
    return f'{text}\n{_MARK}{_digest(text)}\n'


def _digest(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def is_edited(file: Path) -> bool:
    """Return whether a config was changed after it was written."""
    text, _, mark = file.read_text(encoding='utf-8').rpartition(_MARK)
    return _digest(text) != mark.strip()


def _data_section(data: Data) -> str:
    palette = data.palette or [
        (120, 120, 120) if name == 'background' else color
        for name, color in zip(data.classes, make_palette(len(data.classes)))
    ]
    return (
        f'data_root = {str(data.root)!r}\n'
        'metainfo = dict(\n'
        f'    classes={_listed(data.classes, "(", ")")},\n'
        f'    palette={_listed(palette, "[", "]")},\n'
        ')'
    )


def _model_section(entries: dict[str, Any], reasons: list[str]) -> str:
    return '\n'.join(_comment(reason) for reason in reasons) + f'\nmodel = {_call(entries)}'


def _backbone(choices: Choices) -> tuple[dict[str, Any], str]:
    if choices.pretrained:
        weights = dict(type='Pretrained', checkpoint=choices.pretrained)
        return dict(norm_eval=True, init_cfg=weights), 'ImageNet weights keep their BatchNorm statistics.'
    return dict(norm_eval=False), 'Random weights have no BatchNorm statistics to keep, so these are trained.'


def _optimizer(choices: Choices, recipe: Recipe) -> str:
    reason = (
        f'AdamW with a learning rate for {recipe.batch} images a step; gradients are clipped, since few images a step '
    )
    reason += 'make some of them large.'
    optimizer: dict[str, Any] = dict(lr=recipe.learning_rate, weight_decay=0.05)
    if recipe.on_cpu:
        reason += ' A fused step of the optimizer takes less time on a CPU.'
        optimizer['fused'] = True
    wrapper: dict[str, Any] = dict(optimizer=optimizer, clip_grad=dict(max_norm=10))
    if choices.pretrained:
        reason += ' The pretrained backbone learns at a quarter of it.'
        wrapper['paramwise_cfg'] = dict(custom_keys=dict(backbone=dict(lr_mult=0.25)))
    return f'{_comment(reason)}\noptim_wrapper = {_call(wrapper)}'


def _warmup(iterations: int) -> int:
    return max(2, min(500, iterations // 20))


def _schedule(recipe: Recipe, iterations: int, length: str, decay: str) -> str:
    warmup = _warmup(iterations)
    return f"""\
{_comment('Schedule: ' + recipe.why['schedule'] + f' The first {warmup} of {iterations} iterations warm up.')}
train_cfg = dict({length})
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end={warmup}),
    dict({decay}),
]
auto_scale_lr = dict(base_batch_size={recipe.batch})"""


def _hooks(data: Data, recipe: Recipe, per_epoch: bool, interval: int, out: Path) -> str:
    metric, evaluations = METRICS[data.task], recipe.evaluations
    # Detectors that start from random weights may find nothing in the first evaluations.
    patience = max(5, round(0.7 * evaluations))
    checkpoint = dict(interval=interval) | (dict(save_best=metric) if data.task == 'instances' else {})
    drawn = max(1, data.counts['val'] // 4)
    hooks = dict(
        logger=dict(interval=max(1, min(50, recipe.iterations() // (5 * evaluations)))),
        checkpoint=checkpoint,
        visualization=dict(interval=drawn) | (dict(score_thr=0.3) if per_epoch else {}),
    )
    delta = 0.2 if data.task == 'semantic' else 0.002
    return '\n'.join(
        [
            _comment(
                f'The checkpoint with the best {metric} is kept, training stops early if {patience} evaluations bring '
                'nothing better, and report.html is written to the work dir. Runs resume exactly, and unreadable '
                'training images are skipped and named, as in all configs of mmcasvit.'
                + recipe.on_cpu
                * ' With channels_last maps, convolutions take less time on a CPU.'
            ),
            f'default_hooks = {_call(hooks)}',
            'custom_hooks = [',
            '    *_base_.custom_hooks,',
            f"    dict(type='EarlyStoppingHook', monitor={metric!r}, rule='greater', min_delta={delta}, "
            f'patience={patience}),',
            "    dict(type='mmcasvit.ReportHook'),",
            *recipe.on_cpu * ["    dict(type='mmcasvit.ChannelsLastHook'),"],
            ']',
            f'work_dir = {str(out / "train")!r}',
        ]
    )


# ---- Detectors


def _detector(data: Data, choices: Choices, recipe: Recipe, out: Path) -> list[str]:
    masks = data.task == 'instances'
    why = recipe.why
    load = "dict(type='LoadAnnotations', with_bbox=True" + (', with_mask=True)' if masks else ')')
    side = recipe.size
    pipelines = f"""\
{_comment('Image size: ' + why['size'])}
scale = ({side}, {side})
{_AUGMENTATION}
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=[dict(type='LoadImageFromFile'), {load}]),
    dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=scale{', recompute_bbox=True' if masks else ''}, allow_negative_crop=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1), keep_empty=False),  # a crop can leave a box without an area
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    {load},
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[[dict(type='Resize', scale=scale, keep_ratio=True)], *_base_.tta_pipeline[1].transforms[1:]],
    ),
]"""
    epochs, times = epochs_and_times(data.counts['train'], recipe)
    interval = max(1, round(epochs / recipe.evaluations))
    train = _dataset(data, 'train', dict(filter_cfg=dict(filter_empty_gt=False, min_size=32)), 'train_pipeline')
    reasons = [f'Batch: {why["batch"]}']
    if times > 1:
        reasons.append(f'An epoch repeats the images {times} times, so that evaluations and checkpoints stay rare.')
        train = dict(_delete_=True, type='RepeatDataset', times=times, dataset=dict(type='CocoDataset', **train))
    loaders = [_comment(reason) for reason in reasons]
    loaders.append(
        'train_dataloader = ' + _call(dict(batch_size=recipe.batch, num_workers=recipe.workers, dataset=train))
    )
    loaders.append(
        'val_dataloader = '
        + _call(
            dict(
                batch_size=recipe.batch, num_workers=recipe.workers, dataset=_dataset(data, 'val', {}, 'test_pipeline')
            )
        )
    )
    evaluator = f'val_evaluator = dict(ann_file={_annotations(data, "val")}' + (
        ", metric=['bbox', 'segm'])" if masks else ')'
    )
    if masks or choices.model != 'mask-rcnn':
        loaders.append(evaluator)
    if 'test' in data.splits:
        loaders.append(
            'test_dataloader = dict(val_dataloader, dataset='
            + _call(dict(_dataset(data, 'test', {}, 'test_pipeline')))
            + ')'
        )
        loaders.append(f'test_evaluator = dict(val_evaluator, ann_file={_annotations(data, "test")})')
    else:
        loaders += ['test_dataloader = val_dataloader', 'test_evaluator = val_evaluator']
    iterations = epochs * math.ceil(data.counts['train'] * times / recipe.batch)
    schedule = _schedule(
        recipe,
        iterations,
        f'max_epochs={epochs}, val_interval={interval}',
        f"type='CosineAnnealingLR', by_epoch=True, begin=0, end={epochs}, T_max={epochs}, convert_to_iter_based=True",
    )
    model = dict(retinanet=_retinanet, rtmdet=_rtmdet, **{'mask-rcnn': _mask_rcnn})[choices.model](
        data, choices, recipe
    )
    return [
        pipelines,
        model,
        '\n'.join(loaders),
        schedule,
        _optimizer(choices, recipe),
        _hooks(data, recipe, True, interval, out),
    ]


def epochs_and_times(images: int, recipe: Recipe) -> tuple[int, int]:
    """Return the number of epochs, and how often each of them repeats the images."""
    times = max(1, round(recipe.samples / recipe.evaluations / images))
    return max(1, round(recipe.samples / (times * images))), times


def _annotations(data: Data, split: str) -> _Code:
    return _Code(repr(str(data.root / data.splits[split]['ann_file'])))


def _dataset(data: Data, split: str, more: dict, pipeline: str) -> dict[str, Any]:
    return dict(
        data_root=_Code('data_root'), metainfo=_Code('metainfo'), **data.splits[split], **more, pipeline=_Code(pipeline)
    )


def _norm(recipe: Recipe) -> dict[str, Any]:
    return dict(type='GN', num_groups=16) if 'norm' in recipe.why else dict(type='BN')


def _common_reasons(recipe: Recipe, backbone: str) -> list[str]:
    return [text for text in (backbone, recipe.why.get('norm'), recipe.why.get('width')) if text]


def _retinanet(data: Data, choices: Choices, recipe: Recipe) -> str:
    backbone, reason = _backbone(choices)
    reasons = _common_reasons(recipe, reason)
    strides = [8, 16, 32, 64, 128][: recipe.levels]
    neck: dict[str, Any] = dict(num_outs=recipe.levels)
    head: dict[str, Any] = dict(num_classes=len(data.classes))
    if recipe.width:
        neck |= dict(out_channels=recipe.width)
        head |= dict(in_channels=recipe.width, feat_channels=recipe.width, stacked_convs=2)
    if not choices.pretrained:
        neck['norm_cfg'] = _norm(recipe)
        head['norm_cfg'] = dict(type='GN', num_groups=16)
    octave = max(2, min(4, recipe.scale / 2))
    head['anchor_generator'] = dict(octave_base_scale=octave, strides=strides)
    reasons.append(
        f'Anchors: {recipe.why["objects"]} The smallest anchor is {8 * octave:g} pixels wide, the largest '
        f'{strides[-1] * octave * 2 ** (2 / 3):.0f}.'
    )
    if 'small' in recipe.why:
        reasons.append(recipe.why['small'])
    return _model_section(dict(backbone=backbone, neck=neck, bbox_head=head), reasons)


def _mask_rcnn(data: Data, choices: Choices, recipe: Recipe) -> str:
    backbone, reason = _backbone(choices)
    reasons = _common_reasons(recipe, reason)
    width, classes = recipe.width, len(data.classes)
    neck: dict[str, Any] = {}
    rpn: dict[str, Any] = dict(anchor_generator=dict(scales=[recipe.scale]))
    box: dict[str, Any] = dict(num_classes=classes)
    mask: dict[str, Any] = dict(num_classes=classes)
    roi_head: dict[str, Any] = dict(bbox_head=box, mask_head=mask)
    if not choices.pretrained:
        neck['norm_cfg'] = _norm(recipe)
    entries: dict[str, Any] = dict(backbone=backbone)
    if width:
        neck['out_channels'] = width
        rpn |= dict(in_channels=width, feat_channels=width)
        box |= dict(in_channels=width, fc_out_channels=4 * width)
        mask |= dict(in_channels=width, conv_out_channels=width, num_convs=2)
        roi_head |= {name: dict(out_channels=width) for name in ('bbox_roi_extractor', 'mask_roi_extractor')}
        reasons.append('Fewer proposals than for COCO, since these images hold fewer objects.')
        entries['train_cfg'] = dict(rpn_proposal=dict(nms_pre=500, max_per_img=200), rcnn=dict(sampler=dict(num=64)))
        entries['test_cfg'] = dict(rpn=dict(nms_pre=500, max_per_img=200))
    reasons.append(f'Anchors: {recipe.why["objects"]} The smallest anchor is {4 * recipe.scale:g} pixels wide.')
    if 'small' in recipe.why:
        reasons.append(recipe.why['small'])
    if neck:
        entries['neck'] = neck
    entries |= dict(rpn_head=rpn, roi_head=roi_head)
    return _model_section(entries, reasons)


def _rtmdet(data: Data, choices: Choices, recipe: Recipe) -> str:
    backbone, reason = _backbone(choices)
    backbone['arch'] = choices.arch
    if choices.arch in ('m', 't'):
        backbone['drop_path_rate'] = 0.1  # as in the published recipes
    width = recipe.width or 128
    norm = dict(_norm(recipe), num_groups=2) if 'norm' in recipe.why else _norm(recipe)  # 2 divides all channels
    head: dict[str, Any] = dict(num_classes=len(data.classes), in_channels=width, feat_channels=width, norm_cfg=norm)
    entries: dict[str, Any] = {}
    if data.task == 'instances':
        head |= dict(
            type='RTMDetInsSepBNHead', loss_mask=dict(type='DiceLoss', loss_weight=2.0, eps=5e-6, reduction='mean')
        )
        entries['data_preprocessor'] = dict(pad_mask=True)  # its masks are compared at the padded size
        entries['test_cfg'] = dict(score_thr=0.05, max_per_img=100, mask_thr_binary=0.5)
    neck = dict(in_channels=list(ARCHS[choices.arch]['channels'][1:]), out_channels=width, norm_cfg=norm)
    reasons = [*_common_reasons(recipe, reason), f'{recipe.why["objects"]} RTMDet has no anchors to fit to them.']
    return _model_section(dict(backbone=backbone, neck=neck, bbox_head=head, **entries), reasons)


# ---- Segmentors


def _segmentor(data: Data, choices: Choices, recipe: Recipe, out: Path) -> list[str]:
    why, side = recipe.why, recipe.size
    zero = 'True' if data.reduce_zero else 'False'
    load = f"dict(type='LoadAnnotations', reduce_zero_label={zero})"
    meaning = '0 is not labeled, and 1 is the first class' if data.reduce_zero else '0 is the first class'
    pipelines = f"""\
{_comment('Image size: ' + why['size'])}
scale = ({side}, {side})
crop_size = {recipe.crop}  # height and width, the same for all images of a step
{_comment(f'In the masks, {meaning}; {255} is not labeled.')}
{_AUGMENTATION}
train_pipeline = [
    dict(type='mmcasvit.SkipUnreadable', transforms=[dict(type='LoadImageFromFile'), {load}]),
    dict(type='RandomResize', scale=scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.9),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    {load},  # after the resizes: labels keep their size
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    _base_.tta_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(side, side), keep_ratio=True) for side in {_whole_sides(side)}],
            *_base_.tta_pipeline[1].transforms[1:3],
            [{load}],
            [dict(type='PackSegInputs')],
        ],
    ),
]"""
    loaders = [
        _comment(f'Batch: {why["batch"]}'),
        f"mine = dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo, reduce_zero_label={zero})",
    ]
    workers = dict(num_workers=recipe.workers)
    for name, split, pipeline in (('train', 'train', 'train_pipeline'), ('val', 'val', 'test_pipeline')):
        settings = _call(dict(**data.splits[split], pipeline=_Code(pipeline)), '    ')
        batch = dict(batch_size=recipe.batch) if split == 'train' else {}
        loaders.append(
            f'{name}_dataloader = '
            + _call(dict(**batch, **workers, dataset=_Code('dict(mine, ' + settings.removeprefix('dict(').lstrip())))
        )
    if 'test' in data.splits:
        settings = _call(dict(**data.splits['test'], pipeline=_Code('test_pipeline')), '    ')
        loaders.append(
            'test_dataloader = dict(val_dataloader, dataset=dict(mine, ' + settings.removeprefix('dict(').lstrip() + ')'
        )
    else:
        loaders.append('test_dataloader = val_dataloader')
    iterations = recipe.iterations()
    interval = max(1, iterations // recipe.evaluations)
    schedule = _schedule(
        recipe,
        iterations,
        f'max_iters={iterations}, val_interval={interval}',
        f"type='PolyLR', power=0.9, begin={_warmup(iterations)}, end={iterations}, eta_min=0.0, by_epoch=False",
    )
    return [
        pipelines,
        _segmentor_model(data, choices, recipe),
        '\n'.join(loaders),
        schedule,
        _optimizer(choices, recipe),
        _hooks(data, recipe, False, interval, out),
    ]


def _whole_sides(side: int) -> tuple[int, ...]:
    return tuple(round(side * part / 128) * 32 for part in (3, 4, 5))


def _segmentor_model(data: Data, choices: Choices, recipe: Recipe) -> str:
    backbone, reason = _backbone(choices)
    reasons = _common_reasons(recipe, reason)
    width, classes = recipe.width, len(data.classes)
    head: dict[str, Any] = dict(num_classes=classes)
    entries: dict[str, Any] = dict(data_preprocessor=dict(size=_Code('crop_size')), backbone=backbone)
    norm = {} if 'norm' not in recipe.why else dict(norm_cfg=dict(_delete_=True, **_norm(recipe)))
    if width:
        head['channels'] = width
    head |= norm
    if choices.model == 'semantic-fpn':
        neck: dict[str, Any] = {}
        if width:
            neck['out_channels'] = width
            head['in_channels'] = [width] * 4
        if not choices.pretrained:
            neck['norm_cfg'] = _norm(recipe)
        if neck:
            entries['neck'] = neck
        entries['decode_head'] = head
    else:
        auxiliary: dict[str, Any] = dict(num_classes=classes, **norm)
        if width:
            auxiliary['channels'] = width // 2
        entries |= dict(decode_head=head, auxiliary_head=auxiliary)
    return _model_section(entries, reasons)
