"""Pickles of data are read without the code in them."""

import io
import pickle
from collections import OrderedDict

import mmengine
import numpy as np
import pytest
from helpers.attack import Attack
from mmengine.fileio.handlers import file_handlers

from mmcasvit.datasets.pickles import read_pickles_as_data
from mmcasvit.utils.errors import DataError


@pytest.fixture(autouse=True)
def _handlers():
    kept = dict(file_handlers)
    read_pickles_as_data()
    yield
    file_handlers.update(kept)


def test_plain_values_and_arrays_are_read(tmp_path):
    content = [dict(a=1, b=[np.arange(3), np.float32(2.5), 'x', None], c=(1.5, {2}), d=np.ones((2, 2), 'f2'))]
    content += [b'bytes', bytearray(b'x'), frozenset({3})]
    for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
        (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, protocol))
        found = mmengine.load(tmp_path / 'x.pkl')
        assert repr(found) == repr(content)


def test_an_ordered_dict_is_read_as_a_dict(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(OrderedDict(b=1, a=2)))
    assert repr(mmengine.load(tmp_path / 'x.pkl')) == "{'b': 1, 'a': 2}"


@pytest.mark.parametrize('name, options', [('x.pkl', {}), ('x.pickle', {}), ('x.bin', dict(file_format='pkl'))])
def test_code_is_refused_and_not_run(tmp_path, name, options):
    trace = tmp_path / 'was_here'
    (tmp_path / name).write_bytes(pickle.dumps([dict(img_path='a.jpg', extra=Attack(str(trace)))]))
    with pytest.raises(DataError, match=r'holds posix\.mkdir'):
        mmengine.load(tmp_path / name, **options)
    assert not trace.exists()
    pickle.load(io.BytesIO((tmp_path / name).read_bytes()))
    assert trace.exists(), 'the attack must work where pickles are trusted, or this test shows nothing'
