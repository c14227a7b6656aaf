"""Arguments and output of tools/benchmark.py on tiny models; nothing depends on how long they take."""

import csv
import json
import sys

import pytest
import torch
from helpers.repository import ROOT, load_tool, write_tiny_config

from mmcasvit.ops.install import COMPILED, operators_in_use


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark')


@pytest.fixture
def run(tool, monkeypatch, capsys):
    """Run the command line in this process, and return exit status, stdout and stderr."""

    def run_tool(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, args)])
        status = 0
        try:
            tool.main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run_tool


def test_compare_writes_its_table_and_files(run, tmp_path):
    options = '--forms eager channels_last --rounds 2 --warmup 1 --least-ms 0 --threads 1 --no-memory'.split()
    for flag, name in (('--csv', 'a.csv'), ('--json', 'a.json'), ('--plot', 'a.png'), ('--plot-accuracy', 'b.png')):
        options += [flag, tmp_path / name]
    status, out, _ = run('compare', 'xs', 'xs:norm_eval=True', '--sizes', '64x64', *options)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith('infer, fp32, cpu, 1 thread, batch 1, 64x64 pixels; medians of 2 interleaved rounds on ')
    assert 'GMAC/s' in lines[0]
    assert lines[2].startswith('| model | form | params, M | GMACs | ms | quartiles | images/s | speed-up over eager |')
    assert [line.split(' | ')[:2] for line in lines[4:8]] == [
        [f'| {model}', form] for model in ('xs', 'xs:norm_eval=True') for form in ('eager', 'channels_last')
    ]
    assert lines[-1].startswith('Outputs differ from those of the eager fp32 model by ')
    assert len(json.loads((tmp_path / 'a.json').read_text())['rows'][0]['samples']) == 2
    assert (tmp_path / 'a.csv').read_text().count('\n') == 5
    for name in ('a.png', 'b.png'):
        assert (tmp_path / name).read_bytes().startswith(b'\x89PNG')


def test_scaling_fits_exponents(run, tmp_path):
    options = '--limit-s 0.5 --rounds 1 --warmup 1 --least-ms 0 --threads 1 --cpu-time --no-memory'.split()
    options += ['--json', tmp_path / 'a.json', '--plot', tmp_path / 'a.png']
    status, out, _ = run('scaling', '--sides', 64, 128, 2048, *options)
    assert status == 0
    assert 'left out: xs-softmax infer eager fp32 cpu threads=1 batch=1 2048x2048: its arithmetic would take' in out
    exponents = json.loads((tmp_path / 'a.json').read_text())['exponents']
    assert exponents['multiply-adds, G']['xs'] == pytest.approx(1, abs=0.01)
    assert exponents['multiply-adds, G']['xs-softmax'] > 1.5
    assert set(exponents) == {'multiply-adds, G', 'time, ms'}
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'args, words',
    [
        (['compare', 'xl'], "unknown model 'xl'. Valid: a config file, xs, "),
        (['compare', 'xs', 'resnet-18:depth=3'], 'arguments after a colon are those of CASViT, and resnet-18 is not'),
        (['compare', 'xs:depth=3'], "unexpected keyword argument 'depth'"),
        (['compare', 'xs:with_cp'], "expected argument=value after the colon, got 'with_cp'"),
        (['compare', 'xs', '--forms', 'folded'], "unknown form 'folded'"),
        (['compare', 'none.py'], 'config not found'),
        (['pipeline', 'none.py', '--images', '.'], 'config not found'),
        (
            ['pipeline', 'semantic-fpn_casvit-xs_300i_shapes', '--images', '.', '--deploy', '--exported', 'a.onnx'],
            'leave out --deploy',
        ),
        (['pipeline', 'casvit-xs_8xb128-300e_in1k-224', '--images', '.'], 'must be a config of mmdet or mmseg'),
        (['pipeline', 'semantic-fpn_casvit-xs_300i_shapes', '--images', 'none'], 'image or folder not found'),
        (['compare', 'xs', '--baseline', 'form=deploy'], 'no such variant'),
        (['compare', 'xs', '--precisions', 'fp16'], 'fp16 is for GPUs'),
        (['compare', 'l', '--plot-accuracy', 'a.png'], 'no figures are known'),
        (['compare', 'xs', '--csv', 'none/a.csv'], '--csv: no such folder'),
        (['scaling', '--sides', '64'], 'at least two different sides'),
        (['scaling', '--sides', '64', '96', '--limit-s', '0'], 'fewer than two sizes'),
        (['operators', 'xs', '--form', 'compiled'], 'operators can be told apart only in'),
        (['compare', 'xs', '--cpu-time', '--threads', '2'], 'use it with --threads 1'),
        (['step', 'none.py'], 'config not found'),
        (['fast', 'none.py'], 'config not found'),
        (['fast', 'a.py', 'b.py', 'c.py', '--batches', 1, 2], '--batches: give one value, or one for each of the 3'),
        pytest.param(
            ['mmcv-ops', 'none.py'],
            'config not found' if operators_in_use() == COMPILED else 'make setup OPS=compiled',
            id='mmcv-ops',
        ),
    ],
)
def test_wrong_input_is_one_clear_line(run, args, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(*args)
    assert status == 2
    assert out == ''
    last = [line for line in err.splitlines() if not line.startswith('building')]
    assert last[0].startswith('error: ')
    assert words in last[0]
    assert len(last) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_missing_gpu_is_reported(run):
    assert 'no GPU is visible' in run('compare', 'xs', '--devices', 'cuda')[2]


def test_invalid_flag_values_are_refused(run):
    for args in (['--sizes', '512'], ['--rounds', 0], ['--modes', 'fly']):
        status, _, err = run('compare', 'xs', *args)
        assert status == 2
        assert 'error: argument' in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    'base, parts',
    [
        (
            'detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py',
            [
                'backbone',
                'neck',
                'rpn_head',
                'roi_head',
                'backward: heads and losses',
                'backward: neck',
                'backward: backbone',
            ],
        ),
        (
            'segmentation/semantic-fpn_casvit-xs_300i_shapes.py',
            ['backbone', 'neck', 'decode_head', 'backward: heads and losses', 'backward: neck', 'backward: backbone'],
        ),
    ],
    ids=['epochs', 'iterations'],
)
def test_a_training_step_is_measured_by_parts(run_tool, tmp_path, shapes, base, parts):
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs' / base)
    options = [
        '--cfg-options',
        f'data_root={shapes / ("coco/" if base.startswith("detection") else "ade")}',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False',
    ]
    done = run_tool(
        'benchmark.py', 'step', config, '--steps', 2, '--warmup', 1, '--csv', 'a.csv', *options, cwd=tmp_path
    )
    assert done.stdout.startswith('tiny.py: 2 steps of 2 images, 0 workers, 1 thread, on ')
    with open(tmp_path / 'a.csv') as file:
        rows = {row['part']: float(row['ms']) for row in csv.DictReader(file)}
    assert {'data loading', 'preprocessing', 'optimizer', 'hooks and logging', *parts} <= set(rows)
    assert rows.pop('whole step') == pytest.approx(sum(rows.values()))
    assert all(rows[part] > 0 for part in parts)
    # If the training is too short, the tool fails instead of printing a short table.
    length = 'train_cfg.max_epochs=1' if base.startswith('detection') else 'train_cfg.max_iters=4'
    done = run_tool('benchmark.py', 'step', config, '--steps', 9, *options, length, cwd=tmp_path, expect=2)
    assert 'error: tiny.py: the training ended after 4 steps, 12 were wanted.' in done.stderr
    assert done.stdout == ''


@pytest.mark.slow
def test_fast_steps_are_measured_next_to_plain_ones(run_tool, tmp_path):
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py')
    options = ['--sizes', '128x192', '--batches', 1, '--rounds', 2, '--threads', 1, '--csv', 'a.csv']
    done = run_tool('benchmark.py', 'fast', config, *options, cwd=tmp_path)
    assert done.stdout.startswith('2 rounds in alternating order, 1 thread, on ')
    assert 'fast: channels_last (CPU: ' in done.stdout
    with open(tmp_path / 'a.csv') as file:
        plain, fast = csv.DictReader(file)
    assert (plain['form'], fast['form']) == ('plain', 'fast')
    assert float(plain['largest difference of losses']) == 0
    assert float(fast['largest difference of losses']) < 1e-3
    assert plain['speed-up'] == '1.00 (1.00 to 1.00)'


@pytest.mark.slow
def test_losses_start_alike_in_every_precision_and_form(run_tool, tmp_path, shapes):
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py')
    options = ['--cfg-options', f'data_root={shapes}/coco/', 'train_dataloader.batch_size=2']
    options += '--variants fp32 channels_last bf16 fp16 --steps 3 --csv a.csv --plot a.png'.split()
    done = run_tool('benchmark.py', 'losses', config, *options, cwd=tmp_path)
    assert done.stdout.startswith('tiny, mean losses; 3 steps on ')
    with open(tmp_path / 'a.csv') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    first = {row['variant']: float(row['loss']) for row in rows if row['step'] == '1'}
    assert first['channels_last'] == pytest.approx(first['fp32'], rel=1e-4)
    assert first['fp16'] == pytest.approx(first['fp32'], rel=0.01)
    assert first['bf16'] == pytest.approx(first['fp32'], rel=0.05)
    assert first['bf16'] != first['fp32']
    assert (tmp_path / 'a.png').stat().st_size > 5000
    assert sorted(file.name for file in tmp_path.iterdir()) == ['a.csv', 'a.png', 'tiny.py']
