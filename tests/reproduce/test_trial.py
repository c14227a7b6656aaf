"""The whole command on small twins as the published models, whose figures tools/test.py has measured first.

``pytest -s tests/reproduce/test_trial.py`` prints the table.
"""

import json
import pickle
import re
import shutil

import pytest
import torch
import yaml
from helpers.checkpoints import truncate
from helpers.repository import ROOT, write_tiny_config
from helpers.tiny_backbone import CHANNELS
from helpers.tiny_models import TWINS, tiny

KINDS = dict(mask_rcnn='detection', semantic_fpn='segmentation', retinanet='detection', upernet='segmentation')


def find_objects(predictions, annotations):
    """Make the best predictions on each image its objects, so that an untrained detector has an AP."""
    with open(predictions, 'rb') as file:
        results = pickle.load(file)
    objects = []
    for result in results:
        found = result['pred_instances']
        for index in found['scores'].argsort(descending=True)[:4].tolist():
            left, top, right, bottom = found['bboxes'][index].tolist()
            mask = found['masks'][index]
            objects.append(
                dict(
                    id=len(objects) + 1,
                    image_id=result['img_id'],
                    category_id=int(found['labels'][index]) + 1,
                    bbox=[left, top, right - left, bottom - top],
                    area=(right - left) * (bottom - top),
                    iscrowd=0,
                    segmentation=dict(size=list(map(int, mask['size'])), counts=mask['counts'].decode()),
                )
            )
    content = json.loads(annotations.read_text())
    assert [category['id'] for category in content['categories']] == list(range(1, 7))
    annotations.write_text(json.dumps(dict(content, annotations=objects)))


@pytest.fixture
def zoo(shapes, tmp_path, run_tool):
    """Return a folder with an index, configs, weights, and data of four twins.

    The figures of two of them are right, except for one mask AP. The file of one is damaged, and that of one is absent.
    """
    shutil.copytree(shapes, tmp_path / 'data/shapes')
    twins = {name: ROOT / 'configs' / KINDS[name] / f'{TWINS[name]}.py' for name in KINDS}
    for name in ('mask_rcnn', 'semantic_fpn'):
        twins[name] = write_tiny_config(tmp_path / f'tiny-{name}.py', twins[name], CHANNELS)
    (tmp_path / 'weights').mkdir()
    files = {name: tmp_path / 'weights' / f'{config.stem}.pth' for name, config in twins.items()}
    for name in ('mask_rcnn', 'semantic_fpn', 'retinanet'):
        weights = tiny(name).state_dict()
        if name == 'semantic_fpn':
            weights['decode_head.conv_seg.bias'] = 9 * torch.eye(8)[0]  # all is sky, for a mIoU above 1
        torch.save(dict(state_dict=weights, meta={}), files[name])
    truncate(files['retinanet'])

    def metrics(name, work_dir, *more):
        run_tool('test.py', twins[name], files[name], '--work-dir', work_dir, *more, cwd=tmp_path)
        (result,) = (tmp_path / work_dir).glob('*/*.json')
        return json.loads(result.read_text())

    metrics('mask_rcnn', 'first', '--out', 'predictions.pkl')
    find_objects(tmp_path / 'predictions.pkl', tmp_path / 'data/shapes/coco/annotations/instances_val2017.json')
    detector, segmentor = metrics('mask_rcnn', 'second'), metrics('semantic_fpn', 'third')
    box, mask = (100 * detector[f'coco/{kind}_mAP'] for kind in ('bbox', 'segm'))
    assert 10 < box < 100, 'an AP of 0 or 100 would not show a wrong scale'
    assert 10 < mask < 100
    assert 1 < segmentor['mIoU'] < 100
    figures = dict(
        mask_rcnn={'box AP': round(box, 1), 'mask AP': round(mask + 1.5, 1)},
        semantic_fpn={'mIoU': round(segmentor['mIoU'], 1)},
        retinanet={'box AP': 40.0},
        upernet={'mIoU': 80.0},
    )
    models = [
        dict(
            Name=config.stem,
            Alias=name.replace('_', '-'),
            Config=config.name if config.parent == tmp_path else config.relative_to(ROOT).as_posix(),
            Results=[dict(Metrics=figures[name])],
            Weights='http://127.0.0.1:9/absent',
        )
        for name, config in twins.items()
    ]
    (tmp_path / 'metafile.yml').write_text(yaml.safe_dump(dict(Models=models)))
    (tmp_path / 'index.yml').write_text('Import: [metafile.yml]\n')
    return tmp_path


@pytest.mark.slow
def test_figures_of_a_small_zoo(zoo, run_tool, tool_server, monkeypatch):
    monkeypatch.setenv('PYTHON_EXEC', str(tool_server.python))  # the evaluations are forked as well
    monkeypatch.setenv('TORCH_HOME', str(zoo / 'torch'))
    arguments = ['reproduce.py', '--index', 'index.yml', '--weights', 'weights', '--out', 'out']
    printed = run_tool(*arguments, cwd=zoo, expect=1).stdout
    page = (zoo / 'out/evaluated.md').read_text()
    print(f'\n{page}')
    assert page in printed
    rows = {tuple(line.split(' | ')[:2]): line.split(' | ') for line in page.splitlines() if line.startswith('| ')}
    assert rows['| mask-rcnn', 'box AP'][5:7] == ['agrees', '4']
    assert rows['| mask-rcnn', 'mask AP'][5] == 'differs'
    assert -1.6 < float(rows['| mask-rcnn', 'mask AP'][4]) < -1.4
    assert rows['| semantic-fpn', 'mIoU'][5:7] == ['agrees', '4']
    assert rows['| retinanet', 'box AP'][5] == 'failed'
    assert rows['| upernet', 'mIoU'][5] == 'missing'
    assert re.search(r'^- retinanet: .*retinanet_\S+\.pth is not a checkpoint, or is damaged', page, re.MULTILINE)
    assert re.search(r'^- upernet: upernet could not be downloaded: .* save it as \S+/upernet_', page, re.MULTILINE)
    assert re.search(r'^1\. .*CPU cores.*, PyTorch .*, mmengine .*, mmcv .*, mmdet .*, mmcasvit ', page, re.MULTILINE)
    assert re.search(r'^2\. .*, mmseg ', page, re.MULTILINE)
    before = (zoo / 'out/evaluated/tiny-semantic_fpn/row.json').stat().st_mtime_ns
    again = run_tool(*arguments, '--tables', 'segmentation', cwd=zoo).stdout
    assert again.startswith('2 checkpoints: 1 measured before, 0 to measure, 1 at a time\nmissing:\n- upernet: ')
    assert (zoo / 'out/evaluated/tiny-semantic_fpn/row.json').stat().st_mtime_ns == before
    assert '| mask-rcnn | box AP |' in (zoo / 'out/evaluated.md').read_text()
