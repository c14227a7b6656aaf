"""Ranges of activations: against a second computation, and what fp16 and int8 do to them."""

import json

import numpy as np
import pytest
import torch
from helpers.tiny_models import tiny_config, tiny_model
from torch import nn

from mmcasvit import deploy
from mmcasvit.visualization.predictions import batch_of
from mmcasvit.visualization.ranges import measure_ranges, part_of, summarize


@pytest.fixture(scope='module')
def images(shapes):
    return sorted((shapes / 'coco/val2017').glob('*.jpg'))


class OneConv(nn.Module):
    """Model of one convolution with weights 1 and 1e6, and no more."""

    def __init__(self, like):
        super().__init__()
        self.data_preprocessor, self.cfg = like.data_preprocessor, like.cfg
        self.decode_head = nn.Conv2d(3, 2, 1, bias=False)
        nn.init.ones_(self.decode_head.weight[:1])
        nn.init.constant_(self.decode_head.weight[1:], 1e6)

    def forward(self, inputs, data_samples, mode):
        return self.decode_head(inputs)


def test_the_numbers_are_those_of_their_definitions(images):
    with torch.no_grad():
        model = OneConv(tiny_model('semantic_fpn'))
        outputs = [model(**batch_of(model, image), mode='predict').double() for image in images]
    rows = measure_ranges(model, images)
    assert [(row['layer'], row['operator']) for row in rows] == [
        ('decode_head', 'input'),
        ('decode_head', 'convolution'),
    ]
    row, x = rows[1], torch.stack(outputs)
    assert row['lowest'] == pytest.approx(x.min())
    assert row['highest'] == pytest.approx(x.max())
    over = x.abs() > 65504
    assert row['fp16_overflow'] == pytest.approx(over.double().mean())
    assert 0.3 < row['fp16_overflow'] <= 0.5
    low, high = x.amin((1, 2, 3, 4)).mean(), x.amax((1, 2, 3, 4)).mean()
    kept = x[~over]
    quantized = low + ((kept - low) / ((high - low) / 255)).round().clamp(0, 255) * (high - low) / 255
    error = (quantized - kept).square().mean().sqrt() / kept.std(correction=0)
    assert row['int8_error'] == pytest.approx(float(error), rel=1e-3)


def test_int8_clips_what_other_images_do_not_reach(images):
    with torch.no_grad():
        model = OneConv(tiny_model('semantic_fpn'))
        model.decode_head.weight.fill_(1)
        highest = [float(model(**batch_of(model, image), mode='predict').max()) for image in images]
    row = measure_ranges(model, images)[1]
    assert row['fp16_overflow'] == 0
    assert (row['int8_clipped'] > 0) == (max(highest) > np.mean(highest) * 1.01)
    assert row['int8_clipped'] < 0.1
    alone = measure_ranges(model, images[:1])[1]
    assert alone['int8_clipped'] == 0
    assert 0 < alone['int8_error'] < 0.02 < row['int8_error'] < 0.5


@pytest.mark.parametrize('name', ['semantic_fpn', 'mask_rcnn'])
def test_the_operators_of_all_parts_are_found(name, images):
    model = deploy(tiny_model(name))
    rows = measure_ranges(model, images[:2])
    parts = {part_of(row['layer']) for row in rows}
    wanted = {f'backbone.stages.{i}' for i in range(4)} | {f'backbone.downsamples.{i}' for i in range(4)} | {'neck'}
    wanted |= {'decode_head'} if name == 'semantic_fpn' else {'rpn_head', 'roi_head.bbox_roi_extractor'}
    assert wanted <= parts
    assert len({(row['layer'], row['operator']) for row in rows}) == len(rows) > 60
    assert all(np.isfinite(list(row.values())[2:]).all() and row['lowest'] <= row['highest'] for row in rows)
    text = summarize(rows)
    assert 'nothing overflows in fp16' in text
    assert f'| backbone.stages.2 | {sum("stages.2" in row["layer"] for row in rows)} |' in text


def test_the_tool_prints_a_table_and_writes_figure_and_numbers(run_main, shapes, tmp_path):
    tiny_config('semantic_fpn').dump(tmp_path / 'tiny.py')
    model = tiny_model('semantic_fpn')
    model.backbone.norm6.weight.data *= 1e6  # the FPN is to overflow
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    folder = shapes / 'coco/val2017'
    arguments = ['--ranges', '--count', 2, '--device', 'cpu', '--out', 'new/found.png']
    status, printed = run_main('visualize', folder, 'tiny.py', 'tiny.pth', *arguments)
    assert status == 0
    assert '% beyond fp16' in printed.out
    found = json.loads((tmp_path / 'new/found.json').read_text())
    assert found['images'] == 2
    assert any(row['fp16_overflow'] > 0 and row['layer'].startswith('neck') for row in found['rows'])
    assert f'new/found.png and new/found.json: {len(found["rows"])} operators, 2 images' in printed.out
    assert (tmp_path / 'new/found.png').stat().st_size > 20_000
