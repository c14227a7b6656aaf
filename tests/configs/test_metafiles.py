"""The model index lists every config, with the results of the README and the links of the page on weights."""

import re

import pytest
import yaml
from helpers.repository import ROOT

INDEX = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
METAFILES = {name: yaml.safe_load((ROOT / name).read_text()) for name in INDEX}
MODELS = [model for metafile in METAFILES.values() for model in metafile['Models']]
ARCHS = ('xs', 's', 'm', 't')
WEIGHTS = 'docs/guides/weights.md'
# Row of the tables of results: configs and metric in the metafiles.
ROWS = {
    'ImageNet-1K top-1, 224 / 384 px': [
        ('casvit-{}_8xb128-300e_in1k-224', 'Top 1 Accuracy'),
        ('casvit-{}_ft-8xb64-30e_in1k-384', 'Top 1 Accuracy'),
    ],
    'RetinaNet 1x, COCO box AP': [('retinanet_casvit-{}_fpn_1x_coco', 'box AP')],
    'Mask R-CNN 1x, COCO box AP': [('mask-rcnn_casvit-{}_fpn_1x_coco', 'box AP')],
    'Mask R-CNN 1x, COCO mask AP': [('mask-rcnn_casvit-{}_fpn_1x_coco', 'mask AP')],
    'Semantic FPN 40k, ADE20K mIoU': [('semantic-fpn_casvit-{}_8xb4-40k_ade20k-512x512', 'mIoU')],
}


def published_figures(page):
    """Yield config name, metric, figure and link of each cell of a page's table."""
    for label, places in ROWS.items():
        (row,) = re.findall(rf'^\| {re.escape(label)} \|(.*)\|$', (ROOT / page).read_text(), re.MULTILINE)
        for arch, cell in zip(ARCHS, row.split('|'), strict=True):
            figures = re.findall(r'(?:\[([\d.]+)\]\((\S+)\))|(\d[\d.]*)', cell)
            for (config, metric), (linked, link, plain) in zip(places, figures, strict=True):
                yield config.format(arch), metric, float(linked or plain), link


def test_the_index_lists_every_metafile():
    assert sorted(INDEX) == sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/metafile.yml'))


def test_every_recipe_is_listed_once_under_its_own_name():
    listed = [model['Config'] for model in MODELS]
    recipes = [path for path in ROOT.glob('configs/*/*.py') if 'shapes' not in path.name]
    assert sorted(listed) == sorted(path.relative_to(ROOT).as_posix() for path in recipes)
    assert all(model['Config'].endswith(f'/{model["Name"]}.py') for model in MODELS)


@pytest.mark.parametrize('name', INDEX)
def test_a_metafile_names_the_source_of_its_models(name):
    metafile = METAFILES[name]
    collections = {collection['Name'] for collection in metafile['Collections']}
    assert {model['In Collection'] for model in metafile['Models']} == collections
    for collection in metafile['Collections']:
        assert collection['Paper']['URL'] == 'https://arxiv.org/abs/2408.03703'
        assert (ROOT / collection['README']).is_file()


def test_collection_names_are_unique():
    names = [collection['Name'] for metafile in METAFILES.values() for collection in metafile['Collections']]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize('page', ['README.md', WEIGHTS])
def test_figures_match_the_pages_and_are_marked_as_the_authors(page):
    figures = {
        (model['Name'], metric): value
        for model in MODELS
        for result in model.get('Results', ())
        for metric, value in result['Metrics'].items()
    }
    assert figures == {(config, metric): value for config, metric, value, _ in published_figures(page)}
    for model in MODELS:
        if 'Results' in model or 'Weights' in model:
            assert model['Metadata']['Reported By'] == 'the authors'
            assert model['Metadata']['Reproduced'] is False


def test_links_match_the_page_on_weights_and_are_unique():
    links = {model['Name']: model['Weights'] for model in MODELS if 'Weights' in model}
    assert links == {config: link for config, _, _, link in published_figures(WEIGHTS) if link}
    assert not [link for *_, link in published_figures('README.md') if link]
    assert set(links) == {model['Name'] for model in MODELS if 'Results' in model}
    assert len(set(links.values())) == len(links)


def test_published_weights_have_a_short_name():
    aliases = {model['Alias']: model['Name'] for model in MODELS if 'Alias' in model}
    assert sorted(aliases.values()) == sorted(model['Name'] for model in MODELS if 'Weights' in model)
    for alias, name in aliases.items():
        kind, arch, size = re.fullmatch(rf'(?:(\S+)-)?({"|".join(ARCHS)})(-384)?', alias).groups()
        assert name.startswith(f'{kind}_casvit-{arch}_' if kind else f'casvit-{arch}_')
        assert name.endswith('384') == bool(size)


def test_the_schedule_matches_the_name():
    schedules = {
        '1x': ('Epochs', 12),
        '3x': ('Epochs', 36),
        '30e': ('Epochs', 30),
        '300e': ('Epochs', 300),
        '600e': ('Epochs', 600),
        '40k': ('Iterations', 40000),
        '160k': ('Iterations', 160000),
    }
    for model in MODELS:
        (named,) = [schedules[part] for part in re.split('[-_]', model['Name']) if part in schedules]
        assert [(unit, model['Metadata'][unit]) for unit in ('Epochs', 'Iterations') if unit in model['Metadata']] == [
            named
        ]
