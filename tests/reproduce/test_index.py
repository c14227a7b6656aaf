"""The model index agrees with the configs: what is published for a config is what the config measures."""

from pathlib import Path

import pytest
import yaml
from helpers.repository import ROOT
from mmengine.config import Config

from mmcasvit.apis.preflight import metric_names
from mmcasvit.apis.published import list_published
from mmcasvit.benchmark.published import PUBLISHED
from mmcasvit.reproduce.plan import FIGURES, tables_of

PUBLISHED_WEIGHTS = list_published()
MODELS = {
    model['Name']: model
    for metafile in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    for model in yaml.safe_load((ROOT / metafile).read_text())['Models']
}
# Framework, folder, validation images or list, and number of classes, by the dataset of the metafiles.
DATASETS = {
    'COCO': ('mmdet', 'data/coco', 'val2017', 80),
    'ADE20K': ('mmseg', 'data/ade/ADEChallengeData2016', 'images/validation', 150),
    'ImageNet-1k': ('mmpretrain', 'data/imagenet', 'val', 1000),
}
TABLES = dict(mmdet='detection', mmseg='segmentation', mmpretrain='classification')


def measured(evaluator):
    if evaluator.type == 'Accuracy':
        return {f'accuracy/top{k}' for k in evaluator.topk}
    return metric_names(evaluator)


def classes(part):
    """Return the numbers of classes of all heads of a model."""
    if not isinstance(part, dict):
        return set()
    own = {part['num_classes']} if 'num_classes' in part else set()
    return own.union(*map(classes, part.values()))


@pytest.mark.parametrize('weights', PUBLISHED_WEIGHTS, ids=lambda weights: weights.alias)
def test_the_config_measures_what_is_published(weights):
    model = MODELS[weights.name]
    cfg = Config.fromfile(ROOT / weights.config, import_custom_modules=False)
    (dataset,) = {result['Dataset'] for result in model['Results']}
    scope, folder, validation, number = DATASETS[dataset]
    data = cfg.test_dataloader.dataset
    assert cfg.default_scope == scope
    assert tables_of(weights) == {TABLES[scope]}
    assert Path(data.data_root) == Path(cfg.data_root) == Path(folder)
    images = data.data_prefix if scope == 'mmpretrain' else next(iter(data.data_prefix.values()))
    assert Path(images) == Path(validation)
    assert not data.get('indices')
    assert {FIGURES[name].metric for name in weights.results} <= measured(cfg.test_evaluator)
    if scope == 'mmdet':
        assert cfg.test_evaluator.ann_file == 'data/coco/annotations/instances_val2017.json'
        assert ('mask AP' in weights.results) == ('mask_head' in cfg.model.get('roi_head', {}))
    assert classes(cfg.model) == {number}


@pytest.mark.parametrize('weights', PUBLISHED_WEIGHTS, ids=lambda weights: weights.alias)
def test_the_metadata_is_that_of_the_config(weights):
    about = MODELS[weights.name]['Metadata']
    cfg = Config.fromfile(ROOT / weights.config, import_custom_modules=False)
    arch = cfg.model.backbone.arch
    assert f'casvit-{arch}_' in weights.name
    assert arch in weights.alias.split('-')
    assert about.get('Epochs') == cfg.train_cfg.get('max_epochs')
    assert about.get('Iterations') == cfg.train_cfg.get('max_iters')
    if 'Image Size' in about:
        resize = cfg.test_dataloader.dataset.pipeline[-2]
        assert about['Image Size'] in (resize.get('crop_size'), *resize.get('scale', ()))
    # The dense recipes keep the BatchNorm statistics of the ImageNet weights; the classifiers at 384 are fine-tuned.
    fine_tuned = bool(cfg.model.backbone.get('norm_eval')) or '_ft-' in weights.name
    assert weights.start == (arch if fine_tuned else None)


def test_the_figures_of_the_benchmark_are_those_of_the_index():
    for weights in PUBLISHED_WEIGHTS:
        arch = weights.alias.rpartition('-')[2]
        if weights.alias == f'mask-rcnn-{arch}':
            assert weights.results == {'box AP': PUBLISHED[arch].box_ap, 'mask AP': PUBLISHED[arch].mask_ap}
        elif weights.alias == f'semantic-fpn-{arch}':
            assert weights.results == {'mIoU': PUBLISHED[arch].miou}
