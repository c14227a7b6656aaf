"""The configs of configs/ablation/ differ only in the token mixer, and dev/ablate.py trains and compares them."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers.repository import ROOT, load_tool, write_tiny_config
from mmengine.config import Config
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.utils.errors import UsageError

FOLDER = ROOT / 'configs/ablation'
SHAPES = FOLDER / 'semantic-fpn_casvit-xs_480i_half-shapes.py'
# Token mixer by the part of the file name.
VARIANTS = {
    'self-attention': 'self_attention',
    'separable': 'separable',
    'efficient-additive': 'efficient_additive',
    'pooling': 'pooling',
    'identity': 'identity',
    'no-spatial-gate': dict(type='additive', spatial_gate=False),
    'no-channel-gate': dict(type='additive', channel_gate=False),
    'no-gates': dict(type='additive', spatial_gate=False, channel_gate=False),
}
RECIPES = {
    'semantic-fpn_casvit-xs{}_480i_half-shapes': SHAPES,
    'retinanet_casvit-xs{}_fpn_1x_coco': ROOT / 'configs/detection/retinanet_casvit-xs_fpn_1x_coco.py',
    'semantic-fpn_casvit-xs{}_8xb4-40k_ade20k-512x512': ROOT
    / 'configs/segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py',
}


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('variant', VARIANTS)
def test_config_differs_from_its_recipe_only_in_the_token_mixer(recipe, variant):
    cfg, base = Config.fromfile(FOLDER / f'{recipe.format("-" + variant)}.py'), Config.fromfile(RECIPES[recipe])
    assert cfg.model.backbone.pop('token_mixer') == VARIANTS[variant]
    assert cfg._cfg_dict == base._cfg_dict


def test_there_are_no_other_configs():
    assert sorted(path.stem for path in FOLDER.glob('*.py')) == sorted(
        [SHAPES.stem, *(recipe.format(f'-{variant}') for recipe in RECIPES for variant in VARIANTS)]
    )


def test_short_schedule_is_the_twin_at_half_size():
    cfg, twin = (
        Config.fromfile(path) for path in (SHAPES, ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_300i_shapes.py')
    )
    assert cfg.train_cfg.max_iters == cfg.train_cfg.val_interval == cfg.param_scheduler[-1].end == 480
    assert cfg.optim_wrapper == twin.optim_wrapper
    assert cfg.model.pop('data_preprocessor').size == (64, 96)
    assert twin.model.pop('data_preprocessor').size == (128, 192)
    assert cfg.model == twin.model
    for loader in ('train_dataloader', 'val_dataloader'):
        resize = next(step for step in cfg[loader].dataset.pipeline if step.type == 'Resize')
        assert resize.scale == (96, 64)


@pytest.fixture(scope='module')
def ablate():
    return load_tool('ablate', 'dev')


def test_default_configs_are_the_six_mixers(ablate):
    mixers = [Config.fromfile(config).model.backbone.get('token_mixer', 'additive') for config in ablate.DEFAULT]
    assert mixers == ['additive', 'self_attention', 'separable', 'efficient_additive', 'pooling', 'identity']


def test_labels_and_numbers(ablate):
    assert ablate.label({}) == 'additive'
    assert ablate.label(dict(token_mixer='pooling')) == 'pooling'
    assert ablate.label(dict(token_mixer=dict(type='pooling', size=5))) == 'pooling, size=5'
    assert ablate.text_of([1.0, 2.0, 6.0]) == ('3.00 ± 2.65', '1.00 to 6.00')
    assert ablate.text_of([0.25, 0.5]) == ('0.375 ± 0.177', '0.250 to 0.500')
    assert ablate.text_of([50.0]) == ('50.00', '50.00 to 50.00')
    with pytest.raises(UsageError, match="the validation has no 'AP'; valid: mIoU, aAcc"):
        ablate.metric_of(dict(mIoU=1.0, aAcc=2.0, data_time=0.1, step=5), 'AP')


def test_costs_belong_to_each_backbone(ablate, tmp_path):
    files = {}
    for mixer in ('additive', 'identity'):
        file = write_tiny_config(tmp_path / f'{mixer}.py', SHAPES)
        file.write_text(file.read_text() + f"\nmodel['backbone']['token_mixer'] = '{mixer}'\n")
        files[mixer] = file, Config.fromfile(file)
    costs = ablate.costs(files, (64, 96), 2)
    arch = dict(depths=(1, 1, 1, 1), channels=(8, 12, 16, 24))
    for mixer, cost in costs.items():
        assert cost['params'] == sum(p.numel() for p in CASViT(arch, token_mixer=mixer).parameters())
        assert cost['seconds'].median > 0
        assert cost['memory'] > 1e6
    # A 1x1 convolution from C to 3C; for q and k each a depthwise 3x3 convolution, a 1x1 convolution to one channel,
    # and a 1x1 convolution of the means from C to C; then two depthwise 3x3 convolutions.
    wanted = sum(16 * 24 // 4**i * c * (3 * c + 2 * (9 + 1) + 2 * 9) + 2 * c * c for i, c in enumerate((8, 12, 16, 24)))
    assert costs['additive']['macs'] - costs['identity']['macs'] == wanted


def training_that(outcome):
    """Return a replacement of ``subprocess.run`` that writes the log of a run instead of training, or fails."""

    def run(command, **_):
        folder = command[command.index('--work-dir') + 1]
        return outcome(folder)

    return run


def test_finished_run_is_recorded_and_not_repeated(ablate, tmp_path, monkeypatch):
    config, ran = tmp_path / 'variant.py', []

    def outcome(folder, entries, status=0):
        ran.append(folder)
        log = tmp_path / 'seed-0' / f'{len(ran)}' / 'vis_data/scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(map(json.dumps, entries)))
        return SimpleNamespace(returncode=status)

    train = [dict(lr=0.1, loss=1.0, step=1)]
    monkeypatch.setattr(ablate.subprocess, 'run', training_that(lambda folder: outcome(folder, train, 1)))
    assert ablate.train(config, 0) is None
    monkeypatch.setattr(ablate.subprocess, 'run', training_that(lambda folder: outcome(folder, train)))
    with pytest.raises(UsageError, match='never evaluated'):
        ablate.train(config, 0)
    validations = [dict(mIoU=3.0, step=5), dict(mIoU=4.0, step=10)]
    monkeypatch.setattr(ablate.subprocess, 'run', training_that(lambda folder: outcome(folder, train + validations)))
    for _ in range(2):
        assert ablate.train(config, 0) == validations[-1]
    assert ran == [str(tmp_path / 'seed-0')] * 3


def test_runs_of_another_config_are_kept(ablate, tmp_path):
    cfg = Config(dict(a=1))
    file = ablate.prepare('some/name.py', cfg, tmp_path)
    assert ablate.prepare('some/name.py', cfg, tmp_path) == file == tmp_path / 'name/variant.py'
    with pytest.raises(UsageError, match='name contains runs of another config'):
        ablate.prepare('some/name.py', Config(dict(a=2)), tmp_path)
    assert Config.fromfile(file).a == 1
    (tmp_path / 'trained').mkdir()
    (tmp_path / 'trained/epoch_12.pth').touch()  # written by tools/train.py
    with pytest.raises(UsageError, match='trained contains runs of another config'):
        ablate.prepare('some/trained.py', cfg, tmp_path)
    assert [path.name for path in (tmp_path / 'trained').iterdir()] == ['epoch_12.pth']


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--seeds', '1', '1'], 'different integers'),
        (['--seeds', '-1'], 'at least 0'),
        (['--rounds', '0'], 'at least 1'),
        (['--size', '64', '16'], 'at least 32'),
        ([SHAPES, SHAPES], 'given twice'),
        (['none.py'], 'config not found'),
        ([SHAPES, '--cfg-options', 'data_root=nowhere'], 'data of the train split not found'),
        ([SHAPES, '--cfg-options', 'model.backbone.type=ResNet'], 'must be mmcasvit.CASViT'),
    ],
    ids=lambda value: str(value)[-30:],
)
def test_invalid_input_is_reported_in_one_line(ablate, shapes, monkeypatch, tmp_path, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    if '--cfg-options' not in arguments:
        arguments = [*arguments, '--cfg-options', f'data_root={shapes}/ade']
    monkeypatch.setattr(sys, 'argv', ['ablate.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        ablate.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert words in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_seeds_are_trained_and_compared(ablate, shapes, tmp_path, monkeypatch, capsys):
    def compare(*seeds):
        monkeypatch.setattr(sys, 'argv', ['ablate.py', *options, '--seeds', *seeds])
        ablate.main()

    def row():
        with open(tmp_path / 'out/results.csv') as file:
            return next(csv.DictReader(file))

    file = write_tiny_config(tmp_path / 'tiny.py', SHAPES)
    file.write_text(file.read_text() + "\nmodel['backbone']['token_mixer'] = 'pooling'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    options = [
        'tiny.py',
        '--work-dir',
        'out',
        '--size',
        '64',
        '64',
        '--rounds',
        '2',
        '--cfg-options',
        f'data_root={shapes}/ade',
        'train_dataloader.batch_size=2',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=1',
    ]
    compare('0')
    assert 'pooling, seed 0: ' in capsys.readouterr().out
    first, note = row(), tmp_path / 'out/tiny/seed-0/result.json'
    written = note.stat().st_mtime_ns
    compare('0', '5')
    assert note.stat().st_mtime_ns == written
    second, values = row(), []
    for seed in (0, 5):
        folder = tmp_path / f'out/tiny/seed-{seed}'
        result = json.loads((folder / 'result.json').read_text())
        assert result['step'] == 2
        assert f'seed={seed}' in (folder / 'variant.py').read_text().replace(' ', '')
        values.append(result['mIoU'])
    assert float(first['seed_0']) == float(second['seed_0']) == values[0]
    assert_close(float(second['mean']), sum(values) / 2)
    spread = torch.tensor(values, dtype=torch.float64).std()
    assert f'| pooling | {sum(values) / 2:.2f} ± {spread:.2f} | ' in (tmp_path / 'out/results.md').read_text()
    assert (tmp_path / 'out/results.png').stat().st_size > 10000
