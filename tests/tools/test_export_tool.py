"""tools/export.py exports, compares, and refuses arguments that cannot work."""

import sys

import pytest
import torch
from helpers.repository import load_tool, write_tiny_config
from helpers.tiny_models import CHANNELS, TWINS, tiny

from mmcasvit.apis.config import config_path
from mmcasvit.export.formats import FORMATS, load_exported
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
    done = run_tool(
        'export.py', *common, '--force', '--precision', 'bf16', '--tolerance', 1e-6, cwd=checkpoint, expect=1
    )
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
    assert 'was resized' not in done.stdout + done.stderr
    done = run_tool(
        'export.py', *common[:2], '--format', 'torchscript', '--out', 'default.pt', '--images',
        shapes / 'coco/val2017', '--count', 1, cwd=checkpoint,
    )  # fmt: skip
    assert load_exported(checkpoint / 'default.pt').signature.size == (64, 96)


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--format', 'coreml', '--dynamic', 'size'], 'fixed batch and size'),
        (['--format', 'onnx', '--precision', 'bf16'], 'not in bf16'),
        (['--format', 'litert', '--dynamic', 'size'], 'fixed batch and size'),
        (['--format', 'litert', '--out', 'x.param'], r'end in \.tflite'),
        (['--format', 'ncnn', '--dynamic', 'batch'], 'ncnn files have a fixed batch'),
        (['--format', 'ncnn', '--preprocess', 'rgb'], 'ncnn files take normalized images'),
        (['--format', 'ncnn', '--precision', 'int8'], 'not in int8'),
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
    if {'coreml', 'onnx', 'openvino', 'litert', 'ncnn'} & {*arguments}:
        monkeypatch.setattr(type(FORMATS['onnx']), 'missing', lambda self: [])
    monkeypatch.setattr(sys, 'argv', ['export.py', 'config.py', 'x.pth', *arguments])
    with pytest.raises(UsageError, match=words):
        check_all(tool)


def check_all(tool):
    args = tool.parse_args()
    args.size = args.size or (512, 512)
    tool.check_out(args)
    return tool.check_arguments(args, 'segmentor')


def checked(monkeypatch, *arguments):
    tool = load_tool('export')
    monkeypatch.setattr(sys, 'argv', ['export.py', 'config.py', 'x.pth', '--format', 'pt2', *map(str, arguments)])
    return check_all(tool)


def test_a_file_has_the_name_of_its_precision(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tool, names = load_tool('export'), []
    for precision in ('fp32', 'bf16'):
        options = ['--format', 'pt2', '--precision', precision]
        monkeypatch.setattr(sys, 'argv', ['export.py', 'configs/config.py', 'x.pth', *options])
        args = tool.parse_args()
        tool.check_out(args)
        names.append(str(args.out))
    assert names == ['config.pt2', 'config-bf16.pt2']


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--size', 10**6, 10**6], r'at most 67108864 pixels, such as 8192 8192, got 1000000 1000000'),
        (['--size', 32, 10**30], 'at most 67108864 pixels'),
        (['--size', -64, -64], 'at least 32 32'),
        (['--count', 10**9], '--count and --calibration must be at least 1 and at most 10000'),
        (['--count', -1], '--count and --calibration'),
        (['--calibration', 10**9], '--count and --calibration'),
        (['--count', 5000, '--size', 2048, 2048], 'choose a smaller --count'),
        (['--threads', 10**9], '--threads must be at least 1 and at most 1024'),
        (['--threads', -1], '--threads must be'),
        (['--tolerance', 'nan'], '--tolerance must be a number of at least 0, got nan'),
        (['--tolerance', 'inf'], '--tolerance must be'),
        (['--tolerance', '-1'], '--tolerance must be'),
    ],
    ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '',
)
def test_numbers_that_cannot_be_meant_are_refused(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words) as caught:
        checked(monkeypatch, *arguments)
    assert '\n' not in str(caught.value)
    assert checked(monkeypatch, '--size', 8192, 8192).size == (8192, 8192)


def test_a_file_that_exists_is_overwritten_by_force_only(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for out in ([], ['--out', 'other.pt2']):
        (tmp_path / (out[1] if out else 'config.pt2')).write_bytes(b'precious')
        with pytest.raises(
            UsageError, match=r'\.pt2 exists\. Choose another name by --out, or overwrite it by --force'
        ):
            checked(monkeypatch, *out)
        checked(monkeypatch, *out, '--force')
    (tmp_path / 'link.pt2').symlink_to('nowhere')
    with pytest.raises(UsageError, match='exists'):
        checked(monkeypatch, '--out', 'link.pt2')
    (tmp_path / 'folder.pt2').mkdir()
    with pytest.raises(UsageError, match='is a folder'):
        checked(monkeypatch, '--out', 'folder.pt2', '--force')


@pytest.mark.slow
def test_nothing_is_lost_when_the_tool_is_told_to_write_over_a_file(run_tool, checkpoint, tmp_path):
    out = tmp_path / 'model.pt2'
    out.write_bytes(b'precious')
    arguments = ['tiny.py', 'tiny.pth', '--size', 64, 96, '--count', 1, '--format', 'pt2', '--out', out]
    done = run_tool('export.py', *arguments, cwd=checkpoint, expect=2)
    assert done.stderr.splitlines()[-1].startswith(f'error: {out} exists.')
    assert out.read_bytes() == b'precious'
    run_tool('export.py', *arguments, '--force', cwd=checkpoint)
    assert [path.name for path in tmp_path.iterdir()] == ['model.pt2']
    assert out.stat().st_size > 10_000
