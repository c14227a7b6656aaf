"""Options of training and testing: what each one changes in a config, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmcasvit.apis import options
from mmcasvit.apis.options import (
    add_tensorboard,
    draw_predictions,
    dump_predictions,
    has_accelerator,
    scale_learning_rate,
    use_amp,
    use_output,
    use_pretrained,
    use_start,
    use_tta,
)
from mmcasvit.utils.errors import UsageError, WeightsError


@pytest.fixture
def cfg(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'start.pth')
    (tmp_path / 'run').mkdir()
    return Config(dict(work_dir=str(tmp_path / 'run'), load_from=str(tmp_path / 'start.pth')))


def start_of(cfg, resume):
    decision = use_start(cfg, resume, trust=False)
    return bool(cfg.get('resume')), cfg.load_from and cfg.load_from.rpartition('/')[2], decision


def test_without_a_checkpoint_resuming_is_an_error_that_keeps_load_from(cfg, tmp_path):
    with pytest.raises(UsageError, match=r'run has no checkpoint.*--resume auto'):
        use_start(cfg, 'latest', trust=False)
    assert start_of(cfg, None) == (False, 'start.pth', '')
    resumed, file, decision = start_of(cfg, 'auto')
    assert (resumed, file) == (False, 'start.pth')
    assert decision == f'--resume auto: nothing to resume, started from load_from, {tmp_path}/start.pth.'
    cfg.load_from = None
    assert start_of(cfg, 'auto')[2].endswith('started from the initial weights.')


def test_a_checkpoint_is_resumed(cfg, tmp_path):
    for step in (1, 2):
        torch.save(dict(state_dict={}), tmp_path / f'run/iter_{step}.pth')
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'run/iter_2.pth'))
    assert start_of(cfg, 'latest') == (True, 'iter_2.pth', '')
    assert start_of(cfg, 'auto')[2] == f'--resume auto: resumed from {tmp_path}/run/iter_2.pth.'
    assert start_of(cfg, str(tmp_path / 'run/iter_1.pth')) == (True, 'iter_1.pth', '')


def test_a_missing_file_is_named_before_the_run(cfg, tmp_path):
    with pytest.raises(WeightsError, match='checkpoint not found'):
        use_start(cfg, str(tmp_path / 'nowhere.pth'), trust=False)
    cfg.load_from = str(tmp_path / 'gone.pth')
    with pytest.raises(WeightsError, match=r'checkpoint not found: .*gone\.pth'):
        use_start(cfg, None, trust=False)


def test_the_backbone_starts_from_a_file_that_is_read_at_once(tmp_path):
    cfg = Config(dict(model=dict(backbone={})))
    with pytest.raises(WeightsError, match='checkpoint not found'):
        use_pretrained(cfg, str(tmp_path / 'gone.pth'), True)
    assert 'init_cfg' not in cfg.model.backbone
    torch.save(dict(state_dict={}), tmp_path / 'start.pth')
    for trust in (False, True):
        use_pretrained(cfg, str(tmp_path / 'start.pth'), trust)
        assert cfg.model.backbone.init_cfg == dict(
            type='Pretrained', checkpoint=str(tmp_path / 'start.pth'), trust=trust
        )


@pytest.mark.parametrize('device', [None, 'cuda', 'npu', 'mlu', 'musa'])
def test_mixed_precision_needs_a_device_of_any_kind(monkeypatch, device):
    for name in ('cuda', 'npu', 'mlu', 'musa'):
        monkeypatch.setattr(options, f'is_{name}_available', lambda name=name: name == device)
    assert has_accelerator() == (device is not None)
    cfg = Config(dict(optim_wrapper=dict(type='OptimWrapper')))
    if device is None:
        with pytest.raises(UsageError, match='--amp: mixed precision needs a GPU'):
            use_amp(cfg)
        assert cfg.optim_wrapper == dict(type='OptimWrapper')
        return
    use_amp(cfg)
    assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
    cfg.optim_wrapper.loss_scale = 512.0
    use_amp(cfg)
    assert cfg.optim_wrapper.loss_scale == 512.0


def test_the_learning_rate_is_scaled_where_its_batch_size_is_known():
    for cfg in (Config({}), Config(dict(auto_scale_lr=dict(enable=False)))):
        with pytest.raises(UsageError, match='does not say which batch size'):
            scale_learning_rate(cfg)
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=16)))
    scale_learning_rate(cfg)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=16)


def test_curves_are_written_for_tensorboard_once_and_if_it_is_installed(monkeypatch):
    said, local, board = [], dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')
    monkeypatch.setattr(options, 'print_log', lambda text, **_: said.append(text))
    for backends, wanted in ((None, None), ([local], [local, board]), ([board, local], [board, local])):
        cfg = Config(dict(visualizer=dict(vis_backends=backends)))
        monkeypatch.setattr(options.importlib.util, 'find_spec', lambda name: name)
        add_tensorboard(cfg)
        assert cfg.visualizer.vis_backends == wanted
    assert said == []
    monkeypatch.setattr(options.importlib.util, 'find_spec', lambda name: None)
    cfg = Config(dict(visualizer=dict(vis_backends=[local])))
    add_tensorboard(cfg)
    assert cfg.visualizer.vis_backends == [local]
    assert said == ['no TensorBoard curves: pip install "mmcasvit[tensorboard]"']
    add_tensorboard(Config({}))


def tta(**changes):
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(type='Detector', roi_head={}),
            tta_model=dict(type='TTA'),
            tta_pipeline=['augment'],
            test_dataloader=dict(dataset=dict(pipeline=['plain'])),
            test_evaluator=dict(metric=['bbox']),
        )
        | changes
    )


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(test_evaluator=[dict(metric=['segm'])]),
        dict(default_scope='mmseg', test_evaluator=dict(metric=['segm'])),
        dict(model=dict(type='Detector', roi_head=dict(mask_head=None))),
        dict(model=dict(type='Detector')),
        dict(test_evaluator={}),
    ],
)
def test_tta_wraps_the_model_and_changes_the_pipeline(changes):
    cfg = tta(**changes)
    model = cfg.model
    use_tta(cfg)
    assert cfg.model == dict(type='TTA', module=model)
    assert cfg.test_dataloader.dataset.pipeline == ['augment']


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(test_evaluator=dict(metric=['bbox', 'segm'])), 'no masks'),
        (dict(model=dict(type='Detector', roi_head=dict(mask_head=dict(type='FCN')))), 'no masks'),
        (dict(tta_model=None), None),
        (dict(tta_pipeline=None), None),
    ],
)
def test_tta_is_refused_for_masks_and_without_its_settings(changes, words):
    cfg = tta(**changes)
    for key in [key for key, value in changes.items() if value is None]:
        cfg.pop(key)
    with pytest.raises(UsageError, match=words or 'no tta_model and tta_pipeline'):
        use_tta(cfg)
    assert cfg.model.type == 'Detector'


@pytest.mark.parametrize(
    'scope, enabled, place',
    [('mmdet', 'draw', 'test_out_dir'), ('mmseg', 'draw', None), ('mmpretrain', 'enable', 'out_dir')],
)
def test_predictions_are_drawn_where_each_framework_draws_them(scope, enabled, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(default_scope=scope, default_hooks=dict(visualization={}), visualizer={}))
    draw_predictions(cfg, None, True, 2.5)
    assert cfg.default_hooks.visualization == {enabled: True, 'show': True, 'wait_time': 2.5, 'interval': 1}
    assert cfg.visualizer == {}
    draw_predictions(cfg, 'drawn', False, 0)
    assert cfg.default_hooks.visualization.show is False
    if place:
        assert cfg.default_hooks.visualization[place] == str(tmp_path / 'drawn')
    else:
        assert cfg.visualizer.save_dir == str(tmp_path / 'drawn')
    with pytest.raises(UsageError, match='no visualization in its default_hooks'):
        draw_predictions(Config(dict(default_scope=scope, default_hooks={})), None, True, 0)


def test_predictions_are_written_to_a_folder_or_a_pickle():
    cfg = Config(dict(default_scope='mmseg', test_evaluator=dict(type='IoUMetric')))
    use_output(cfg, 'out')
    assert cfg.test_evaluator == dict(type='IoUMetric', output_dir='out', keep_results=True)
    for scope in ('mmdet', 'mmpretrain'):
        cfg = Config(dict(default_scope=scope, test_evaluator={}))
        for out in ('x.pkl', 'x.pickle'):
            use_output(cfg, out)
        with pytest.raises(UsageError, match=r'must be a \.pkl file, got x\.json'):
            use_output(cfg, 'x.json')
        assert cfg.test_evaluator == {}


@pytest.mark.parametrize('scope, kind', [('mmdet', 'DumpDetResults'), ('mmpretrain', 'DumpResults'), ('mmseg', None)])
def test_predictions_of_detectors_and_classifiers_are_dumped(scope, kind):
    runner = SimpleNamespace(test_evaluator=SimpleNamespace(metrics=[]))
    dump_predictions(runner, scope, 'x.pkl')
    assert [(type(metric).__name__, metric.out_file_path) for metric in runner.test_evaluator.metrics] == (
        [(kind, 'x.pkl')] if kind else []
    )
