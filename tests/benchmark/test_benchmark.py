"""Structure and arithmetic of the benchmark on given numbers and tiny models; never how long anything takes."""

import csv
import importlib.util
import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers.repository import ROOT, load_tool, write_tiny_config
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.benchmark import comparison as comparing
from mmcasvit.benchmark import forms, models
from mmcasvit.benchmark import operator_times as operators
from mmcasvit.benchmark import plots as reporting
from mmcasvit.benchmark import steps as stepping
from mmcasvit.benchmark.comparison import copy_key, matmul_key
from mmcasvit.benchmark.counts import Cost, count, on_meta
from mmcasvit.benchmark.models import CASVITS, PEERS, build_subject
from mmcasvit.benchmark.published import PUBLISHED
from mmcasvit.benchmark.variants import Memory, Variant, count_variant, peak_memory, prepare
from mmcasvit.utils.errors import NotApplicable, UsageError
from mmcasvit.utils.timing import fit_exponent, interleave, matmul_limit, ratio, spread


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark')


@pytest.fixture
def run(tool, monkeypatch, capsys):
    """Runs the command line in this process; returns exit status, stdout and stderr."""

    def run_tool(*args):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, args)])
        status = 0
        try:
            tool.main()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run_tool


def test_spreads_and_ratios():
    assert spread([3.0]) == spread([3.0, 3.0, 3.0])
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    # One round at half the speed for both: round by round the ratio is 2 throughout.
    assert ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == spread([2.0])


@pytest.mark.parametrize('exponent', [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(exponent):
    x = [256.0**2, 512.0**2, 1536.0**2]
    assert fit_exponent(x, [7 * value**exponent for value in x]) == pytest.approx(exponent)


def test_an_exponent_needs_two_sizes():
    with pytest.raises(ValueError, match='two different'):
        fit_exponent([64.0, 64.0], [1.0, 2.0])


def test_everybody_takes_turns_and_the_order_changes():
    order = []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in 'abc'}
    assert interleave(runs, 2) == dict(a=[1, 6], b=[2, 5], c=[3, 4])
    assert ''.join(order) == 'abccba'


def macs_by_hand(depths, channels, side):
    """Multiply-adds of the convolutions, from the table of the architecture alone."""
    first = channels[0]
    total = 9 * 3 * first // 2 * (side // 2) ** 2 + 9 * first // 2 * first * (side // 4) ** 2
    for stage, (depth, c) in enumerate(zip(depths, channels)):
        pixels = (side // 2 ** (stage + 2)) ** 2
        if stage:
            total += 9 * channels[stage - 1] * c * pixels
        integration, mlp = 2 * c * c + 9 * c, 8 * c * c
        mixer = 3 * c * c + 2 * (9 * c + c) + 2 * 9 * c
        total += depth * ((integration + mixer + mlp) * pixels + 2 * c * c)
    return total


@pytest.mark.parametrize(
    'arch, params, published',
    [('xs', 2759132, 560e6), ('s', 5250704, 932e6), ('m', 11652224, 1887e6), ('t', 20738080, 3597e6)],
)
def test_parameters_and_multiply_adds_are_those_of_the_architecture(arch, params, published):
    cost = count_variant(Variant(arch, size=(224, 224)))
    assert cost.params == params
    assert cost.macs == macs_by_hand(**CASViT.arch_settings[arch], side=224)
    # The paper counts norms and the classifier as well.
    assert 0.97 * published < cost.macs < published


def test_a_training_pass_and_a_batch_cost_what_they_should():
    plain, batch = (count_variant(Variant('xs', batch=n, size=(64, 64))) for n in (1, 3))
    assert batch.macs == 3 * plain.macs
    # Each convolution has two more of its size in the backward pass, but the first has no gradient of the image.
    train = count_variant(Variant('xs', mode='train', size=(64, 64)))
    assert train.macs == 3 * plain.macs - 9 * 3 * 24 * 32**2
    half = count_variant(Variant('xs', precision='bf16', size=(64, 64)))
    assert half.traffic * 2 == plain.traffic


def test_traffic_is_what_goes_in_and_out_of_convolutions():
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU())
    with torch.no_grad():
        cost = count(conv, lambda: conv(torch.zeros(2, 4, 8, 8)))
    assert cost.macs == 2 * 8 * 8 * 4 * 6 * 9
    assert cost.traffic == 4 * (2 * 4 * 64 + 6 * 4 * 9 + 6 + 2 * 6 * 64)


SAMPLES = {
    Variant('xs'): [0.2, 0.4, 0.2],
    Variant('xs', form='deploy'): [0.1, 0.2, 0.1],
    Variant('m', form='deploy'): [0.4, 0.8, 0.4],
}


def rows_of_samples(baseline):
    variant = Variant('xs')
    rates = {matmul_key(variant): [100.0, 50.0, 100.0], copy_key(variant): [8.0, 4.0, 8.0]}
    costs = {variant: Cost(params=7, macs=5, traffic=1) for variant in SAMPLES}
    memory = {Variant('xs'): Memory(weights=3, above=4), Variant('xs', form='deploy'): None}
    return comparing.rows_of(SAMPLES, rates, costs, memory, {}, baseline)


def test_rows_follow_from_the_samples():
    eager, deploy, other = rows_of_samples(dict(form='eager'))
    assert (eager['speedup'].median, deploy['speedup'].median, other['speedup']) == (1.0, 2.0, None)
    assert deploy['images_per_second'] == 10.0
    # 5 multiply-adds at 100 a second are 50 ms; in the slow round the machine's rate was half as well.
    assert_close(deploy['matmul_ms'], 50.0)
    assert_close(deploy['matmul_reached'].median, 0.5)
    assert_close(deploy['matmul_reached'].high, 0.5)
    assert_close(deploy['copy_reached'].median, 1.25)
    assert deploy['bound_ms'] == deploy['copy_ms'] == 125.0
    assert (eager['peak_bytes'], deploy['peak_bytes'], other['peak_bytes']) == (7, None, None)
    assert [row['speedup'].median for row in rows_of_samples(dict(model='xs', form='deploy'))] == [0.5, 1.0, 0.25]


def test_the_table_shows_what_varies(tmp_path):
    rows = rows_of_samples(dict(form='eager'))
    constant, varying = reporting.split_constant(rows, ['model', 'form', 'size'])
    assert (constant, varying) == ({'size': '512x512'}, ['model', 'form'])
    lines = reporting.markdown([comparing.table_row(row, varying, 'eager') for row in rows]).splitlines()
    assert lines[0].startswith('| model | form | params, M | GMACs | ms | quartiles | images/s | speed-up over eager |')
    assert lines[3] == '| xs | deploy | 0.00 | 5e-09 | 100 | 100 to 150 | 10 | 2.00 | 50 (50%) | 125 (125%) | - |'
    assert len(lines) == 2 + len(rows)

    reporting.write_csv(tmp_path / 'a.csv', rows)
    with open(tmp_path / 'a.csv') as file:
        read = list(csv.DictReader(file))
    assert float(read[1]['seconds']) == 0.1
    assert float(read[1]['seconds_q3']) == pytest.approx(0.15)
    reporting.write_json(tmp_path / 'a.json', rows, machine='this')
    read = json.loads((tmp_path / 'a.json').read_text())
    assert read['machine'] == 'this'
    assert [row['samples'] for row in read['rows']] == list(SAMPLES.values())


def test_baselines():
    variants = list(SAMPLES)
    assert comparing.default_baseline(variants) == dict(form='eager')
    assert comparing.default_baseline(variants[1:]) == dict(model='xs')
    assert comparing.parse_baseline('model=xs,size=512x512', variants) == dict(model='xs', size=(512, 512))
    for text, words in [
        ('form', 'field=value'),
        ('colour=red', 'field=value'),
        ('form=compiled', 'no such variant'),
        ('threads=many', "'many' is no threads"),
    ]:
        with pytest.raises(UsageError, match=words):
            comparing.parse_baseline(text, variants)


def test_the_softmax_twin_differs_in_the_mixers_alone():
    plain, twin = (set(build_subject(name).module.state_dict()) for name in ('xs', 'xs-softmax'))
    assert all('.attn.' in key for key in plain ^ twin)
    assert [tuple(out.shape[1:]) for out in build_subject('xs-softmax').infer(torch.zeros(1, 3, 64, 64))] == [
        (48, 16, 16),
        (56, 8, 8),
        (112, 4, 4),
        (220, 2, 2),
    ]
    # Four times the pixels: CATM costs four times as much, its channel gates apart, attention more.
    small, large = (
        {name: count_variant(Variant(name, size=(side, side))).macs for name in ('xs', 'xs-softmax')}
        for side in (128, 256)
    )
    growth = {name: large[name] / small[name] for name in small}
    assert 3.98 < growth['xs'] <= 4
    assert growth['xs-softmax'] > 6


@pytest.mark.parametrize(
    'name, params, maps',
    [
        ('resnet-18', 11176512, 4),
        ('resnet-50', 23508032, 4),
        ('mobilenetv2', 2223872, 4),
        ('swin-t', 27520698, 4),
        ('mit-b0', 3319392, 4),
        ('poolformer-s12', 11401024, 1),
        ('swiftformer-l1', 11287261, 1),
        ('fastvit-sa12', 10409472, 4),
        ('repvit-m1.1', 7774864, 4),
        ('efficientformerv2-s1', 5732232, 4),
        ('edgenext-small', 5281224, 4),
        ('mobilenetv3-large', 2971952, 5),
    ],
)
def test_peers_are_who_they_say(name, params, maps):
    pytest.importorskip(PEERS[name].library)
    subject = build_subject(name, (64, 64))
    assert sum(p.numel() for p in subject.module.parameters()) == params
    outputs = subject.infer(torch.zeros(1, 3, 64, 64))
    assert len(outputs) == maps
    assert outputs[-1].shape[2:] == (2, 2)


def test_published_figures_belong_to_known_models_and_have_sources():
    assert set(PUBLISHED) <= {*CASVITS, *PEERS}
    assert all('arXiv' in figures.source or 'model zoo' in figures.source for figures in PUBLISHED.values())


def test_forms_are_checked(monkeypatch):
    for form, words in [
        ('folded', "unknown form 'folded'. Valid: eager"),
        ('openvino+eager', 'nothing can follow'),
        ('compiled+openvino', 'compiles by itself'),
    ]:
        with pytest.raises(UsageError, match=words):
            forms.parse_form(form)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError, match=r'needs onnx, onnxscript, onnxruntime: pip install "mmcasvit\[benchmark\]"'):
        forms.parse_form('onnxruntime')
    with pytest.raises(NotApplicable, match='needs timm, which is not installed'):
        models.check_library('fastvit-sa12')


@pytest.mark.parametrize(
    'variant',
    [
        Variant('xs', size=(64, 96)),
        Variant('xs', form='channels_last', size=(64, 96)),
        Variant('xs', form='deploy', size=(64, 96)),
        Variant('xs', precision='bf16', size=(64, 96)),
        Variant('xs-softmax', mode='train', size=(64, 96)),
        Variant('xs', mode='train', precision='bf16', size=(64, 96)),
    ],
    ids=str,
)
def test_a_variant_runs_and_agrees_with_the_eager_model(variant):
    prepared = prepare(variant)
    prepared.run()
    if variant.mode == 'train':
        assert prepared.deviation is None
    else:
        assert prepared.deviation < (0.1 if variant.precision == 'bf16' else 1e-5)
        assert [out.shape[1] for out in prepared.run()] == [48, 56, 112, 220]
        assert prepared.run()[0].dtype == (torch.bfloat16 if variant.precision == 'bf16' else torch.float32)


@pytest.mark.parametrize(
    'base', ['detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py', 'segmentation/semantic-fpn_casvit-xs_600i_shapes.py']
)
def test_a_whole_model_runs_and_counts(tmp_path, base):
    config = str(write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs' / base))
    infer, train = (Variant(config, mode=mode, size=(96, 128)) for mode in ('infer', 'train'))
    for variant in (infer, train, replace(infer, form='channels_last')):
        prepared = prepare(variant)
        prepared.run()
        assert (prepared.library, prepared.deviation) == ('mmdet' if 'detection' in base else 'mmseg', None)
    backbone = build_subject(config).module.backbone
    alone = on_meta(backbone, torch.zeros(1, 3, 96, 128), lambda module, x: module(x))
    assert count_variant(infer).macs > alone.macs > 0
    with pytest.raises(NotApplicable, match='only a CAS-ViT'):
        prepare(Variant('resnet-18', form='deploy'))
    with pytest.raises(NotApplicable, match='cannot be trained'):
        prepare(replace(train, form='deploy'))


@pytest.mark.parametrize('form', ['onnxruntime', 'openvino'])
def test_an_exported_form_agrees_with_the_eager_model(form):
    for package in forms.FORMS[form].packages:
        pytest.importorskip(package)
    assert prepare(Variant('xs', form=form, size=(64, 64))).deviation < 1e-4
    with pytest.raises(NotApplicable, match='for inference on the CPU'):
        prepare(Variant('xs', form=form, mode='train', size=(64, 64)))


def test_int8_is_made_of_an_exported_form_and_bounded_by_products_in_int8():
    for package in ('nncf', 'openvino', 'onnx'):
        pytest.importorskip(package)
    prepared = prepare(Variant('xs', form='openvino', precision='int8', batch=2, size=(64, 64)))
    assert 1e-3 < prepared.deviation < 0.3
    assert [tuple(out.shape[:2]) for out in prepared.run()] == [(2, 48), (2, 56), (2, 112), (2, 220)]
    limit = matmul_limit('cpu', 'int8')
    assert (limit.run().dtype, limit.amount) == (torch.int32, 1024.0**3)
    for variant, words in [
        (Variant('xs', precision='int8'), 'int8 is for exported forms'),
        (Variant('xs', form='onnxruntime', precision='int8'), 'has no int8 convolutions here'),
    ]:
        with pytest.raises(NotApplicable, match=words):
            prepare(variant)


def test_a_deviation_is_seen():
    maps = [torch.ones(1, 2, 3, 3)]
    from mmcasvit.benchmark.variants import _deviation

    assert _deviation(maps, maps) == 0
    assert_close(_deviation([1.01 * maps[0]], maps), 0.01, rtol=1e-4, atol=0)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='read from the kernel of Linux')
def test_memory_of_a_pass():
    size = (128, 128)
    infer, train, recomputed = (
        peak_memory(Variant(name, mode=mode, size=size))
        for name, mode in [('xs', 'infer'), ('xs', 'train'), ('xs:with_cp=True', 'train')]
    )
    weights = sum(t.numel() * t.element_size() for t in CASViT('xs').state_dict().values())
    assert infer.weights == train.weights == weights
    assert infer.above >= 32 * 32 * 192 * 4, 'the MLP of the first stage alone holds this'
    assert train.above > 2 * infer.above
    assert recomputed.above < 0.8 * train.above
    assert train.total == train.above + weights


def test_operators_are_grouped_and_their_arithmetic_adds_up():
    prepared = prepare(Variant('xs', size=(64, 64)))
    groups = operators.time_operators(prepared.run, 'cpu')
    assert sum(group.macs for group in groups.values()) == count_variant(Variant('xs', size=(64, 64))).macs
    assert groups['convolutions 3x3'].calls == 2 + 3
    assert groups['convolutions 3x3, depthwise'].calls == 10 * 5
    assert groups['norms'].calls == 4 + 2 + 3 + 10 * 5
    rows = operators.operator_table([groups, groups], macs_per_second=1e12, bytes_per_second=1e3)
    assert {row['limited by'] for row in rows} == {'memory'}
    assert rows[0]['ms'] == max(row['ms'] for row in rows)


def test_the_parts_of_a_stopwatch_add_up_to_the_whole():
    now = iter(range(100))
    watch = stepping.Stopwatch('cpu', clock=lambda: next(now))
    with watch.part('loop'):  # 0
        with watch.part('forward'):  # 1
            with watch.part('neck'):  # 2 to 3
                pass
        with watch.part('backward: heads'):  # 4 to 5
            watch.rename('backward: neck')  # 6
        taken = watch.take()
    assert sum(taken.values()) == watch.last - 1  # take() read the clock once, the end of the block again
    assert taken['neck'] == 1
    assert taken['forward'] == 2
    assert taken['backward: heads'] == taken['backward: neck'] == 1
    assert watch.take() == {'loop': 1}


def test_the_step_table_adds_up():
    steps = [{'data loading': 0.01, 'backbone': 0.03}, {'data loading': 0.02, 'backbone': 0.04}]
    rows = stepping.step_table(steps, ['data loading', 'backbone', 'neck'])
    assert [row['part'] for row in rows] == ['data loading', 'backbone', 'whole step']
    assert [row['share'] for row in rows] == ['30.0%', '70.0%', '100.0%']
    assert_close(rows[-1]['ms'], 50.0)


def test_compare_writes_its_table_and_files(run, tmp_path):
    status, out, _ = run(
        'compare',
        'xs',
        'xs:norm_eval=True',
        '--sizes',
        '64x64',
        '--forms',
        'eager',
        'channels_last',
        '--rounds',
        2,
        '--warmup',
        1,
        '--least-ms',
        0,
        '--threads',
        1,
        '--no-memory',
        '--csv',
        tmp_path / 'a.csv',
        '--json',
        tmp_path / 'a.json',
        '--plot',
        tmp_path / 'a.png',
        '--plot-accuracy',
        tmp_path / 'b.png',
    )
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
    status, out, _ = run(
        'scaling',
        '--sides',
        64,
        128,
        2048,
        '--limit-s',
        0.5,
        '--rounds',
        1,
        '--warmup',
        1,
        '--least-ms',
        0,
        '--threads',
        1,
        '--cpu-time',
        '--no-memory',
        '--json',
        tmp_path / 'a.json',
        '--plot',
        tmp_path / 'a.png',
    )
    assert status == 0
    assert 'left out: xs-softmax infer eager fp32 cpu threads=1 batch=1 2048x2048: its arithmetic alone takes' in out
    exponents = json.loads((tmp_path / 'a.json').read_text())['exponents']
    assert exponents['multiply-adds, G']['xs'] == pytest.approx(1, abs=0.01)
    assert exponents['multiply-adds, G']['xs-softmax'] > 1.5
    assert set(exponents) == {'multiply-adds, G', 'time, ms'}
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'args, words',
    [
        (['compare', 'xl'], "unknown model 'xl'. Valid: a config file, xs, "),
        (['compare', 'xs', 'resnet-18:depth=3'], 'arguments behind a colon are those of CASViT'),
        (['compare', 'xs:depth=3'], "CASViT has no argument 'depth'"),
        (['compare', 'xs:with_cp'], "expected argument=value behind the colon, got 'with_cp'"),
        (['compare', 'xs', '--forms', 'folded'], "unknown form 'folded'"),
        (['compare', 'none.py'], 'config not found'),
        (['compare', 'xs', '--baseline', 'form=deploy'], 'no such variant'),
        (['compare', 'xs', '--precisions', 'fp16'], 'fp16 is for GPUs'),
        (['compare', 'l', '--plot-accuracy', 'a.png'], 'no figures are known'),
        (['compare', 'xs', '--csv', 'none/a.csv'], '--csv: no such folder'),
        (['scaling', '--sides', '64'], 'at least two different'),
        (['scaling', '--sides', '64', '96', '--limit-s', '0'], 'fewer than two sizes'),
        (['operators', 'xs', '--form', 'compiled'], 'operators can be told apart in'),
        (['compare', 'xs', '--cpu-time', '--threads', '2'], 'use it with --threads 1'),
        (['step', 'none.py'], 'config not found'),
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


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU is there')
def test_an_absent_gpu_is_said(run):
    assert 'no GPU is visible' in run('compare', 'xs', '--devices', 'cuda')[2]


def test_flags_that_mean_nothing_are_refused(run):
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
            'segmentation/semantic-fpn_casvit-xs_600i_shapes.py',
            ['backbone', 'neck', 'decode_head', 'backward: heads and losses', 'backward: neck', 'backward: backbone'],
        ),
    ],
    ids=['epochs', 'iterations'],
)
def test_a_training_step_is_taken_apart(run_tool, tmp_path, shapes, base, parts):
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
    # A training that is shorter than asked for is an error, not a short table.
    length = 'train_cfg.max_epochs=1' if base.startswith('detection') else 'train_cfg.max_iters=4'
    done = run_tool('benchmark.py', 'step', config, '--steps', 9, *options, length, cwd=tmp_path, expect=2)
    assert 'error: tiny.py: the training ended after 4 steps, 12 were wanted.' in done.stderr
    assert done.stdout == ''


@pytest.mark.slow
def test_losses_start_alike_in_every_precision_and_form(run_tool, tmp_path, shapes):
    config = write_tiny_config(tmp_path / 'tiny.py', ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py')
    options = ['--cfg-options', f'data_root={shapes}/coco/', 'train_dataloader.batch_size=2']
    done = run_tool(
        'benchmark.py',
        'losses',
        config,
        '--variants',
        'fp32',
        'channels_last',
        'bf16',
        'fp16',
        '--steps',
        3,
        '--csv',
        'a.csv',
        '--plot',
        'a.png',
        *options,
        cwd=tmp_path,
    )
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
