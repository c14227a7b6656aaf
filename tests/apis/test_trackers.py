"""Trackers of experiments: what a config gets, what is refused, and what arrives in those that need no server."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import VISBACKENDS, VISUALIZERS
from mmengine.visualization import BaseVisBackend

from mmcasvit.apis import trackers
from mmcasvit.apis.trackers import TRACKERS, refusals_explained, use_trackers
from mmcasvit.utils.errors import UsageError


def tracked(*names, **visualizer):
    cfg = Config(dict(work_dir='runs/first', **(dict(visualizer=visualizer) if visualizer else {})))
    use_trackers(cfg, names)
    return cfg


@pytest.mark.parametrize('name', TRACKERS)
def test_a_missing_package_is_one_line_that_names_the_extra(monkeypatch, name):
    monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UsageError) as refused:
        tracked(name)
    assert str(refused.value) == f'--track {name}: {name} is not installed: pip install "mmcasvit[{name}]"'


def test_the_backends_of_a_config_stay_and_mmengine_has_those_that_are_added(monkeypatch):
    monkeypatch.setattr(trackers, 'importlib', SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name)))
    own = dict(type='WandbVisBackend', init_kwargs=dict(project='mine'))
    backends = tracked('wandb', 'clearml', vis_backends=[own]).visualizer.vis_backends
    assert backends == [
        own,
        dict(type='ClearMLVisBackend', init_kwargs=dict(project_name='mmcasvit', task_name='first')),
    ]
    assert 'visualizer' not in tracked()
    added = tracked(*TRACKERS).visualizer.vis_backends
    assert [backend.type for backend in added] == ['LocalVisBackend', *TRACKERS.values()]
    for backend in added[1:]:
        arguments = {key: value for key, value in backend.items() if key != 'type'}
        VISBACKENDS.get(backend.type)(**{'save_dir': 'unused', **arguments})  # starts nothing yet


def test_a_tracker_that_cannot_start_is_one_line():
    class WandbVisBackend(BaseVisBackend):
        experiment = add_config = add_image = add_scalar = add_scalars = None

        def _init_env(self):
            raise ValueError('No API key configured.\nUse `wandb login`.')

    with pytest.raises(
        UsageError, match=r'^--track wandb: wandb cannot start: No API key configured\. Use `wandb login`'
    ):
        with refusals_explained():
            WandbVisBackend('unused')._init_env()
    with pytest.raises(ValueError, match='another'), refusals_explained():
        raise ValueError('another')


def write_a_run(name):
    cfg = tracked(name, type='Visualizer')
    cfg.merge_from_dict(dict(model=dict(type='Model'), optim_wrapper=dict(lr=0.25), train_cfg=dict(epochs=3)))
    Path('runs/first').mkdir(parents=True)
    Path('runs/first/first.log').write_text('a line')
    visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=f'test-{name}', save_dir='runs/first'))
    visualizer.add_config(cfg)
    visualizer.add_scalars({'coco/bbox_mAP': 0.5, 'loss': 2.0}, step=7)
    visualizer.add_image('val_img', np.zeros((4, 6, 3), np.uint8), step=7)
    visualizer.close()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('mlflow') is None, reason='MLflow is not installed')
def test_mlflow_gets_parameters_curves_and_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    write_a_run('mlflow')
    (run,) = {path.parents[1] for path in Path('mlruns').rglob('params/optim_wrapper.lr')}
    assert (run / 'params/optim_wrapper.lr').read_text() == '0.25'
    assert (run / 'metrics/coco/bbox_mAP').read_text().split()[1:3] == ['0.5', '7']
    assert (run / 'tags/mlflow.runName').read_text() == 'first'
    assert {path.name for path in (run / 'artifacts').iterdir()} >= {'val_img_7.png', 'config.py', 'first.log'}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec('wandb') is None, reason='wandb is not installed')
def test_wandb_writes_a_run_without_a_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    write_a_run('wandb')
    (record,) = tmp_path.rglob('run-*.wandb')
    content = record.read_bytes()
    assert all(word in content for word in (b'optim_wrapper', b'coco/bbox_mAP', b'val_img'))
    assert list(record.parent.rglob('media/images/val_img_*.png'))
