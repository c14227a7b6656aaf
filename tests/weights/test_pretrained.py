"""Which keys of a file are those of a backbone."""

import pytest

from mmcasvit.weights.pretrained import _backbone_names

EXPECTED = dict.fromkeys(['network.a', 'norm6.a'])


@pytest.mark.parametrize(
    'prefix, names, wanted',
    [
        (None, ['network.a', 'backbone.x'], ['network.a', 'backbone.x']),
        (None, ['backbone.network.a', 'neck.a'], ['neck.a', 'network.a']),
        (None, ['x.network.a'], ['x.network.a']),
        ('student', ['student.network.a', 'studentx', 'network.b'], ['studentx', 'network.b', 'network.a']),
        ('student.', ['student.network.a', 'backbone.network.a'], ['backbone.network.a', 'network.a']),
        ('', ['.network.a', 'network.b'], ['network.b', 'network.a']),
        # The last norm of a classifier is that before its heads.
        (None, ['backbone.norm6.a', 'head.dist_head.weight'], ['head.dist_head.weight', 'norm.a']),
        (None, ['backbone.norm6.a', 'head.weight'], ['head.weight', 'norm6.a']),
        (None, ['backbone.xnorm6.a', 'head.dist_head.weight'], ['head.dist_head.weight', 'xnorm6.a']),
    ],
)
def test_the_prefix_is_removed_and_other_parts_are_kept(prefix, names, wanted):
    found = _backbone_names(dict(zip(names, names)), EXPECTED, prefix)
    assert list(found) == wanted


def test_a_key_outside_the_prefix_takes_no_place_of_the_backbone():
    found = _backbone_names({'network.a': 1, 'student.norm6.a': 2, 'student.network.a': 3}, EXPECTED, 'student')
    assert found == {'norm6.a': 2, 'network.a': 3}
    assert _backbone_names({'network.a': 1, 'student.norm6.a': 2}, EXPECTED, 'student') == {'norm6.a': 2}
