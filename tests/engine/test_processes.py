"""Two processes on a CPU train as one does at the same total batch, step by step, and end together."""

import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
import torch
from helpers import configs
from helpers.repository import ROOT
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.testing import assert_close

from mmcasvit.apis.config import load_config
from mmcasvit.apis.runner import build_runner
from mmcasvit.datasets.shapes import THINGS, write_dataset
from mmcasvit.engine.distributed import use_cpus

CHANNELS = [8, 12, 16, 24]
TOTAL_BATCH, STEPS = 4, 6
# Sums over a batch are added up in another order: the losses of float32 then differ by a few 1e-7 of their size, and
# after some steps by little more. What is wrong with a batch, a norm or a gradient shows from 1e-4 on.
RTOL = 1e-5
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='mmengine would put the models on the GPUs')


@HOOKS.register_module()
class KeepCurves(Hook):
    """Writes down what each process logs: the log itself has the first one's alone."""

    def after_train(self, runner):
        curves = {
            name: torch.tensor(values.data[0])
            for name, values in runner.message_hub.log_scalars.items()
            if 'loss' in name
        }
        torch.save(curves, f'{runner.work_dir}/curves_{runner.rank}.pth')


@HOOKS.register_module()
class Fail(Hook):
    """Has the first process end in its second iteration, and notes when.

    If both have ended when torchrun looks, it takes the first one for the cause.
    """

    def __init__(self, how):
        self.how = how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 0 and runner.iter == 1:
            with open(f'{runner.work_dir}/ended', 'w') as file:
                file.write(str(time.time()))
            if self.how == 'killed':
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('the first process has had enough')


def _be_a_new_process():
    """Undo what a fork hands on and a new interpreter would not have."""
    torch.set_num_threads(1)
    # A store of torchrun, once collected here, would wait for a thread that only the other process has.
    gc.freeze()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _train_with_others(cfg):
    _be_a_new_process()
    cfg.launcher = 'pytorch'
    use_cpus(cfg)
    build_runner(cfg).train()


def _train(rank, processes, port, cfg, dtype):
    torch.set_default_dtype(dtype)
    if processes == 1:
        _be_a_new_process()
        build_runner(cfg).train()
        return
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)
    )
    _train_with_others(cfg)


def train(cfg, work_dir, processes, dtype=torch.float32, **changes):
    """Train in processes forked from this one, and return the losses that each of them logged."""
    cfg = Config(dict(cfg.to_dict(), work_dir=str(work_dir), **changes))
    cfg.train_dataloader.batch_size = TOTAL_BATCH // processes
    cfg.visualizer.name = str(work_dir)  # not the one, with a thread, that a run in this process may have left
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('fork')
    started = [context.Process(target=_train, args=(rank, processes, port, cfg, dtype)) for rank in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * processes
    return [torch.load(work_dir / f'curves_{rank}.pth') for rank in range(processes)]


@pytest.fixture(scope='module', autouse=True)
def _ready():
    """Has done here, once, what each process would spend its time on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.runner.runner.collect_env', lambda: {})
        patch.setattr('mmengine._strategy.base.collect_env', lambda: {})
        for module in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # the latter in mmengine 0.10.7
            patch.setattr(f'{module}.FormatCode', lambda text, **_: (text, True), raising=False)
        for late in ('mmdet', 'mmseg'):
            importlib.import_module(f'{late}.utils').register_all_modules(init_default_scope=False)
        for late in ('matplotlib.pyplot', 'torch._inductor', 'torchvision', 'mmcv.ops'):
            with contextlib.suppress(ImportError, RuntimeError):
                importlib.import_module(late)
        yield
        gc.collect()  # torchrun's stores, which tests that fork later would inherit


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Images that differ, all with the boxes of the first one, so that any two have as many anchors to learn."""
    root = tmp_path_factory.mktemp('data') / 'shapes'
    write_dataset(root, train=8, val=1, seed=1, height=64, width=96)
    file = root / 'coco/annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    boxes = [box for box in content['annotations'] if box['image_id'] == content['images'][0]['id']]
    copies = [dict(box, image_id=image['id']) for image in content['images'] for box in boxes]
    content['annotations'] = [dict(box, id=number) for number, box in enumerate(copies, 1)]
    file.write_text(json.dumps(content))
    return root


def recipe(name, data_root, model, pipeline, dataset, **train_cfg):
    """A full recipe with a small model and small images, whose weights move within a few steps."""
    cfg = load_config(str(ROOT / 'configs' / name), dict(data_root=str(data_root)))
    cfg.merge_from_dict(
        dict(
            model=dict(backbone=dict(arch=dict(_delete_=True, depths=[1] * 4, channels=CHANNELS)), **model),
            train_dataloader=dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline, **dataset)),
            train_cfg=train_cfg,
            optim_wrapper=dict(optimizer=dict(lr=2e-3)),
            default_hooks=dict(checkpoint=dict(save_best=None)),
        )
    )
    for split in ('val', 'test'):
        cfg.update({f'{split}_dataloader': None, f'{split}_cfg': None, f'{split}_evaluator': None})
    cfg.update(dict(param_scheduler=None, log_level='ERROR', randomness=dict(seed=3, deterministic=True)))
    next(hook for hook in cfg.custom_hooks if hook.type == 'mmcasvit.StageHealthHook').interval = 2
    cfg.custom_hooks.append(dict(type='KeepCurves'))
    return cfg


@pytest.fixture(scope='module')
def detector(data):
    base = load_config(str(ROOT / 'configs/detection/retinanet_casvit-xs_fpn_1x_coco.py'))
    read = base.train_dataloader.dataset.pipeline[0]
    return recipe(
        'detection/retinanet_casvit-xs_fpn_1x_coco.py',
        f'{data}/coco/',
        model=dict(
            neck=dict(in_channels=CHANNELS[1:], out_channels=16),
            bbox_head=dict(in_channels=16, feat_channels=16, num_classes=len(THINGS)),
        ),
        # A flip would move boxes over the grid of anchors; the colors are random enough.
        pipeline=[
            read,
            dict(type='Resize', scale=(96, 64), keep_ratio=True),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackDetInputs'),
        ],
        dataset=dict(metainfo=dict(classes=tuple(THINGS))),
        max_epochs=STEPS // 2,
    )


@pytest.fixture(scope='module')
def segmentor(data):
    base = load_config(str(ROOT / 'configs/segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py'))
    pipeline = base.train_dataloader.dataset.pipeline
    pipeline[1].scale, pipeline[2].crop_size = (96, 64), (64, 64)
    return recipe(
        'segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py',
        data / 'ade',
        model=dict(
            data_preprocessor=dict(size=(64, 64)),
            neck=dict(in_channels=CHANNELS, out_channels=16),
            # Dropout is drawn for each process, and so for another shape.
            decode_head=dict(in_channels=[16] * 4, channels=16, num_classes=8, dropout_ratio=0.0),
        ),
        pipeline=pipeline,
        max_iters=STEPS,
        dataset=dict(type='BaseSegDataset', metainfo=dict(classes=tuple('abcdefgh')), reduce_zero_label=True),
    )


@pytest.fixture(scope='module')
def one_process(detector, tmp_path_factory):
    """The work dir and the losses of the detector that one process trains."""
    work_dir = tmp_path_factory.mktemp('one')
    return work_dir, train(detector, work_dir, 1)[0]


def assert_same_losses(several, one, rtol=RTOL):
    """The mean over processes, each with a part of the batch, is the loss of the whole batch, at every step."""
    total = one['train/loss']
    assert len(total) == STEPS
    assert total.std() > 1e-3 * total.mean()
    for name, losses in one.items():
        assert_close(sum(part[name] for part in several) / len(several), losses, rtol=rtol, atol=0.0)
    # A process that trained on its own part alone would not pass: the parts are told apart.
    apart = several[0]['train/loss'] - several[1]['train/loss']
    assert (apart.abs() > 10 * RTOL * total).any()


def test_a_detector_has_the_same_losses_at_every_step(detector, one_process, tmp_path):
    assert_same_losses(train(detector, tmp_path, 2), one_process[1])
    (file,) = tmp_path.glob('*/vis_data/scalars.json')
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [entry['step'] for entry in entries if 'stages/spread_4' in entry] == [2, 4, 6]


def test_a_segmentor_with_synchronized_norms_has_the_same_losses_at_every_step(segmentor, tmp_path):
    assert segmentor.model.decode_head.norm_cfg.type == 'SyncBN'
    # In float64, because training with batch statistics enlarges the rounding of float32 by a hundred in six steps,
    # on some processors beyond the tolerance.
    two, [one] = (train(segmentor, tmp_path / str(n), n, torch.float64) for n in (2, 1))
    assert_same_losses(two, one, rtol=1e-9)


def test_sharded_training_has_the_same_losses_and_is_resumed(detector, one_process, tmp_path):
    sharded = dict(runner_type='FlexibleRunner', strategy=dict(type='mmcasvit.FSDPStrategy'))
    work_dir, losses = one_process
    stopped = train(detector, tmp_path, 2, **sharded, train_cfg=dict(detector.train_cfg, max_epochs=2))
    last = tmp_path / 'epoch_2.pth'
    last.write_bytes(last.read_bytes()[:-100])
    resumed = train(detector, tmp_path, 2, **sharded, resume=True)
    # The log that the resumed processes began with is that of the first one, from the checkpoint of the first epoch.
    assert_same_losses(
        [
            {name: torch.cat([before[name][:2], after[name][2:]]) for name in losses}
            for before, after in zip(stopped, resumed)
        ],
        losses,
    )
    files = [torch.load(folder / 'epoch_3.pth') for folder in (tmp_path, work_dir)]
    assert files[0]['meta']['dataset_meta'] == files[1]['meta']['dataset_meta']
    assert_close(files[0]['state_dict'], files[1]['state_dict'], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('how', ['killed', 'raises'])
def test_a_process_that_ends_stops_the_others_in_seconds_with_its_own_error(segmentor, tmp_path, how):
    cfg = Config(dict(segmentor.to_dict(), work_dir=str(tmp_path)))
    cfg.train_dataloader.batch_size = 1
    cfg.visualizer.name = str(tmp_path)
    cfg.custom_hooks.append(dict(type='Fail', how=how))
    # What torchrun starts its scripts with; a function that is split off has everything imported.
    torchrun = elastic_launch(
        LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=2,
            run_id=how,
            max_restarts=0,
            rdzv_backend='c10d',
            rdzv_endpoint='127.0.0.1:0',
            start_method='fork',
        ),
        _train_with_others,
    )
    with pytest.raises(ChildFailedError) as caught:
        torchrun(cfg)
    # torchrun itself would lose its patience after 30 seconds.
    assert time.time() - float((tmp_path / 'ended').read_text()) < 20
    assert 0 in caught.value.failures
    assert ('the first process has had enough' if how == 'raises' else 'Signal 9 (SIGKILL)') in str(caught.value)


@pytest.mark.parametrize(
    'name',
    [
        'detection/retinanet_casvit-m_fpn_1x_coco.py',
        'detection/mask-rcnn_casvit-m_fpn_1x_coco.py',
        'segmentation/semantic-fpn_casvit-m_8xb4-40k_ade20k-512x512.py',
        'segmentation/upernet_casvit-m_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_no_parameter_is_without_a_gradient_whatever_is_frozen_or_in_the_batch(name):
    """Else DistributedDataParallel would stop, or have to look for such parameters in each step.

    test_configs.py sees to the same for each config as it is.
    """
    cfg = configs.load(name)
    assert cfg.model.backbone.drop_path_rate > 0
    cfg.model.backbone.update(arch=dict(depths=(1, 1, 1, 1), channels=CHANNELS), with_cp=True, frozen_stages=1)
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = [CHANNELS[i] for i in cfg.model.backbone.get('out_indices', range(4))]
    else:
        cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = CHANNELS, CHANNELS[2]
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = (64, 64)
    if 'mask-rcnn' in name:
        cfg.model.roi_head.bbox_head.fc_out_channels = 32  # most of the time
    model = configs.build(cfg).train()
    assert not all(weight.requires_grad for weight in model.backbone.parameters())
    for empty in (False, True):
        batch = configs.random_batch(cfg, (64, 64))
        for sample in batch['data_samples'] if empty else ():
            if cfg.default_scope == 'mmseg':
                sample.gt_sem_seg.data[:] = 255
            else:
                sample.gt_instances = sample.gt_instances[:0]
        model.zero_grad()
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
        assert torch.isfinite(loss)
        loss.backward()
        assert [key for key, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []
