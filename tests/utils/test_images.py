"""Images are read by named formats only."""

import io
import os
import stat

import mmcv
import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import check_images, find_images, open_image, read_named_formats_only


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """Put a program of the name of Ghostscript first, and return the file that it leaves when it runs."""
    program = tmp_path / 'bin/gs'
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntouch {tmp_path}/was_here\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv('PATH', f'{program.parent}{os.pathsep}{os.environ["PATH"]}')
    monkeypatch.setattr(EpsImagePlugin, 'gs_binary', None)
    Image.init()
    monkeypatch.setattr(Image, 'ID', list(Image.OPEN))
    return tmp_path / 'was_here'


@pytest.fixture
def eps(tmp_path):
    Image.new('RGB', (8, 8)).save(tmp_path / 'x.jpg', format='EPS')
    return tmp_path / 'x.jpg'


def test_an_eps_starts_no_program(ghostscript, eps):
    with pytest.raises(UsageError, match='none of the formats JPEG'):
        check_images([str(eps)])
    with pytest.raises(Image.UnidentifiedImageError):
        open_image(io.BytesIO(eps.read_bytes()))
    assert not ghostscript.exists()


def test_readers_that_name_no_format_start_no_program(ghostscript, eps):
    read_named_formats_only()
    with pytest.raises(Image.UnidentifiedImageError):
        mmcv.imfrombytes(eps.read_bytes(), backend='pillow')
    assert not ghostscript.exists()
    Image.new('RGB', (8, 8)).save(eps, format='JPEG')
    assert mmcv.imfrombytes(eps.read_bytes(), backend='pillow').shape == (8, 8, 3)


def test_the_program_runs_where_any_format_is_read(ghostscript, eps):
    """Otherwise the cases above would prove nothing."""
    with pytest.raises(OSError):  # it leaves no image
        Image.open(eps).load()
    assert ghostscript.exists()


@pytest.mark.parametrize('format', ['ICO', 'TGA', 'GIF', 'PPM'])
def test_other_formats_are_refused_in_one_line(format, tmp_path):
    Image.new('RGB', (16, 16)).save(tmp_path / 'x.png', format=format)
    with pytest.raises(UsageError, match=r'x\.png cannot be read as an image: it has none of the formats') as error:
        check_images([str(tmp_path / 'x.png')])
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_a_tiff_of_32_bits_is_refused_in_one_line(kind, tmp_path):
    Image.fromarray(np.ones((16, 16), kind)).save(tmp_path / 'x.tif')
    with pytest.raises(UsageError, match='cannot be read by OpenCV: its TIFF holds pixels of mode'):
        check_images([str(tmp_path / 'x.tif')])


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / 'x.jpg')
    with pytest.raises(OSError, match='not a file'):
        open_image(tmp_path / 'x.jpg')
    with pytest.raises(UsageError, match='no image in'):
        find_images(tmp_path)
    with pytest.raises(UsageError, match='not found'):
        find_images(tmp_path / 'x.jpg')


def test_subfolders_are_searched_and_the_results_left_out(tmp_path):
    for name in ('b.JPG', 'a/x.png', 'a/c/x.png', 'out/vis/b.JPG'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / name)
    found = find_images(tmp_path, leave_out=tmp_path / 'out')
    assert found == [str(tmp_path / name) for name in ('a/c/x.png', 'a/x.png', 'b.JPG')]
    check_images(found)
    Image.new('RGB', (8, 8)).save(tmp_path / 'a/x.jpg')
    with pytest.raises(UsageError, match='have the same name'):
        check_images(find_images(tmp_path, leave_out=tmp_path / 'out'))
