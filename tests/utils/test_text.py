from mmcasvit.utils.text import shorten


def test_long_lists_are_shortened():
    assert shorten([]) == ''
    assert shorten(iter('abcdef')) == 'a, b, c, d, e, f'
    assert shorten('abcdefgh') == 'a, b, c, d, e, f and 2 more'
    assert shorten('abc', limit=1) == 'a and 2 more'
