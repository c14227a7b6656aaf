"""Checks before a run: missing data are named together with the way to get them."""

import pytest
from helpers.repository import ROOT
from mmengine.config import Config

from mmcasvit.apis.preflight import check_data, check_launcher, check_schedule, check_writable
from mmcasvit.utils.errors import UsageError


def test_missing_images_are_named_with_the_way_to_get_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    dataset = Config.fromfile(ROOT / 'configs/classification/_base_/imagenet.py').train_dataloader.dataset
    cfg = Config(dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset)))
    for missing in ('data/imagenet', 'data/imagenet/train'):
        words = rf'train split not found: {tmp_path}/{missing}\. .*image-net\.org.*data_root=DIR'
        with pytest.raises(UsageError, match=words):
            check_data(cfg, 'train')
        (tmp_path / missing).mkdir(parents=True)
    check_data(cfg, 'train')


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(train_cfg=dict(max_epochs=0)), r'max_epochs must be an integer of at least 1, got 0'),
        (dict(train_cfg=dict(max_iters='9')), r"max_iters must be an integer of at least 1, got '9'"),
        (dict(train_cfg=dict(val_interval=0)), r'val_interval must be'),
        (dict(randomness=dict(seed=-1)), r'seed must be an integer from 0 to .*, got -1'),
        (
            dict(default_hooks=dict(checkpoint=dict(save_best='coco/bbox_mAP_5'))),
            r"save_best is 'coco/bbox_mAP_5', which CocoMetric does not measure. Did you mean 'coco/bbox_mAP_50'\?",
        ),
        (dict(default_hooks=dict(checkpoint=dict(save_best=['auto', 'mIoU']))), r"save_best is 'mIoU'"),
        (
            dict(
                val_evaluator=dict(_delete_=True, type='IoUMetric', iou_metrics=['mDice']),
                default_hooks=dict(checkpoint=dict(save_best='mDise')),
            ),
            r"save_best is 'mDise', which IoUMetric does not measure. Did you mean 'mDice'\?",
        ),
        (dict(val_evaluator=dict(_delete_=True, type='IoUMetric', iou_metrics=['IoU'])), r"no iou_metrics 'IoU'"),
    ],
)
def test_what_would_stop_a_run_late_stops_it_early(change, words):
    cfg = Config.fromfile(ROOT / 'configs/detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py')
    check_schedule(cfg)
    cfg.merge_from_dict(change)
    with pytest.raises(UsageError, match=words):
        check_schedule(cfg)


@pytest.mark.parametrize('config', sorted((ROOT / 'configs').glob('*/*casvit-xs_*.py')), ids=lambda path: path.stem)
def test_our_configs_pass(config):
    check_schedule(Config.fromfile(config))


@pytest.mark.parametrize('launcher, how', dict(pytorch='torchrun', slurm='srun', mpi='mpirun').items())
def test_a_launcher_that_did_not_launch_is_named(monkeypatch, launcher, how):
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=f'--launcher {launcher}: .* not set.*{how}'):
        check_launcher(launcher)
    check_launcher('none')


def test_a_folder_whose_name_cannot_be_logged_is_refused(tmp_path):
    check_writable(tmp_path / 'ü')
    with pytest.raises(UsageError, match=r"x.udcff' is not valid UTF-8"):
        check_writable(tmp_path / 'x\udcff')
