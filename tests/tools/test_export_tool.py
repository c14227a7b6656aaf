"""tools/export.py exports, compares, and refuses arguments that cannot work."""

import sys

import pytest
import torch
from helpers.repository import load_tool, write_tiny_config
from helpers.tiny_models import CHANNELS, TWINS, tiny

from mmcasvit.apis.config import config_path
from mmcasvit.export.formats import FORMATS
from mmcasvit.utils.errors import UsageError


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoint')
    write_tiny_config(folder / 'tiny.py', config_path(TWINS['semantic_fpn']), CHANNELS)
    torch.save(dict(state_dict=tiny('semantic_fpn').state_dict()), folder / 'tiny.pth')
    return folder


@pytest.mark.slow
def test_the_tool_exports_compares_and_exits_with_one_if_it_differs(run_tool, checkpoint, shapes):
    common = ['tiny.py', 'tiny.pth', '--size', 64, 96, '--count', 2, '--format', 'torchscript']
    done = run_tool('export.py', *common, '--images', shapes / 'coco/val2017', cwd=checkpoint)
    assert '| tiny.pt | fp32 |' in done.stdout
    done = run_tool('export.py', *common, '--precision', 'bf16', '--tolerance', 1e-6, cwd=checkpoint, expect=1)
    assert 'differs from PyTorch by' in done.stderr.splitlines()[-1]
    done = run_tool(
        'test.py',
        'tiny.py',
        'tiny.pth',
        '--exported',
        'tiny.pt',
        '--work-dir',
        'test',
        '--cfg-options',
        f'data_root={shapes}/ade',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        cwd=checkpoint,
    )
    assert 'mIoU' in done.stdout + done.stderr


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--format', 'coreml', '--dynamic', 'size'], 'fixed batch and size'),
        (['--format', 'onnx', '--precision', 'bf16'], 'not in bf16'),
        (['--format', 'pt2', '--precision', 'int8'], 'not in int8'),
        (['--format', 'openvino', '--precision', 'int8'], 'int8 needs'),
        (['--format', 'pt2', '--what', 'backbone', '--argmax'], 'for segmentors'),
        (['--format', 'pt2', '--resize'], '--resize needs --preprocess'),
        (['--format', 'pt2', '--out', 'x.onnx'], r'end in \.pt2'),
        (['--format', 'pt2', '--size', '8', '8'], 'at least 32'),
        (['--format', 'pt2', '--out', 'nowhere/x.pt2'], 'no folder'),
        (['--format', 'pt2', '--threads', '0'], '--threads must be at least 1'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_arguments_that_cannot_work_are_refused(arguments, words, monkeypatch):
    tool = load_tool('export')
    if {'coreml', 'onnx', 'openvino'} & {*arguments}:
        monkeypatch.setattr(type(FORMATS['onnx']), 'missing', lambda self: [])
    monkeypatch.setattr(sys, 'argv', ['export.py', 'config.py', 'x.pth', *arguments])
    with pytest.raises(UsageError, match=words):
        tool.check_arguments(tool.parse_args(), 'segmentor')
