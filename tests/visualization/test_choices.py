import os
from pathlib import Path

import pytest
from helpers.repository import ROOT

from mmcasvit import list_configs
from mmcasvit.utils.errors import UsageError
from mmcasvit.visualization.choices import check_choice, confine, find_runs


def test_runs_are_found_with_the_best_checkpoint_first(tmp_path, monkeypatch):
    for place, names in dict(
        a=['a.py', 'epoch_1.pth', 'epoch_2.pth', 'best_x_epoch_1.pth', 'notes.txt'], none=['b.py'], loose=['c.pth']
    ).items():
        (tmp_path / place).mkdir()
        for age, name in enumerate(names):
            (tmp_path / place / name).touch()
            os.utime(tmp_path / place / name, (100 + age, 100 + age))
    checkpoints = ['best_x_epoch_1.pth', 'epoch_2.pth', 'epoch_1.pth']
    assert find_runs([tmp_path]) == {str(tmp_path / 'a/a.py'): [str(tmp_path / 'a' / name) for name in checkpoints]}
    monkeypatch.chdir(tmp_path)
    assert find_runs([Path('a')]) == {'a/a.py': [f'a/{name}' for name in checkpoints]}


def test_only_files_of_the_given_folders_are_opened(tmp_path, monkeypatch):
    inside, outside = tmp_path / 'in', tmp_path / 'out'
    for folder in (inside, outside):
        folder.mkdir()
        (folder / 'x.pth').touch()
    (inside / 'link.pth').symlink_to(outside / 'x.pth')
    (inside / 'circle.pth').symlink_to(inside / 'circle.pth')
    monkeypatch.chdir(tmp_path)
    assert confine('in/x.pth', [outside, Path('in')]) == inside / 'x.pth'
    assert confine('in/../in/x.pth', [Path('in')]) == inside / 'x.pth'
    for path in ('in/../out/x.pth', str(outside / 'x.pth'), 'in/link.pth', 'out/none.pth', '/etc/passwd', '~/x.pth'):
        with pytest.raises(UsageError, match='lies outside of the folders'):
            confine(path, [Path('in')])
    for path in ('in/none.pth', 'in', 'in/circle.pth', 'in/' + 'x' * 5000, 'in/x\0.pth'):
        with pytest.raises(UsageError, match=r'file not found|is not a valid path'):
            confine(path, [Path('in')])


def test_a_config_is_of_a_run_or_of_the_project(tmp_path):
    work = tmp_path / 'work'
    (work / 'detector').mkdir(parents=True)
    for name in ('tiny-detector.py', 'epoch_1.pth'):
        (work / 'detector' / name).touch()
    checkpoint = str(work / 'detector/epoch_1.pth')
    for config in (
        list_configs()[0],
        str(ROOT / 'configs/detection/retinanet_casvit-xs_fpn_6e_shapes.py'),
        str(work / 'detector/tiny-detector.py'),
    ):
        assert Path(check_choice(config, checkpoint, [work])[0]).is_file()
    for config, file, words in (
        (None, checkpoint, 'choose a config'),
        ('x', '', 'choose a checkpoint'),
        (str(ROOT / 'setup.py'), checkpoint, 'outside'),
        (list_configs()[0], 'http://127.0.0.1:1/x.pth', 'outside'),
    ):
        with pytest.raises(UsageError, match=words):
            check_choice(config, file, [work])
