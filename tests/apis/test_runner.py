"""What the runner of the tools changes in mmengine's."""

import torch
from helpers import toy_run
from mmengine.config import Config

from mmcasvit.apis.runner import build_runner


class Images(toy_run.Pictures):
    def __init__(self, pipeline):
        assert pipeline == []


def test_a_run_formats_its_config_once(tmp_path, monkeypatch):
    formatted = []

    def format_code(text, **options):
        formatted.append(text)
        return f'# formatted\n{text}', True

    for module in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):
        monkeypatch.setattr(f'{module}.FormatCode', format_code, raising=False)
    cfg = Config(toy_run.config(tmp_path, by_epoch=False, interval=4) | dict(randomness=dict(seed=7)))
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.type = Images
    build_runner(cfg).train()
    assert len(formatted) == len(set(formatted)) > 0
    saved = torch.load(tmp_path / 'iter_12.pth', weights_only=False)
    assert saved['meta']['cfg'] == f'# formatted\n{formatted[-1]}'
    cfg.work_dir = 'another'
    assert "work_dir='another'" in cfg.pretty_text
