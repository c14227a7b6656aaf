import sys

import cv2
import pytest
import torch
from helpers.repository import ROOT, load_tool
from helpers.tiny_models import TWINS, tiny_config, tiny_model


@pytest.fixture(scope='module')
def image_file(shapes):
    return shapes / 'coco/val2017/000000000001.jpg'


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Run tools/visualize.py in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)
    module = load_tool('visualize')

    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['visualize.py', *map(str, args)])
        module.main()

    return run


def test_the_tool_writes_a_figure(tool, image_file, tmp_path, capsys):
    cfg = tiny_config('semantic_fpn')
    cfg.dump(tmp_path / 'tiny.py')
    torch.save(dict(state_dict=tiny_model('semantic_fpn').state_dict()), tmp_path / 'tiny.pth')
    tool(image_file, 'tiny.py', 'tiny.pth', '--out', 'new/seen.jpg', '--category', 'sky', '--device', 'cpu')
    printed = capsys.readouterr().out
    assert 'new/seen.jpg: 4 stages, ' in printed
    assert cv2.imread('new/seen.jpg').shape[1] > 1500


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['none.jpg'], 'not found'),
        (['.'], 'is a folder'),
        (['bad.jpg'], 'cannot be read as an image'),
        (['IMAGE', '--out', 'x.txt'], 'must end in .png'),
        (['IMAGE', '--score-thr', '2'], 'between 0 and 1'),
        (['IMAGE', '--out', 'bad.jpg/x.png'], 'bad.jpg is a file'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_input_is_one_line(tool, image_file, tmp_path, capsys, arguments, words):
    (tmp_path / 'bad.jpg').write_bytes(b'bad')
    first, *others = [image_file if argument == 'IMAGE' else argument for argument in arguments]
    with pytest.raises(SystemExit) as ended:
        tool(first, ROOT / 'configs/segmentation' / f'{TWINS["semantic_fpn"]}.py', 'none.pth', *others)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith('error: ')
    assert words in error[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ['bad.jpg']
