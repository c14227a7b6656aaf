"""``tools/plug.py``: the files that it writes, wrong arguments, the compatibility table."""

import pytest
from helpers.plug_configs import BYTETRACK, FCOS, PSPNET
from helpers.repository import ROOT
from mmengine.config import Config

from mmcasvit.plugin import try_out
from mmcasvit.plugin.core import plug_with_notes
from mmcasvit.plugin.dump import config_text, overrides, without_scopes
from mmcasvit.plugin.safety import add_safety

LAZY = """
from mmdet.models import FCOS, FPN, DetDataPreprocessor, FCOSHead, ResNet

default_scope = 'mmdet'
model = dict(
    type=FCOS,
    data_preprocessor=dict(type=DetDataPreprocessor),
    backbone=dict(type=ResNet, depth=18),
    neck=dict(type=FPN, in_channels=[64, 128, 256, 512], out_channels=16, start_level=1, num_outs=5,
              add_extra_convs='on_output'),
    bbox_head=dict(type=FCOSHead, num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1, norm_cfg=None),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=.05, nms=dict(type='nms', iou_threshold=.5),
                  max_per_img=10))
"""


@pytest.mark.slow
def test_written_configs_read_back_as_the_plugged_config(tmp_path, monkeypatch):
    """Test a user's file, one of mmdet, one of mmseg, and one in the new style, which imports its classes."""
    own = tmp_path / 'mine' / 'own.py'
    own.parent.mkdir()
    own.write_text(f"_base_ = '{ROOT}/configs/detection/retinanet_casvit-xs_fpn_6e_shapes.py'\n")
    (tmp_path / 'lazy.py').write_text(LAZY)
    (tmp_path / 'new').mkdir()
    monkeypatch.chdir(tmp_path)
    for source, base in [
        ('mine/own.py', "_base_ = '../mine/own.py'"),
        (FCOS, f"_base_ = '{FCOS}'"),
        (PSPNET, None),
        ('lazy.py', None),
    ]:
        out = tmp_path / 'new' / 'plugged.py'
        cfg, notes = plug_with_notes(source, 's', verify=False)
        text = config_text(source, cfg, out, notes)
        if base is not None:
            assert base in text
            assert len(text.splitlines()) < 60
        out.write_text(text)
        monkeypatch.chdir('/')
        read = Config.fromfile(out)
        monkeypatch.chdir(tmp_path)
        assert without_scopes(read.to_dict()) == without_scopes(cfg.to_dict())
        assert read.model.backbone.arch == 's'
        if source == 'lazy.py':
            assert try_out(read, sizes=[64]).unused == []
        assert [file.name for file in out.parent.iterdir()] == ['plugged.py']


def test_overrides_delete_what_merging_would_keep():
    old = dict(a=dict(type='X', x=1, y=2), b=dict(x=1, y=2), c=dict(x=1, y=[1, 2]), d=1, e=[dict(x=1)])
    new = dict(a=dict(type='Y', x=1, y=2), b=dict(x=1), c=dict(x=1, y=(1, 2)), d=1, e=[dict(x=2)], f=None)
    found = overrides(old, new)
    assert found == dict(
        a=dict(_delete_=True, type='Y', x=1, y=2), b=dict(_delete_=True, x=1), c=dict(y=(1, 2)), e=[dict(x=2)], f=None
    )
    merged = Config(old)
    merged.merge_from_dict(found, allow_list_keys=False)
    assert merged.to_dict() == new


def test_tool_writes_one_file_and_overwrites_only_with_force(run_main, tmp_path):
    status, printed = run_main('plug', FCOS, '--arch', 'xs', '--out', 'new.py', '--no-verify')
    assert status == 0
    assert 'model.neck.in_channels: [256, 512, 1024, 2048] -> [56, 112, 220]' in printed.out
    assert printed.out.endswith('next:\n  python tools/train.py new.py --pretrained xs\n')
    assert Config.fromfile(tmp_path / 'new.py').model.neck.in_channels == [56, 112, 220]
    written = (tmp_path / 'new.py').read_text()
    status, printed = run_main('plug', FCOS, '--arch', 's', '--out', 'new.py', '--no-verify')
    assert (status, printed.err) == (2, 'error: new.py exists; use --force to overwrite it\n')
    assert (tmp_path / 'new.py').read_text() == written
    assert run_main('plug', FCOS, '--arch', 's', '--out', 'new.py', '--no-verify', '--force', '--train-norms')[0] == 0
    backbone = Config.fromfile(tmp_path / 'new.py').model.backbone
    assert (backbone.arch, backbone.norm_eval) == ('s', False)


@pytest.mark.parametrize(
    'arguments, words',
    [
        ([BYTETRACK, '--out', 'x.py'], 'ByteTrack wraps another model'),
        ([FCOS], 'give one config and --out FILE.py, or --table'),
        ([FCOS, '--out', 'x.yaml'], '--out must be a .py file'),
        ([FCOS, '--out', 'no/x.py'], '--out: there is no folder'),
        ([FCOS, '--out', 'x.py', '--pretrained', 'no.pth'], 'checkpoint not found'),
        ([FCOS, '--out', 'x.py', '--drop-path-rate', '2'], 'drop_path_rate must be'),
    ],
)
def test_tool_writes_nothing_with_wrong_arguments(run_main, tmp_path, arguments, words):
    status, printed = run_main('plug', *arguments)
    assert status == 2
    assert printed.err.startswith(f'error: {words}')
    assert printed.err.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_table_shows_what_works_and_exits_with_1_on_failures(run_main, run_tool, tmp_path):
    done = run_tool('plug.py', '--table', FCOS, '--arch', 'xs', cwd=tmp_path)
    row = done.stdout.strip().strip('|').splitlines()[-1].split(' | ')
    assert row[:2] == [f'| `{FCOS}`', '8 16 32']
    assert [cell.strip() for cell in row[3:]] == ['ok', 'ok', 'ok']
    (tmp_path / 'broken.py').write_text(f"_base_ = '{FCOS}'\nmodel = dict(bbox_head=dict(in_channels=128))\n")
    status, printed = run_main('plug', '--table', 'broken.py', BYTETRACK)
    broken, refused = (line.split(' | ') for line in printed.out.strip().splitlines()[-2:])
    assert status == 1
    assert broken[3] == 'ok'
    assert broken[4].startswith('TrialError: FCOS with mmcasvit.CASViT fails in a training step')
    assert refused[3].startswith('PlugError: ByteTrack wraps another model')
    assert '2 of 2 configs failed' in printed.err


def test_safe_adds_what_the_recipes_have_and_nothing_twice(run_main, tmp_path):
    arguments = [FCOS, '--arch', 'xs', '--no-verify']
    status, printed = run_main('plug', *arguments, '--out', 'plain.py')
    line = next(line for line in printed.out.splitlines() if 'missing: ' in line)
    assert (status, line.endswith('. --safe adds them')) == (0, True)
    status, printed = run_main('plug', *arguments, '--out', 'safe.py', '--safe')
    assert line.replace('missing', 'added').removesuffix('. --safe adds them') in printed.out.splitlines()
    cfg = Config.fromfile(tmp_path / 'safe.py')
    hook = cfg.default_hooks.checkpoint
    assert (hook.type, hook.interval, hook.save_best) == ('mmcasvit.CheckpointHook', 1, 'coco/bbox_mAP')
    assert (cfg.train_cfg.type, cfg.train_cfg.max_epochs) == ('mmcasvit.ResumableEpochLoop', 12)
    first, second, *_ = cfg.train_dataloader.dataset.pipeline
    assert [step.type for step in first.transforms] == ['LoadImageFromFile', 'LoadAnnotations']
    assert (first.type, second.type) == ('mmcasvit.SkipUnreadable', 'Resize')
    assert add_safety(cfg) == []
    _, printed = run_main('plug', 'safe.py', '--arch', 's', '--out', 'again.py', '--no-verify')
    assert 'missing' not in printed.out


@pytest.mark.parametrize(
    'changes, found',
    [
        (dict(train_cfg=dict(by_epoch=False, max_iters=5)), dict(type='mmcasvit.ResumableIterLoop', max_iters=5)),
        (dict(train_cfg=dict(type='TeacherLoop')), dict(type='TeacherLoop')),
    ],
)
def test_loops_of_any_form_are_replaced_and_unknown_ones_left(changes, found):
    cfg = Config(changes)
    assert ('exact resume' in add_safety(cfg)) == (found['type'] != 'TeacherLoop')
    assert cfg.train_cfg == found


def test_pipelines_inside_wrappers_and_hooks_skip_unreadable_images():
    def pipeline():
        return [dict(type='LoadImageFromFile'), dict(type='mmdet.LoadAnnotations', with_bbox=True), dict(type='Mosaic')]

    cfg = Config(
        dict(
            val_evaluator=[dict(type='VOCMetric')],
            train_dataloader=dict(
                dataset=dict(
                    dataset=dict(datasets=[dict(pipeline=pipeline()), dict(pipeline=[dict(type='LoadFromArray')])])
                )
            ),
            custom_hooks=[dict(type='PipelineSwitchHook', switch_pipeline=pipeline())],
        )
    )
    assert 'save_best (auto)' in add_safety(cfg)
    first, second = cfg.train_dataloader.dataset.dataset.datasets
    wrapped = [dict(type='mmcasvit.SkipUnreadable', transforms=pipeline()[:2]), dict(type='Mosaic')]
    assert first.pipeline == cfg.custom_hooks[0].switch_pipeline == wrapped
    assert second.pipeline == [dict(type='LoadFromArray')]
