"""Tools run as a user runs them, from training to testing and predicting."""

import importlib
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.repository import REAL_DATA, ROOT, write_tiny_config

DET = ROOT / 'configs/detection'
SEG = ROOT / 'configs/segmentation'
MASK_RCNN = DET / 'mask-rcnn_casvit-xs_fpn_6e_shapes.py'
RTMDET = ROOT / 'configs/realtime/rtmdet_casvit-xs_24e_shapes.py'
SEMANTIC_FPN = SEG / 'semantic-fpn_casvit-xs_300i_shapes.py'
SMALL_RUN = [
    'train_dataloader.batch_size=2',
    *(
        f'{split}_dataloader.{option}'
        for split in ('train', 'val', 'test')
        for option in ('num_workers=0', 'persistent_workers=False')
    ),
    'default_hooks.logger.interval=1',
    'default_hooks.visualization.interval=1',
]


def one_line(done):
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith('error: ')
    assert 'Traceback' not in done.stderr
    return lines[-1]


def test_a_missing_config_is_named_with_a_similar_one(run_tool, tmp_path):
    done = run_tool('train.py', DET / 'retinanet_casvit-xs_fpn_1x_cocoo.py', cwd=tmp_path, expect=2)
    assert 'config not found' in one_line(done)
    assert 'retinanet_casvit-xs_fpn_1x_coco.py?' in one_line(done)


@pytest.mark.parametrize(
    'config, words',
    [
        (
            DET / 'mask-rcnn_casvit-xs_fpn_1x_coco.py',
            ['annotations/instances_train2017.json', 'cocodataset.org', 'data_root='],
        ),
        (SEG / 'upernet_casvit-xs_8xb2-160k_ade20k-512x512.py', ['ADEChallengeData2016', 'sceneparsing', 'data_root=']),
        (MASK_RCNN, ['tools/make_dataset.py']),
    ],
    ids=['coco', 'ade', 'shapes'],
)
def test_missing_data_is_named_with_how_to_get_it(run_tool, tmp_path, config, words):
    line = one_line(run_tool('train.py', config, cwd=tmp_path, expect=2))
    assert 'data of the train split not found' in line
    assert all(word in line for word in [str(tmp_path), *words])
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_ends_a_test_run_at_once(run_tool, tmp_path, shapes):
    options = ['--cfg-options', f'data_root={shapes}/coco/']
    done = run_tool('test.py', MASK_RCNN, 'none.pth', *options, cwd=tmp_path, expect=2)
    assert f'checkpoint not found: {tmp_path}/none.pth' in one_line(done)
    (tmp_path / 'bad.pth').write_bytes(b'bad')
    done = run_tool('test.py', MASK_RCNN, 'bad.pth', *options, cwd=tmp_path, expect=2)
    assert 'is not a checkpoint, or is damaged' in one_line(done)
    assert [file.name for file in tmp_path.iterdir()] == ['bad.pth']


def test_flags_that_cannot_work_are_refused(run_tool, tmp_path, shapes):
    options = ['--cfg-options', f'data_root={shapes}/coco/']
    torch.save({'state_dict': {'x': torch.ones(1)}}, tmp_path / 'x.pth')
    assert '.pkl' in one_line(
        run_tool('test.py', MASK_RCNN, 'x.pth', '--out', 'x.json', *options, cwd=tmp_path, expect=2)
    )
    assert 'no masks' in one_line(run_tool('test.py', MASK_RCNN, 'x.pth', '--tta', *options, cwd=tmp_path, expect=2))
    if not torch.cuda.is_available():
        assert 'GPU' in one_line(run_tool('train.py', MASK_RCNN, '--amp', *options, cwd=tmp_path, expect=2))
    done = run_tool('train.py', MASK_RCNN, '--pretrained', 'none.pth', *options, cwd=tmp_path, expect=2)
    assert 'checkpoint not found' in one_line(done)


def test_make_dataset_checks_its_folder(run_tool, tmp_path):
    small = ['--train', 2, '--val', 1, '--size', 64, 64]
    run_tool('make_dataset.py', *small, cwd=tmp_path)
    assert 'already exists' in run_tool('make_dataset.py', *small, cwd=tmp_path).stdout
    assert '--force' in one_line(run_tool('make_dataset.py', *small, '--seed', 3, cwd=tmp_path, expect=2))
    assert '2 + 1 images' in run_tool('make_dataset.py', *small, '--seed', 3, '--force', cwd=tmp_path).stdout
    (tmp_path / 'data/shapes/imagenet').rename(tmp_path / 'elsewhere')
    line = one_line(run_tool('make_dataset.py', *small, '--seed', 3, cwd=tmp_path, expect=2))
    assert 'lacks imagenet' in line
    assert '--force' in line
    (tmp_path / 'mine').mkdir()
    assert 'not made by this tool' in one_line(
        run_tool('make_dataset.py', *small, '--out-dir', 'mine', '--force', cwd=tmp_path, expect=2)
    )
    assert 'at least' in one_line(run_tool('make_dataset.py', '--train', 0, cwd=tmp_path, expect=2))


@pytest.fixture(scope='module')
def detector(run_tool, shapes, tmp_path_factory):
    """Train a tiny Mask R-CNN for one epoch and resume it for another; return the folder, options and outputs."""
    cwd = tmp_path_factory.mktemp('detector')
    config = write_tiny_config(cwd / 'tiny.py', MASK_RCNN)
    options = [
        '--cfg-options',
        f'data_root={shapes}/coco/',
        *SMALL_RUN,
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
    ]
    first = run_tool('train.py', config, '--work-dir', 'run', *options, 'train_cfg.max_epochs=1', cwd=cwd)
    second = run_tool('train.py', config, '--work-dir', 'run', '--resume', *options, 'train_cfg.max_epochs=2', cwd=cwd)
    return cwd, options, first.stdout + first.stderr, second.stdout + second.stderr


@pytest.mark.slow
def test_a_detector_trains_and_resumes(detector):
    cwd, _, first, second = detector
    assert 'Epoch(train) [1][4/4]' in first
    assert 'eta:' in first
    assert 'Epoch(train) [2][1/4]' in second
    assert 'Epoch(train) [1]' not in second
    assert 'resumed epoch: 1' in second
    assert (cwd / 'run' / 'epoch_2.pth').is_file()
    assert list((cwd / 'run').rglob('events.out.tfevents*')), 'no TensorBoard curves'
    assert list((cwd / 'run').rglob('vis_image/*')), 'no predictions drawn during evaluation'


@pytest.mark.slow
def test_a_detector_is_tested_drawn_and_dumped(detector, run_tool):
    cwd, options, *_ = detector
    run_tool(
        'test.py',
        'tiny.py',
        'run/epoch_2.pth',
        '--work-dir',
        'test',
        '--out',
        'out.pkl',
        '--show-dir',
        'drawn',
        *options,
        cwd=cwd,
    )
    assert len(pickle.loads((cwd / 'out.pkl').read_bytes())) == 4
    assert len(list((cwd / 'drawn').rglob('*.jpg'))) == 4
    metrics = json.loads(next((cwd / 'test').glob('*/*.json')).read_text())
    assert 'data_time' in metrics
    run_tool(
        'test.py',
        'tiny.py',
        'run/epoch_2.pth',
        '--work-dir',
        'tta',
        '--tta',
        *options,
        'test_evaluator.metric=bbox',
        'model.roi_head.mask_head=None',
        cwd=cwd,
    )


@pytest.mark.slow
def test_a_detector_predicts_on_a_folder(detector, run_tool, shapes):
    cwd, *_ = detector
    config = 'tiny.py'
    images = shapes / 'coco/val2017'
    run_tool('infer.py', images, config, 'run/epoch_2.pth', '--out-dir', 'infer', cwd=cwd)
    assert {file.stem for file in (cwd / 'infer/preds').glob('*.json')} == {file.stem for file in images.iterdir()}
    found = json.loads(next((cwd / 'infer/preds').glob('*.json')).read_text())
    assert {'bboxes', 'labels', 'scores', 'masks'} <= set(found)
    assert len(list((cwd / 'infer/vis').iterdir())) == 4
    (cwd / 'empty').mkdir(exist_ok=True)
    assert 'no image in' in one_line(run_tool('infer.py', 'empty', config, 'run/epoch_2.pth', cwd=cwd, expect=2))
    (cwd / 'broken.jpg').write_bytes(b'x')
    done = run_tool('infer.py', 'broken.jpg', config, 'run/epoch_2.pth', cwd=cwd, expect=2)
    assert 'cannot be read' in one_line(done)
    # A config of another arch.
    line = run_tool('infer.py', images, MASK_RCNN, 'run/epoch_2.pth', cwd=cwd, expect=2).stderr
    assert "expected: arch 'xs', found: a CAS-ViT of depths (1, 1, 1, 1)" in line


# Four of the six classes, in the data and in the heads.
FOUR_CLASSES = [
    f'{split}_dataloader.dataset.metainfo.classes=(disc,square,triangle,star)' for split in ('train', 'val', 'test')
] + [f'model.roi_head.{head}.num_classes=4' for head in ('bbox_head', 'mask_head')]


@pytest.mark.slow
def test_a_checkpoint_of_another_model_is_refused_by_test(detector, run_tool):
    cwd, options, *_ = detector
    done = run_tool('test.py', 'tiny.py', 'run/epoch_2.pth', *options, *FOUR_CLASSES, cwd=cwd, expect=2)
    assert 'another number of classes' in done.stderr.replace('\n', ' ').replace('             ', ' ')


@pytest.mark.slow
def test_training_starts_from_another_number_of_classes_and_says_so(detector, run_tool):
    cwd, options, *_ = detector
    done = run_tool(
        'train.py',
        'tiny.py',
        '--work-dir',
        'tuned',
        *options,
        'load_from=run/epoch_2.pth',
        'train_cfg.max_epochs=1',
        'train_cfg.val_interval=5',
        *FOUR_CLASSES,
        cwd=cwd,
    )
    assert 'fits only part of the model. The rest starts from scratch' in done.stdout + done.stderr
    assert 'Epoch(train) [1][1/' in done.stdout + done.stderr
    write_tiny_config(cwd / 'wider.py', MASK_RCNN, channels=(8, 12, 16, 32))
    done = run_tool(
        'train.py', 'wider.py', '--work-dir', 'tuned', *options, 'load_from=run/epoch_2.pth', cwd=cwd, expect=2
    )
    assert 'nothing was loaded' in done.stderr


@pytest.mark.slow
def test_a_real_time_detector_resumes_and_switches_its_pipeline(run_tool, shapes, tmp_path):
    config = write_tiny_config(tmp_path / 'tiny.py', RTMDET, stages=3)
    options = [
        '--cfg-options',
        f'data_root={shapes}/coco/',
        *SMALL_RUN,
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        'custom_hooks.5.switch_epoch=1',
    ]
    for epochs, more in ((1, []), (2, ['--resume'])):
        run_tool(
            'train.py', config, '--work-dir', 'run', *more, *options, f'train_cfg.max_epochs={epochs}', cwd=tmp_path
        )
    first, second = (file.read_text() for file in sorted(tmp_path.glob('run/*/*.log')))
    assert 'Switch pipeline now!' not in first
    assert 'resumed epoch: 1' in second
    assert 'Switch pipeline now!' in second
    assert 'Epoch(train) [1]' not in second
    saved = torch.load(tmp_path / 'run/epoch_2.pth', weights_only=False)
    assert saved['ema_state_dict'].keys() > {'steps'}


@pytest.mark.slow
def test_a_segmentor_trains_resumes_tests_and_predicts(run_tool, shapes, tmp_path):
    config = write_tiny_config(tmp_path / 'tiny.py', SEMANTIC_FPN)
    options = [
        '--cfg-options',
        f'data_root={shapes}/ade',
        'model.data_preprocessor.size=(64,96)',
        *SMALL_RUN,
        'default_hooks.checkpoint.interval=2',
        'train_cfg.val_interval=2',
    ]
    run_tool('train.py', config, '--work-dir', 'run', *options, 'train_cfg.max_iters=2', cwd=tmp_path)
    second = run_tool(
        'train.py',
        config,
        '--work-dir',
        'run',
        '--resume',
        'run/iter_2.pth',
        *options,
        'train_cfg.max_iters=4',
        cwd=tmp_path,
    )
    text = second.stdout + second.stderr
    assert 'Iter(train) [3/4]' in text
    assert 'Iter(train) [1/4]' not in text
    assert list((tmp_path / 'run').rglob('vis_image/*'))
    run_tool(
        'test.py',
        config,
        'run/iter_4.pth',
        '--work-dir',
        'test',
        '--out',
        'masks',
        '--show-dir',
        'drawn',
        *options,
        cwd=tmp_path,
    )
    assert len(list((tmp_path / 'masks').glob('*.png'))) == 4
    assert len(list((tmp_path / 'drawn').rglob('*.png'))) == 4
    assert 'mIoU' in json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    # The config that the resumed run left says resume=True.
    run_tool('test.py', 'run/tiny.py', 'run/iter_4.pth', '--work-dir', 'tta', '--tta', cwd=tmp_path)
    image = next((shapes / 'coco/val2017').iterdir())
    run_tool('infer.py', image, 'tiny.py', 'run/iter_4.pth', '--out-dir', 'infer', cwd=tmp_path)
    mask = cv2.imread(str(next((tmp_path / 'infer/pred').glob('*.png'))), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (64, 96)
    assert mask.max() < 8
    assert list((tmp_path / 'infer/vis').iterdir())


def test_a_script_of_another_project_runs_with_ours_imported(run_tool, tmp_path):
    (tmp_path / 'beside.py').write_text('found = 1\n')
    code = "import sys, beside\nprint(__name__, sys.argv, 'mmcasvit' in sys.modules, beside.found)\n"
    (tmp_path / 'script.py').write_text(code)
    ours = ROOT / 'mmcasvit/__main__.py'
    done = run_tool(ours, 'run', tmp_path / 'script.py', '--flag', 'x', cwd=tmp_path)
    assert done.stdout.endswith(f"__main__ ['{tmp_path}/script.py', '--flag', 'x'] True 1\n")
    assert 'error: no.py is not a file' in run_tool(ours, 'run', 'no.py', cwd=tmp_path, expect=2).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    'framework, base, options, checkpoint',
    [
        (
            'mmdet',
            MASK_RCNN,
            ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1'],
            'epoch_1.pth',
        ),
        (
            'mmseg',
            SEMANTIC_FPN,
            [
                'train_cfg.max_iters=2',
                'train_cfg.val_interval=2',
                'default_hooks.checkpoint.interval=2',
                'model.data_preprocessor.size=(64,96)',
            ],
            'iter_2.pth',
        ),
    ],
    ids=['mmdet', 'mmseg'],
)
def test_the_tools_of_the_frameworks_train_and_test_our_configs(
    run_tool, shapes, tmp_path, framework, base, options, checkpoint
):
    tools = Path(importlib.import_module(framework).__file__).parent / '.mim' / 'tools'
    config = write_tiny_config(tmp_path / 'tiny.py', base)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'shapes').symlink_to(shapes)  # these tools do not move datasets along with data_root
    options = ['--cfg-options', 'train_dataloader.batch_size=2', *options]
    run_tool(tools / 'train.py', config, '--work-dir', 'run', *options, cwd=tmp_path)
    through_ours = [ROOT / 'mmcasvit/__main__.py', 'run']  # mmdet's imports mmcv's operators before the config
    run_tool(
        *through_ours, tools / 'test.py', config, f'run/{checkpoint}', '--work-dir', 'test', *options, cwd=tmp_path
    )
    metrics = json.loads(next((tmp_path / 'test').glob('*/*.json')).read_text())
    assert {'mmdet': 'coco/segm_mAP', 'mmseg': 'mIoU'}[framework] in metrics


@pytest.mark.slow
@pytest.mark.skipif(not REAL_DATA.is_dir(), reason='no real photographs next to the project')
@pytest.mark.parametrize(
    'config, options',
    [
        (
            'detection/mask-rcnn_casvit-xs_fpn_1x_coco.py',
            ['data_root=coco_mini/', 'train_cfg.max_epochs=1', 'train_dataloader.batch_size=1'],
        ),
        (
            'segmentation/semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512.py',
            [
                'data_root=ade_mini',
                'train_cfg.max_iters=2',
                'train_cfg.val_interval=2',
                'train_dataloader.batch_size=1',
            ],
        ),
    ],
    ids=['coco', 'ade'],
)
def test_unmodified_recipes_run_on_real_photographs(run_tool, tmp_path, config, options):
    """Only the data root, the length and the batch size are overridden."""
    name, place = options[0].split('=')
    root = REAL_DATA / place
    if config.startswith('detection'):  # all images would take minutes
        small = json.loads((root / 'annotations/instances_train2017.json').read_text())
        root = tmp_path / 'coco'
        (root / 'annotations').mkdir(parents=True)
        for split, count in (('train2017', 2), ('val2017', 2)):
            full = json.loads((REAL_DATA / place / f'annotations/instances_{split}.json').read_text())
            kept = full['images'][:count]
            labels = [a for a in full['annotations'] if a['image_id'] in {i['id'] for i in kept}]
            (root / f'annotations/instances_{split}.json').write_text(
                json.dumps({**full, 'images': kept, 'annotations': labels})
            )
            os.symlink(REAL_DATA / place / split, root / split)
        assert len(small['images']) == 100
        place = f'{root}/'
    else:
        root = tmp_path / 'ade'
        for split in ('training', 'validation'):
            for kind, suffix in (('images', '.jpg'), ('annotations', '.png')):
                (root / kind / split).mkdir(parents=True)
                for file in sorted((REAL_DATA / place / kind / split).iterdir())[:2]:
                    assert file.suffix == suffix
                    os.symlink(file, root / kind / split / file.name)
        place = str(root)
    done = run_tool(
        'train.py',
        ROOT / 'configs' / config,
        '--work-dir',
        'run',
        '--cfg-options',
        f'{name}={place}',
        *options[1:],
        cwd=tmp_path,
    )
    text = done.stdout + done.stderr
    assert 'RANDOM weights' in text
    assert 'Epoch(val)' in text or 'Iter(val)' in text
    assert np.isfinite([float(part.split()[0]) for part in text.split(' loss: ')[1:]]).all()
