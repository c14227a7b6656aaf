"""Files that a dataset reads when it is built hold only data."""

import numpy as np
import pytest
from helpers.attack import Attack
from mmengine.config import ConfigDict

from mmcasvit.datasets.sources import check_sources
from mmcasvit.utils.errors import UsageError


@pytest.mark.parametrize('key', ['ann_file', 'proposal_file'])
@pytest.mark.parametrize('suffix', ['pkl', 'pickle'])
def test_pickled_annotations_are_refused(key, suffix):
    with pytest.raises(UsageError, match=f'{key} of the train split is a pickle'):
        check_sources(ConfigDict({'type': 'CocoDataset', key: f'x.{suffix}'}), 'the train split')


def test_an_array_of_objects_is_refused_and_not_executed(tmp_path):
    """mmdet reads the class hierarchy of the OpenImages challenge with allow_pickle."""
    trace = tmp_path / 'was_here'
    config = ConfigDict(type='OpenImagesChallengeDataset', data_root=str(tmp_path), hierarchy_file='x.npy')
    np.save(tmp_path / 'x.npy', np.array([Attack(str(trace))], object))
    with pytest.raises(UsageError, match='is not a plain array, and reading it can run code'):
        check_sources(config, 'the train split')
    assert not trace.exists()
    np.save(tmp_path / 'x.npy', np.eye(3))
    check_sources(config, 'the train split')
    np.save(tmp_path / 'x.npy', np.array([Attack(str(trace))], object))
    np.load(tmp_path / 'x.npy', allow_pickle=True)
    assert trace.exists(), 'the attack must work where pickles are trusted, or this test shows nothing'
