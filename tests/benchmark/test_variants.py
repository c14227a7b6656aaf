import pytest

from mmcasvit.benchmark.variants import Variant, default_baseline, parse_baseline
from mmcasvit.utils.errors import UsageError


def test_baselines():
    variants = [Variant('xs'), Variant('xs', form='deploy'), Variant('m', form='deploy')]
    assert default_baseline(variants) == dict(form='eager')
    assert default_baseline(variants[1:]) == dict(model='xs')
    assert parse_baseline('model=xs,size=512x512', variants) == dict(model='xs', size=(512, 512))
    for text, words in [
        ('form', 'field=value'),
        ('color=red', 'field=value'),
        ('form=compiled', 'no such variant'),
        ('threads=many', "'many' is not a valid value of threads"),
    ]:
        with pytest.raises(UsageError, match=words):
            parse_baseline(text, variants)
