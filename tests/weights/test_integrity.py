"""Which checkpoints are whole, which of them a run resumes from, and renames that survive a crash."""

import os
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import flip, save, truncate

from mmcasvit import WeightsError
from mmcasvit.weights import integrity
from mmcasvit.weights.integrity import damage, find_whole_checkpoint, read_pointer, rename_durably, write_text


@pytest.mark.parametrize(
    'harm',
    [truncate, flip, Path.unlink, lambda file: file.write_bytes(b'')],
    ids=['truncated', 'one bit', 'gone', 'empty'],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tmp_path, harm, monkeypatch):
    said = []
    monkeypatch.setattr('mmcasvit.weights.integrity.print_log', lambda text, **_: said.append(text))
    save(tmp_path, 3, 6, 9, 12)  # the last one is of an earlier, longer run
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_9.pth'))
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_9.pth')
    harm(tmp_path / 'iter_9.pth')
    assert damage(tmp_path / 'iter_9.pth')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')
    [warning] = said
    assert 'iter_9.pth' in warning
    assert 'iter_6.pth' in warning
    truncate(tmp_path / 'iter_6.pth')
    truncate(tmp_path / 'iter_3.pth')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_12.pth')
    assert 'iter_3.pth' in said[-1]
    truncate(tmp_path / 'iter_12.pth')
    with pytest.raises(WeightsError, match=r'iter_9.*iter_6.*iter_3.*iter_12'):
        find_whole_checkpoint(tmp_path)


def test_without_a_pointer_the_newest_whole_file_counts_and_an_empty_folder_has_none(tmp_path):
    assert find_whole_checkpoint(tmp_path) is None
    save(tmp_path, 3, 6)
    (tmp_path / '.iter_9.pth.unfinished').write_bytes(b'half')
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')
    moved = tmp_path / 'moved'
    moved.mkdir()
    save(moved, 3)
    (moved / 'last_checkpoint').write_text('elsewhere/iter_3.pth')
    assert find_whole_checkpoint(moved) == str(moved / 'iter_3.pth')


@pytest.mark.parametrize('content', [b'', b'\xff\xfe\x00', b'iter_9\x00.pth', b'nowhere/iter_9.pth'])
def test_a_pointer_that_leads_nowhere_gives_way_to_the_newest_file(tmp_path, content):
    save(tmp_path, 3, 6)
    (tmp_path / 'last_checkpoint').write_bytes(content)
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_6.pth')


def test_the_steps_before_the_last_one_come_first_and_then_the_newest_of_the_others(tmp_path):
    changed = {'iter_2': 90, 'iter_9': 10, 'iter_10': 80, 'iter_11': 50, 'epoch_1': 60, 'best_x': 99, 'iter_12x': 98}
    for name, seconds in changed.items():
        torch.save({}, tmp_path / f'{name}.pth')
        os.utime(tmp_path / f'{name}.pth', (seconds, seconds))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_10.pth'))
    taken = []
    while len(taken) < 5:
        taken.append(Path(find_whole_checkpoint(tmp_path)))
        taken[-1].write_bytes(b'')
    assert [path.stem for path in taken] == ['iter_10', 'iter_9', 'iter_2', 'epoch_1', 'iter_11']
    with pytest.raises(WeightsError, match=r'^(?!.*(best|12x)).*Start again in another work dir'):
        find_whole_checkpoint(tmp_path)


def test_a_last_checkpoint_without_a_step_gives_way_to_the_newest(tmp_path):
    save(tmp_path, 3, 6)
    os.utime(tmp_path / 'iter_3.pth', (9, 9))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'final.pth'))
    (tmp_path / 'final.pth').touch()
    assert find_whole_checkpoint(tmp_path) == str(tmp_path / 'iter_3.pth')


def test_the_others_are_looked_for_next_to_the_last_one(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'out').mkdir()
    save(tmp_path / 'out', 3, 6)
    save(tmp_path / 'run', 1)
    (tmp_path / 'run/last_checkpoint').write_text(str(tmp_path / 'out/iter_6.pth'))
    truncate(tmp_path / 'out/iter_6.pth')
    assert find_whole_checkpoint(tmp_path / 'run') == str(tmp_path / 'out/iter_3.pth')


def test_a_pointer_leads_to_the_file_it_names_before_one_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ('run', 'out'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'iter_3.pth').touch()
    assert read_pointer('run') is None
    for named, meant in [
        ('out/iter_3.pth\n', 'out/iter_3.pth'),
        ('gone/iter_3.pth', 'run/iter_3.pth'),
        ('gone/iter_6.pth', 'gone/iter_6.pth'),
    ]:
        Path('run/last_checkpoint').write_text(named)
        assert read_pointer('run') == Path(meant)


def test_damage_is_described(tmp_path):
    save(tmp_path, 3)
    assert damage(tmp_path / 'iter_3.pth') == ''
    assert damage(tmp_path / 'iter_6.pth') == 'it does not exist'
    flip(tmp_path / 'iter_3.pth')
    assert damage(tmp_path / 'iter_3.pth').startswith('the checksum of iter_3/data/0 is wrong')
    truncate(tmp_path / 'iter_3.pth')
    assert damage(tmp_path / 'iter_3.pth').startswith('it is truncated or not a checkpoint')


@pytest.mark.parametrize('suffix', ['.pth', '.pt'])
def test_a_sharded_checkpoint_is_whole_if_all_of_its_parts_are(tmp_path, suffix):
    folder = tmp_path / 'iter_3.pth'
    (folder / 'optim').mkdir(parents=True)
    (folder / '.metadata').write_text('not a checkpoint')
    assert damage(folder) == 'parts of it are missing or damaged'
    for part in ('a', 'optim/b'):
        torch.save({}, folder / f'{part}{suffix}')
    assert damage(folder) == ''
    (folder / f'optim/b{suffix}').write_bytes(b'')
    assert damage(folder) == 'parts of it are missing or damaged'


@pytest.fixture
def steps(monkeypatch):
    """The inodes that are brought to the disk, and renames, in their order."""
    found, replace = [], os.replace
    monkeypatch.setattr(integrity.os, 'fsync', lambda handle: found.append(os.fstat(handle).st_ino))
    monkeypatch.setattr(integrity.os, 'replace', lambda *paths: (found.append('rename'), replace(*paths)))
    return found


def test_content_reaches_the_disk_before_its_name_and_then_the_folder(tmp_path, steps):
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new/part').write_text('new')
    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/gone').touch()
    handles = len(os.listdir('/proc/self/fd'))
    rename_durably(tmp_path / 'new', tmp_path / 'old')
    parts = [(tmp_path / name).stat().st_ino for name in ('old/part', 'old', '.')]
    assert steps == [*parts[:2], 'rename', parts[2]]
    assert [path.name for path in (tmp_path / 'old').iterdir()] == ['part']
    assert len(os.listdir('/proc/self/fd')) == handles


def test_a_small_file_is_replaced_as_a_whole(tmp_path, steps):
    (tmp_path / 'pointer').write_text('old and longer')
    write_text(tmp_path / 'pointer', 'new')
    assert steps == [(tmp_path / 'pointer').stat().st_ino, 'rename', tmp_path.stat().st_ino]
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {'pointer': 'new'}


def test_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / 'pipe.pth')
    assert damage(tmp_path / 'pipe.pth') == 'it is not a file'
