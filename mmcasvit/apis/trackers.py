"""Trackers of experiments, which mmengine's visualizer writes to."""

import contextlib
import importlib.util
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend as MMEngineMLflowVisBackend

from mmcasvit.registry import VISBACKENDS
from mmcasvit.utils.errors import UsageError

# For each tracker: the backend that writes to it.
TRACKERS = dict(
    tensorboard='TensorboardVisBackend',
    wandb='WandbVisBackend',
    mlflow='mmcasvit.MLflowVisBackend',
    clearml='ClearMLVisBackend',
    aim='AimVisBackend',
)


@VISBACKENDS.register_module()
class MLflowVisBackend(MMEngineMLflowVisBackend):
    """mmengine's backend for MLflow, with names of images that MLflow accepts.

    Without a suffix, as mmengine passes them, the first image ends the training. The arguments are those of mmengine.
    """

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Log an image as ``NAME_STEP.png``."""
        super().add_image(f'{name}_{step}.png', image, step, **kwargs)


def use_trackers(cfg: Config, names: Sequence[str]) -> None:
    """Send config, curves and drawn images to trackers of experiments, under the name of the work dir.

    A backend that the config already has stays as it is. MLflow writes to the server of ``MLFLOW_TRACKING_URI``,
    or to the folder ``mlruns`` without one.

    Args:
        cfg: Config to change, with its ``work_dir``.
        names: Some of the keys of :data:`TRACKERS`.

    Raises:
        UsageError: If the package of a tracker is not installed.
    """
    if not names:
        return
    run, server = Path(cfg.work_dir).absolute().name, os.environ.get('MLFLOW_TRACKING_URI')
    settings: dict[str, dict] = dict(
        wandb=dict(init_kwargs=dict(project='mmcasvit', name=run)),
        # The parameters by which one compares runs. MLflow refuses long values, such as the names of many classes.
        mlflow=dict(
            exp_name='mmcasvit',
            run_name=run,
            save_dir='mlruns',
            tracking_uri=server,
            tracked_config_keys=['model', 'optim_wrapper', 'train_cfg'],
        ),
        clearml=dict(init_kwargs=dict(project_name='mmcasvit', task_name=run)),
        aim=dict(init_kwargs=dict(experiment=run)),
    )
    if server is None:
        os.environ.setdefault('MLFLOW_ALLOW_FILE_STORE', 'true')  # MLflow 3 asks for it
    if cfg.get('visualizer') is None:
        cfg.visualizer = dict(type='Visualizer')
    backends = list(cfg.visualizer.get('vis_backends') or [dict(type='LocalVisBackend')])
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f'--track {name}: {name} is not installed: pip install "mmcasvit[{name}]"')
        if not any(backend['type'].endswith(TRACKERS[name].rpartition('.')[2]) for backend in backends):
            backends.append(dict(type=TRACKERS[name], **settings.get(name, {})))
    cfg.visualizer.vis_backends = backends


@contextlib.contextmanager
def refusals_explained() -> Iterator[None]:
    """Turn the error of a tracker that cannot start, such as one without a login, into a :class:`UsageError`."""
    try:
        yield
    except Exception as error:
        starting = [
            frame.f_locals['self']
            for frame, _ in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_name == '_init_env'
        ]
        if not starting:
            raise
        name = next((name for name, kind in TRACKERS.items() if kind.endswith(type(starting[0]).__name__)), '')
        reason = ' '.join(str(error).split())
        raise UsageError(f'--track {name}: {name} cannot start: {reason} (docs/guides/training.md)') from error
