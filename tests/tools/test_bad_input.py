"""Bad input for the tools. Each case ends in one clear ``error:`` line and exit status 2, or in a correct result.

Nothing is overwritten, and no file is executed that should only be read. The tools run in this process, since starting
Python and importing the frameworks would take longer than a case.
"""

import functools
import importlib
import json
import pickle
import resource
import shutil
import sys
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.attack import Attack
from helpers.repository import ROOT, load_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from PIL import Image

from mmcasvit.datasets.shapes import write_dataset
from mmcasvit.datasets.unreadable import SkipUnreadable
from mmcasvit.weights.integrity import find_whole_checkpoint

CHANNELS = [8, 12, 16, 24]
SINGLE_PROCESS = {
    f'{split}_dataloader': dict(num_workers=0, persistent_workers=False) for split in ('train', 'val', 'test')
}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Return a folder with a dataset, a tiny detector and segmentor, and checkpoints of random weights."""
    root = tmp_path_factory.mktemp('made')
    write_dataset(root / 'shapes', train=4, val=2, seed=3, height=64, width=96)
    for name, base in dict(
        det='detection/mask-rcnn_casvit-xs_fpn_6e_shapes.py', seg='segmentation/semantic-fpn_casvit-xs_300i_shapes.py'
    ).items():
        cfg = Config.fromfile(ROOT / 'configs' / base, import_custom_modules=False)
        cfg.model.backbone.arch = dict(depths=(1, 1, 1, 1), channels=CHANNELS)
        cfg.model.neck.in_channels = CHANNELS
        cfg.merge_from_dict(SINGLE_PROCESS)
        cfg.train_dataloader.batch_size = 2
        length = dict(max_epochs=1) if name == 'det' else dict(max_iters=2, val_interval=2)
        cfg.merge_from_dict(dict(train_cfg=length, default_hooks=dict(checkpoint=dict(interval=1))))
        # Config.dump would take seconds to format the file.
        (root / f'{name}.py').write_text(''.join(f'{key} = {part!r}\n' for key, part in cfg.to_dict().items()))
        init_default_scope(cfg.default_scope)
        importlib.import_module(cfg.default_scope)
        model = MODELS.build(cfg.model)
        meta = dict(dataset_meta=dict(cfg.train_dataloader.dataset.metainfo))
        torch.save(dict(state_dict=model.state_dict(), meta=meta), root / f'{name}.pth')
    return root


@pytest.fixture
def place(made, tmp_path):
    """Return a folder with configs, checkpoints and data that a case may damage."""
    for file in made.iterdir():
        (shutil.copytree if file.is_dir() else shutil.copy)(file, tmp_path / file.name)
    return tmp_path


loaded = functools.cache(load_tool)


@pytest.fixture
def call(monkeypatch, capfd, place):
    """Run a tool in the folder of the case, and return its exit status, stdout and stderr."""
    monkeypatch.chdir(place)
    # Both take seconds, and no case reads their results.
    monkeypatch.setattr('mmengine.runner.runner.collect_env', lambda: {})
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    # A scope is kept under the name of its config and the second. Two cases with one config in one second would
    # share it, and it would not be the current one if a case of the other framework came between.
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())

    def run(tool, *arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *map(str, arguments)])
        status = 0
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                loaded(tool).main()
            except SystemExit as end:
                status = end.code or 0
        printed = capfd.readouterr()
        return status, printed.out, printed.err

    return run


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


def refused(call, place, words, tool, *arguments):
    """Check that a tool exits with status 2 and one error, changes no file, and return the files that it created."""
    before = contents(place)
    status, _, err = call(tool, *arguments)
    error = err[err.rfind('\nerror: ') + 1 :]
    assert status == 2, err[-3000:]
    assert error.startswith('error: '), err[-3000:]
    assert 'Traceback' not in error
    assert all(word in error for word in words), error
    after = contents(place)
    assert {path: after.get(path) for path in before} == before
    assert not (place / 'executed').exists()
    return after.keys() - before.keys()


DATA = dict(det='data_root=shapes/coco/', seg='data_root=shapes/ade')

# Framework, --cfg-options, and words of the error.
CONFIG_CASES = dict(
    unknown_arch=('det', ['model.backbone.arch=xxs'], ['arch', 'xxs', 'xs', 'mmcasvit.CASViT']),
    arch_of_three_stages=('det', ['model.backbone.arch.depths=(1,1,1)'], ['depths', 'mmcasvit.CASViT']),
    unknown_key_of_the_backbone=('det', ['model.backbone.archs=xs'], ['archs', 'mmcasvit.CASViT']),
    arch_of_another_type=('det', ['model.backbone.arch=3'], ['mmcasvit.CASViT', 'arch']),
    out_index_that_does_not_exist=('det', ['model.backbone.out_indices=(0,1,2,7)'], ['mmcasvit.CASViT', '7']),
    unknown_model=('det', ['model.type=MaskRCNNN'], ['MaskRCNNN']),
    channels_that_do_not_fit_the_neck=(
        'det',
        ['model.neck.in_channels=[8,12,16,25]'],
        ['model.neck.in_channels', '[8, 12, 16, 24]'],
    ),
    too_few_channels_for_the_neck=(
        'seg',
        ['model.neck.in_channels=[8,12,16]'],
        ['model.neck.in_channels', '[8, 12, 16, 24]'],
    ),
    fewer_outputs_than_the_neck_takes=(
        'seg',
        ['model.backbone.out_indices=(1,2,3)'],
        ['model.neck.in_channels', '[12, 16, 24]'],
    ),
    unknown_optimizer=('det', ['optim_wrapper.optimizer.type=AdamWW'], ['AdamWW']),
    unknown_key_of_the_optimizer=('det', ['optim_wrapper.optimizer.lrr=1'], ['AdamW', 'lrr']),
    negative_learning_rate=('det', ['optim_wrapper.optimizer.lr=-1'], ['AdamW', '-1']),
    epochs_in_words=('det', ['train_cfg.max_epochs=many'], ['many']),
    unknown_schedule=('seg', ['param_scheduler.0.type=WarmUp'], ['WarmUp']),
    unknown_dataset=('det', ['train_dataloader.dataset.type=CocoData'], ['CocoData']),
    unknown_key_of_the_dataset=('seg', ['train_dataloader.dataset.reduce_zero=True'], ['reduce_zero']),
    unknown_transform=('det', ['train_dataloader.dataset.pipeline.1.type=Flip'], ['Flip']),
    batch_without_images=('det', ['train_dataloader.batch_size=0'], ['batch_size']),
    negative_number_of_workers=('det', ['train_dataloader.num_workers=-1'], ['num_workers']),
    unknown_hook=('det', ['custom_hooks.0.type=Hooked'], ['Hooked']),
    list_entry_that_does_not_exist=('det', ['custom_hooks.9.type=x'], ['--cfg-options', '9']),
    number_where_a_part_belongs=('det', ['model.backbone=3'], ['model.backbone']),
    loader_of_another_type=('det', ['train_dataloader=3'], ['train_dataloader']),
    fewer_classes_than_the_data=('det', ['model.roi_head.bbox_head.num_classes=4'], ['num_classes', '4', '6']),
    more_classes_than_the_data=('seg', ['model.decode_head.num_classes=150'], ['num_classes', '150', '8']),
    missing_weights=(
        'det',
        ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=no.pth'],
        ['checkpoint not found', 'no.pth'],
    ),
    work_dir_below_a_file=('det', ['work_dir=det.pth/run'], ['det.pth is a file']),
    pickled_annotations=('det', ['train_dataloader.dataset.ann_file=../../bomb.pkl'], ['pickle', 'JSON']),
)


@pytest.mark.parametrize('case', CONFIG_CASES)
def test_a_wrong_config_is_one_error_line(case, call, place):
    config, options, words = CONFIG_CASES[case]
    (place / 'bomb.pkl').write_bytes(pickle.dumps(Attack(str(place / 'executed'))))
    refused(call, place, words, 'train', f'{config}.py', '--cfg-options', DATA[config], *options)


BROKEN_CONFIGS = dict(
    syntax_error=('model = dict(', ['broken.py', 'cannot be read']),
    no_scope=('model = dict(type="RetinaNet")', ['default_scope']),
    base_that_does_not_exist=('_base_ = "nowhere.py"', ['cannot be read', 'nowhere.py']),
    module_that_does_not_exist=('_base_ = "det.py"\ncustom_imports = dict(imports=["nowhere"])', ['nowhere']),
    no_model=('default_scope = "mmdet"', ['model']),
)


@pytest.mark.parametrize('case', BROKEN_CONFIGS)
def test_a_config_that_cannot_be_read_is_named(case, call, place):
    text, words = BROKEN_CONFIGS[case]
    (place / 'broken.py').write_text(text)
    assert not refused(call, place, words, 'train', 'broken.py')


def bomb(place):
    torch.save(dict(state_dict=dict(x=torch.ones(1)), bomb=Attack(str(place / 'executed'))), place / 'bad.pth')


def cut_off(place):
    content = (place / 'det.pth').read_bytes()
    (place / 'bad.pth').write_bytes(content[: len(content) // 2])


CHECKPOINTS = dict(
    pickle_bomb=(bomb, ['--trust-checkpoint']),
    bare_pickle_bomb=(
        lambda place: (place / 'bad.pth').write_bytes(pickle.dumps(Attack(str(place / 'executed')))),
        ['bad.pth'],
    ),
    text=(lambda place: (place / 'bad.pth').write_text('weights'), ['is not a checkpoint']),
    no_bytes=(lambda place: (place / 'bad.pth').write_bytes(b''), ['is not a checkpoint']),
    cut_off=(cut_off, ['is not a checkpoint']),
    folder=(lambda place: (place / 'bad.pth').mkdir(), ['not found']),
    no_weights=(lambda place: torch.save(dict(epoch=3), place / 'bad.pth'), ['no weights', 'epoch']),
    list_of_weights=(lambda place: torch.save([torch.ones(1)], place / 'bad.pth'), ['list', 'dict']),
)
READERS = dict(
    train_pretrained=['train', 'det.py', '--pretrained', 'bad.pth', '--cfg-options', DATA['det']],
    train_resume=['train', 'det.py', '--resume', 'bad.pth', '--cfg-options', DATA['det']],
    train_load_from=['train', 'det.py', '--cfg-options', DATA['det'], 'load_from=bad.pth'],
    train_init_cfg=[
        'train',
        'det.py',
        '--cfg-options',
        DATA['det'],
        'model.backbone.init_cfg.type=Pretrained',
        'model.backbone.init_cfg.checkpoint=bad.pth',
    ],
    test=['test', 'det.py', 'bad.pth', '--cfg-options', DATA['det']],
    infer=['infer', 'shapes/coco/val2017', 'det.py', 'bad.pth'],
    convert=['convert_weights', 'bad.pth', 'new.pth'],
)


@pytest.mark.parametrize(
    'kind, reader',
    [(kind, 'test') for kind in CHECKPOINTS]
    + [(kind, reader) for reader in READERS for kind in ('pickle_bomb', 'bare_pickle_bomb') if reader != 'test'],
)
def test_a_bad_checkpoint_is_refused_and_not_executed(kind, reader, call, place):
    make, words = CHECKPOINTS[kind]
    make(place)
    refused(call, place, words, *READERS[reader])
    assert not (place / 'new.pth').exists()


def test_the_bomb_goes_off_if_it_is_trusted(call, place):
    """Otherwise the cases above would prove nothing."""
    bomb(place)
    call('convert_weights', 'bad.pth', '--trust-checkpoint')
    assert (place / 'executed').exists()


def test_a_work_dir_that_points_to_a_bomb_is_not_resumed(call, place):
    bomb(place)
    (place / 'run').mkdir()
    (place / 'run/last_checkpoint').write_text(str(place / 'bad.pth'))
    refused(call, place, ['bad.pth'], 'train', 'det.py', '--work-dir', 'run', '--resume', '--cfg-options', DATA['det'])


def rename_weights(place, make):
    content = torch.load(place / 'det.pth')
    content['state_dict'] = make(content['state_dict'])
    torch.save(content, place / 'bad.pth')


@pytest.mark.parametrize('tool', ['test', 'infer'])
@pytest.mark.parametrize('case', ['classes', 'arch', 'other_names'])
def test_a_checkpoint_of_another_model_is_refused(case, tool, call, place):
    rename_weights(
        place,
        dict(
            classes=lambda w: {k: v[:-1] if 'fc_cls' in k else v for k, v in w.items()},
            arch=lambda w: {k: v for k, v in w.items() if 'network.6' not in k},
            other_names=lambda w: {f'model.{k}': v for k, v in w.items()},
        )[case],
    )
    words = dict(classes='another number of classes', arch='missing', other_names='No name in the file')[case]
    arguments = READERS[tool]
    refused(call, place, [words], *arguments)
    assert not list(place.rglob('outputs/preds/*'))


def annotations(place, change, split='train'):
    file = place / f'shapes/coco/annotations/instances_{split}2017.json'
    content = json.loads(file.read_text())
    file.write_text(json.dumps(change(content)))
    return file


def rename_images(place, name):
    annotations(place, lambda c: dict(c, images=[dict(image, file_name=name) for image in c['images']]))


DATA_CASES = dict(
    empty_annotation_file=(lambda p: annotations(p, dict).write_text(''), ['instances_train2017.json', 'categories']),
    annotation_file_of_another_kind=(lambda p: annotations(p, lambda c: c['images']), ['categories']),
    annotation_file_cut_off=(
        lambda p: annotations(p, dict).write_text('{"categories": [{"id": 1, "name": "x"'),
        ['categories'],
    ),
    no_instances=(lambda p: annotations(p, lambda c: dict(c, annotations=[])), ['CocoDataset', 'no image']),
    no_images=(lambda p: annotations(p, lambda c: dict(c, annotations=[], images=[])), ['CocoDataset', 'no image']),
    categories_in_another_order=(
        lambda p: annotations(p, lambda c: dict(c, categories=c['categories'][::-1])),
        ['another order', 'disc', 'ring', 'check_dataset'],
    ),
    missing_category=(
        lambda p: annotations(p, lambda c: dict(c, categories=c['categories'][1:])),
        ["'disc'", 'classes'],
    ),
    path_out_of_the_data_root=(lambda p: rename_images(p, '../../../det.pth'), ['outside the dataset', 'det.pth']),
    absolute_path=(lambda p: rename_images(p, '/etc/passwd'), ['outside the dataset', '/etc/passwd']),
    unreadable_images=(
        lambda p: [f.write_text('x') for f in (p / 'shapes/coco/train2017').iterdir()],
        ['could not be read', 'check_dataset'],
    ),
)


@pytest.mark.parametrize('case', DATA_CASES)
def test_bad_data_ends_training_with_an_error(case, call, place):
    spoil, words = DATA_CASES[case]
    spoil(place)
    refused(
        call,
        place,
        words,
        'train',
        'det.py',
        '--cfg-options',
        DATA['det'],
        'val_dataloader=None',
        'val_cfg=None',
        'val_evaluator=None',
        'train_dataloader.dataset.pipeline.0.limit=2',
    )


def test_bad_annotations_do_not_end_training(call, place):
    def spoil(content):
        images = [image['id'] for image in content['images']]
        for annotation in content['annotations']:
            if annotation['image_id'] == images[0]:
                annotation.pop('segmentation')
            elif annotation['image_id'] == images[1]:
                annotation['segmentation'] = dict(size=[64, 96], counts=[1, 10**9])
        content['images'][2]['file_name'] = 'http://127.0.0.1:9/x.jpg'
        return content

    annotations(place, spoil)
    off = ['val_dataloader=None', 'val_cfg=None', 'val_evaluator=None', 'default_hooks.checkpoint.save_best=None']
    status, _, err = call('train', 'det.py', '--work-dir', 'run', '--cfg-options', DATA['det'], *off)
    assert status == 0, err[-3000:]
    skipped = next((place / 'run').rglob('skipped_images.txt')).read_text()
    assert [words in skipped for words in ('has no segmentation', 'add up to', 'contains ://')] == [True] * 3


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_training_skips_an_image_that_was_cut_off(tmp_path, suffix, backend):
    """OpenCV fills in the missing rest of an image that is decoded from memory, without an error."""
    image = tmp_path / f'x.{suffix}'
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(image)
    whole = image.read_bytes()
    read = SkipUnreadable([dict(type='LoadImageFromFile', imdecode_backend=backend)])
    assert read(dict(img_path=str(image)))['img'].shape == (64, 64, 3)
    for lost in (100, len(whole) // 2):
        image.write_bytes(whole[:-lost])
        assert read(dict(img_path=str(image))) is None
    assert list(read.skipped.read()) == [str(image)]


@pytest.mark.parametrize(
    'workers, harm',
    [(0, lambda image: image.write_bytes(b'')), (1, Path.unlink)],
    ids=['empty', 'deleted, read by a worker'],
)
def test_an_evaluation_names_an_image_that_cannot_be_read(call, place, workers, harm):
    image = sorted((place / 'shapes/coco/val2017').iterdir())[0]
    harm(image)
    refused(
        call,
        place,
        [image.name, 'could not be read'],
        'test',
        'det.py',
        'det.pth',
        '--cfg-options',
        DATA['det'],
        f'test_dataloader.num_workers={workers}',
    )


def test_a_segmentor_without_images_is_an_error(call, place):
    for file in (place / 'shapes/ade/images/training').iterdir():
        file.unlink()
    refused(call, place, ['BaseSegDataset', 'no image'], 'train', 'seg.py', '--cfg-options', DATA['seg'])


# Images -------------------------------------------------------------------------------------------------------------


def save(image, name='x.png', **options):
    image.save(name, **options)
    return name


def rotated(size):
    image = Image.new('RGB', size, (200, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    return save(image, 'x.jpg', exif=exif)


def sixteen_bits(size):
    return save(Image.fromarray(np.full(size[::-1], 40000, np.uint16)))


IMAGES = {
    '1x1': (lambda: save(Image.new('RGB', (1, 1))), (1, 1)),
    '31x31': (lambda: save(Image.new('RGB', (31, 31))), (31, 31)),
    'long': (lambda: save(Image.new('RGB', (20000, 1))), (20000, 1)),
    'grayscale': (lambda: save(Image.new('L', (60, 40), 9)), (60, 40)),
    'RGBA': (lambda: save(Image.new('RGBA', (60, 40), (9, 9, 9, 9))), (60, 40)),
    '16 bit': (lambda: sixteen_bits((60, 40)), (60, 40)),
    'CMYK': (lambda: save(Image.new('CMYK', (60, 40)), 'x.jpg'), (60, 40)),
    'palette': (lambda: save(Image.new('P', (60, 40))), (60, 40)),
    'black and white': (lambda: save(Image.new('1', (60, 40))), (60, 40)),
    'EXIF-rotated': (lambda: rotated((60, 40)), (40, 60)),
}


@pytest.mark.slow
@pytest.mark.parametrize('config', ['det', 'seg'])
@pytest.mark.parametrize('kind', IMAGES)
def test_an_image_of_any_kind_gets_a_prediction_of_its_size(kind, config, call, place):
    make, (width, height) = IMAGES[kind]
    name = make()
    if (kind, config) == ('1x1', 'seg'):  # mmseg's visualizer mistakes a single label for an index
        refused(call, place, ['a single pixel'], 'infer', name, 'seg.py', 'seg.pth')
        return
    status, _, err = call('infer', name, f'{config}.py', f'{config}.pth')
    assert status == 0, err
    if config == 'seg':
        mask = np.asarray(Image.open(place / 'outputs/pred/x.png'))
        assert mask.shape == (height, width)
        assert mask.max() < 8
    else:
        found = json.loads((place / 'outputs/preds/x.json').read_text())
        assert all(mask['size'] == [height, width] for mask in found['masks'])
        boxes = np.array(found['bboxes']).reshape(-1, 4)
        assert np.isfinite(boxes).all()
        assert (boxes >= 0).all()
        assert (boxes <= np.array([width, height, width, height])).all()


def half(name):
    rng = np.random.default_rng(0)
    save(Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)), name)
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[: len(content) // 2])


FILES = dict(
    no_bytes=lambda: Path('x.jpg').write_bytes(b''),
    text=lambda: Path('x.jpg').write_text('no image'),
    half_a_jpeg=lambda: half('x.jpg'),
    half_a_png=lambda: half('x.png'),
    only_a_header=lambda: Path('x.jpg').write_bytes(b'\xff\xd8\xff\xe0'),
)


@pytest.mark.parametrize('kind', FILES)
def test_a_file_that_is_not_a_whole_image_is_refused(kind, call, place):
    FILES[kind]()
    name = next(place.glob('x.*')).name
    assert not refused(call, place, [name, 'cannot be read'], 'infer', name, 'det.py', 'det.pth')


def test_images_whose_predictions_would_overwrite_each_other_are_refused(call, place):
    (place / 'two').mkdir()
    for suffix in ('png', 'jpg'):
        Image.new('RGB', (9, 9)).save(place / f'two/x.{suffix}')
    refused(call, place, ['x.jpg', 'x.png', 'same name'], 'infer', 'two', 'det.py', 'det.pth')


def test_an_eps_or_icon_is_refused_before_the_model_is_built(call, place):
    for format in ('EPS', 'ICO', 'TGA'):
        Image.new('RGB', (16, 16)).save(place / 'x.jpg', format=format)
        refused(call, place, ['x.jpg cannot be read', 'formats'], 'infer', 'x.jpg', 'det.py', 'missing.pth')


OPTIONS = {
    'a GPU that is not there': (['--device', 'cuda:7'], ['--device', 'cuda:7']),
    'no device': (['--device', 'gpu'], ['--device', 'gpu']),
    'no batch': (['--batch-size', 0], ['--batch-size', 'at least 1, got 0']),
    'no number': (['--score-thr', 'nan'], ['--score-thr', 'got nan']),
    'too high': (['--score-thr', 1.5], ['--score-thr', 'got 1.5']),
}


@pytest.mark.parametrize('case', OPTIONS)
def test_options_of_a_prediction_are_checked_before_the_model_is_built(case, call, place):
    options, words = OPTIONS[case]
    refused(call, place, words, 'infer', 'shapes/coco/val2017', 'det.py', 'missing.pth', *options)


@pytest.mark.parametrize('more', ['model.pop("backbone")', 'del test_dataloader'])
def test_a_config_that_cannot_predict_is_refused_before_the_model_is_built(more, call, place):
    with (place / 'det.py').open('a') as file:
        file.write(f'{more}\n')
    words = ['det.py', 'backbone' if 'backbone' in more else 'test_dataloader']
    refused(call, place, words, 'infer', 'shapes/coco/val2017', 'det.py', 'missing.pth')


@pytest.mark.parametrize('config, folder, suffix', [('det', 'preds', 'json'), ('seg', 'pred', 'png')])
def test_predictions_are_named_after_their_images_and_not_overwritten(config, folder, suffix, call, place):
    for name in ('b.png', 'a/x.jpg', 'a/c/x.jpg'):
        (place / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (64, 48), 'red').save(place / 'in' / name)
    arguments = ['infer', 'in', f'{config}.py', f'{config}.pth', '--out-dir', 'in/out', '--device', 'cpu']
    status, out, err = call(*arguments, '--batch-size', 2)
    assert status == 0, err
    assert '3 images' in out
    found = sorted(str(path.relative_to(place / 'in/out')) for path in (place / 'in/out').rglob('*.*'))
    drawn = ['vis/a/c/x.jpg', 'vis/a/x.jpg', 'vis/b.png']
    assert found == [f'{folder}/{name}.{suffix}' for name in ('a/c/x', 'a/x', 'b')] + drawn
    if config == 'det':
        content = json.loads((place / 'in/out/preds/b.json').read_text())
        classes = Config.fromfile('det.py').train_dataloader.dataset.metainfo['classes']
        assert content['label_names'] == [classes[label] for label in content['labels']]
    refused(
        call, place, ['exist already', '--force', f'in/out/{folder}'], *arguments[:3], 'missing.pth', *arguments[4:]
    )
    (place / f'in/out/{folder}/b.{suffix}').write_text('old')
    status, _, err = call(*arguments, '--force')
    assert status == 0, err
    assert (place / f'in/out/{folder}/b.{suffix}').read_bytes() != b'old'


def test_labels_have_the_names_of_the_config_if_the_checkpoint_has_none(call, place):
    content = torch.load(place / 'det.pth')
    torch.save(dict(state_dict=content['state_dict']), place / 'bare.pth')
    image = next((place / 'shapes/coco/val2017').iterdir())
    assert call('infer', image, 'det.py', 'bare.pth', '--device', 'cpu')[0] == 0
    found = json.loads((place / f'outputs/preds/{image.stem}.json').read_text())
    assert found['labels']
    assert set(found['label_names']) <= {'disc', 'square', 'triangle', 'star', 'cross', 'ring'}


# Disks --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Limit the size of files to a few lines, which a program cannot tell from a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_an_error_of_check_dataset(call, place, full_disk):
    (place / 'shapes/coco/train2017/000000000001.jpg').unlink()
    status, _, err = call('check_dataset', 'det.py', '--workers', 1, '--fix', '--cfg-options', DATA['det'])
    assert (status, 'error: ' in err, 'Traceback' in err) == (2, True, False)
    assert not list(place.rglob('*.fixed*'))


@pytest.mark.parametrize(
    'arguments',
    [
        ['train', 'det.py', '--work-dir', 'det.pth', '--cfg-options', DATA['det']],
        ['test', 'det.py', 'det.pth', '--work-dir', 'det.py/x', '--cfg-options', DATA['det']],
        ['infer', 'shapes/coco/val2017', 'det.py', 'det.pth', '--out-dir', 'det.pth'],
        ['infer', 'shapes/coco/val2017', 'seg.py', 'seg.pth', '--out-dir', 'det.pth/x'],
        ['convert_weights', 'det.pth', 'det.py/x.pth', '--config', 'det.py'],
        ['convert_weights', 'det.pth', 'seg.pth', '--config', 'det.py'],
    ],
    ids=lambda arguments: ' '.join(arguments[:1] + arguments[-1:]),
)
def test_output_that_cannot_be_written_is_an_error(arguments, call, place):
    assert not refused(call, place, [], *arguments)


# Runs that cannot continue -------------------------------------------------------------------------------------------

RUN = """
_base_ = 'seg.py'
train_cfg = dict(max_iters=9, val_interval=9)
val_dataloader = val_cfg = val_evaluator = None
default_hooks = dict(checkpoint=dict(interval={interval}, save_best=None))
{more}
"""
# The learning rate is 0.001 for two iterations and 1e30 after that.
EXPLODING = """
optim_wrapper = dict(optimizer=dict(lr=1e30))
param_scheduler = [dict(type='ConstantLR', factor=1e-33, by_epoch=False, begin=0, end=3)]
"""


def stopped(place, status, err, *words):
    """Check for exit status 1 and one error with the reason and the last good checkpoint, and return its name."""
    error = err[err.rfind('\nerror: ') + 1 :]
    assert status == 1, err[-3000:]
    assert error.startswith('error: training stopped'), err[-3000:]
    assert 'Traceback' not in err
    assert all(word in error for word in words), error
    last = Path(find_whole_checkpoint(place / 'run'))
    assert f'The last good checkpoint is {last}.' in error
    return last.name


def test_an_exploding_loss_ends_the_run_with_its_status(call, place):
    (place / 'exploding.py').write_text(RUN.format(interval=2, more=EXPLODING))
    status, _, err = call('train', 'exploding.py', '--work-dir', 'run', '--cfg-options', DATA['seg'])
    assert stopped(place, status, err, 'iteration 4', 'nan', 'invalid_loss_iter_4.pth') == 'iter_2.pth'
    assert (place / 'run/invalid_loss_iter_4.pth').is_file()


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def test_a_disk_that_fills_up_ends_the_run_with_its_status(place, tool_server):
    """The second checkpoint holds the two averages of the optimizer and is too large for the disk."""
    (place / 'full.py').write_text(RUN.format(interval=1, more='optim_wrapper = dict(accumulative_counts=2)'))
    limit = int(2.6 * (place / 'seg.pth').stat().st_size)
    train = [ROOT / 'tools/train.py', 'full.py', '--work-dir', 'run', '--cfg-options', DATA['seg']]
    done = tool_server.run('-c', LIMITED, limit, *train, cwd=place)
    assert stopped(place, done.returncode, done.stderr, 'iter_2.pth', 'could not be written') == 'iter_1.pth'
    assert sorted(path.name for path in (place / 'run').glob('*.pth*')) == ['iter_1.pth']
