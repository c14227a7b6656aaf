"""Many images are shared by processes, and what any of them has finished is done, whatever happens to the others."""

import json
import multiprocessing
import os
import signal
import sys
import tracemalloc

import numpy as np
import pytest
from helpers.repository import load_tool
from PIL import Image

from mmcasvit.datasets.shapes import draw_scene
from mmcasvit.predict import shares
from mmcasvit.predict.shares import Parts, Share, predict_share
from mmcasvit.predict.sources import find_sources, stream_sources
from mmcasvit.utils.errors import UsageError


class Brightness:
    """Predictor that knows how bright an image is, and cannot resize one that is a single row."""

    def __init__(self, stop_at=None):
        self.stop_at, self.count = stop_at, 0

    def predict(self, images):
        if any(len(image) == 1 for image in images):
            raise ZeroDivisionError('float division by zero')
        self.count += len(images)
        if self.stop_at is not None and self.count > self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return [int(image[0, 0, 0]) for image in images]

    def values(self, sample):
        return dict(value=sample)


@pytest.fixture
def images(tmp_path):
    """Return a folder of 20 gray images in two folders, image i of brightness i."""
    for i in range(20):
        file = tmp_path / f'in/{"ab"[i % 2]}/ü{i}.png'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 6), (i, i, i)).save(file)
    return tmp_path / 'in'


def parts_of(folder, rank=0, count=1, size=3, resume=False, **settings):
    return Parts(folder / 'lines', Share(rank, count), size, settings, resume)


def run(images, folder, rank=0, count=1, batch_size=1, predictor=None, **options):
    parts = parts_of(folder, rank, count, **options)
    return predict_share(lambda: predictor or Brightness(), parts, stream_sources([str(images)]), batch_size)


def lines(folder, pattern='lines/part-*.jsonl'):
    return [json.loads(line) for part in sorted(folder.glob(pattern)) for line in part.read_text().splitlines()]


@pytest.mark.parametrize('count, batch_size', [(1, 1), (1, 4), (3, 2)])
def test_each_image_has_one_line(count, batch_size, images, tmp_path):
    said = [run(images, tmp_path, rank, count, batch_size) for rank in range(count)]
    found = {line['image']: line['value'] for line in lines(tmp_path)}
    assert len(lines(tmp_path)) == 20
    assert found == {f'{"ab"[i % 2]}/ü{i}.png': i for i in range(20)}
    sizes = [len(part.read_text().splitlines()) for part in sorted(tmp_path.glob('lines/part-*'))]
    assert max(sizes) == 3
    assert sum(int(text.split(' images')[0].rpartition(' ')[2]) for text in said) == 20
    assert len(set(said)) == count


def test_images_that_cannot_be_used_have_a_line_that_says_why(images, tmp_path):
    (images / 'cut.jpg').write_bytes(b'no image')
    Image.new('RGB', (50, 1)).save(images / 'row.png')
    said = run(images, tmp_path, batch_size=5)
    assert '22 images, of which 2 cannot be read' in said
    errors = {line['image']: line['error'] for line in lines(tmp_path) if 'error' in line}
    assert errors.keys() == {'cut.jpg', 'row.png'}
    assert 'cannot be read as an image' in errors['cut.jpg']
    assert 'cannot be resized' in errors['row.png']
    assert sorted(line['value'] for line in lines(tmp_path) if 'value' in line) == list(range(20))


def test_a_run_that_is_ended_keeps_its_lines_and_goes_on_with_what_is_missing(images, tmp_path):
    with pytest.raises(KeyboardInterrupt, match=r'7 images are done. Go on with --resume'):
        run(images, tmp_path, predictor=Brightness(stop_at=7))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    before = {part: part.read_bytes() for part in tmp_path.glob('lines/part-*')}
    assert len(lines(tmp_path)) == 7
    with pytest.raises(UsageError, match='--resume'):
        run(images, tmp_path)
    (images / 'new.png').write_bytes((images / 'a/ü0.png').read_bytes())
    for rank in range(2):  # another number of processes
        run(images, tmp_path, rank, 2, resume=True)
    assert len(lines(tmp_path)) == len({line['image'] for line in lines(tmp_path)}) == 21
    assert {part: part.read_bytes() for part in before} == before
    never = pytest.fail  # nothing is left, so no model is built
    parts = parts_of(tmp_path, resume=True)
    assert predict_share(never, parts, stream_sources([str(images)])).startswith('0 images')


def test_parts_of_another_model_are_not_mixed_in(images, tmp_path):
    run(images, tmp_path, weights='a', tiles=None)
    with pytest.raises(UsageError, match=r'other settings \(weights\)'):
        parts_of(tmp_path, resume=True, weights='b', tiles=None)


def test_merging_writes_each_image_once(images, tmp_path):
    run(images, tmp_path)
    parts = parts_of(tmp_path, resume=True)
    twice = parts.all()[0]
    twice.with_name('part-00007-0000000.jsonl').write_text(twice.read_text())
    (tmp_path / 'lines' / f'.part-00003-0000000.jsonl{shares.UNFINISHED}').write_text('{"image": "half')
    assert parts.merge(tmp_path / 'all.jsonl') == 20
    assert sorted(line['value'] for line in lines(tmp_path, 'all.jsonl')) == list(range(20))
    assert not list(tmp_path.rglob(f'*{shares.UNFINISHED}'))


def test_the_names_of_a_folder_are_not_held_in_memory(tmp_path):
    (tmp_path / 'in').mkdir()
    for i in range(1000):
        (tmp_path / f'in/{i:050d}.jpg').touch()
    parts, text = parts_of(tmp_path), str(tmp_path / 'in')
    tracemalloc.start()
    assert sum(1 for _ in parts.missing(stream_sources([text]))) == 1000
    streamed = tracemalloc.get_traced_memory()[1]
    listed = len(list(stream_sources([text])))
    assert tracemalloc.get_traced_memory()[1] > 10 * streamed
    tracemalloc.stop()
    assert listed == 1000


@pytest.mark.parametrize(
    'launcher, names',
    [
        ('pytorch', ['RANK', 'WORLD_SIZE', 'LOCAL_RANK']),
        ('slurm', ['SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID']),
        ('mpi', ['OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK']),
    ],
)
def test_a_process_learns_its_share_from_its_launcher(launcher, names, monkeypatch):
    for name, value in zip(names, '581'):
        monkeypatch.setenv(name, value)
    assert Share.of_launcher(launcher) == Share(5, 8, 1)
    assert Share.of_launcher('none') == Share(0, 1, 0)


# Processes ------------------------------------------------------------------------------------------------------------


def _infer(arguments, rank, kill_after):
    if rank is not None:
        os.environ.update(
            RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT='1'
        )
    add, added = Parts.add, []

    def counted(parts, source, values):
        add(parts, source, values)
        added.append(source)
        if len(added) == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    Parts.add = counted
    sys.argv = ['infer.py', *map(str, arguments)]
    load_tool('infer').main()


def infer(*runs):
    """Run the tool in processes of this one at the same time, and return how they ended."""
    context = multiprocessing.get_context('fork')
    started = [context.Process(target=_infer, args=one) for one in runs]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    return [process.exitcode for process in started]


@pytest.mark.slow
def test_two_processes_one_of_them_killed(files, tmp_path):
    """What it had finished stays, a second run does the rest, and the result is that of a single process."""
    load_tool('infer')
    for i in range(16):
        (tmp_path / f'in/{i % 3}').mkdir(parents=True, exist_ok=True)
        image = draw_scene(np.random.default_rng(i), 64, 96).image
        Image.fromarray(image[..., ::-1]).save(tmp_path / f'in/{i % 3}/{i}.png')
    model = [tmp_path / 'in', files / 'seg.py', files / 'seg.pth', '--device', 'cpu']
    assert infer(([*model, '--lines', '--merge', '--out-dir', tmp_path / 'one'], None, None)) == [0]

    shared = [*model, '--launcher', 'pytorch', '--part-size', 2, '--out-dir', tmp_path / 'two']
    assert infer((shared, 0, None), (shared, 1, 5)) == [0, -signal.SIGKILL]
    before = {part: part.read_bytes() for part in (tmp_path / 'two/lines').glob('part-*')}
    names = [line['image'] for line in lines(tmp_path / 'two')]
    of_first = sum(shares.key_of(source.name.as_posix()) % 2 == 0 for source in find_sources([str(tmp_path / 'in')]))
    assert 5 < of_first < 11
    assert len(set(names)) == len(names) == of_first + 4  # two parts of two, and a fifth image in none

    shared.append('--resume')
    assert infer((shared, 0, None), (shared, 1, None)) == [0, 0]
    assert {part: part.read_bytes() for part in before} == before
    last = [*model, '--lines', '--resume', '--merge', '--out-dir', tmp_path / 'two']
    assert infer((last, None, None)) == [0]

    one, two = (
        {line['image']: line for line in lines(tmp_path / folder, 'predictions.jsonl')} for folder in ('one', 'two')
    )
    assert len(one) == 16
    assert one == two
    assert all(line['width'] == 96 and sum(line['pixels']) == 64 * 96 for line in one.values())
    assert infer((last, None, None)) == [2]  # the merged file is not overwritten
