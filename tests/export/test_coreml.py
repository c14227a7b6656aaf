"""Core ML packages, as far as they can be checked without a Mac."""

import pytest
from helpers.tiny_models import CHANNELS, export, tiny

from mmcasvit.export.formats import FORMATS, load_exported
from mmcasvit.export.runtimes.coreml import count, output_shapes
from mmcasvit.export.summary import summarize
from mmcasvit.utils.errors import UsageError


@pytest.mark.skipif(bool(FORMATS['coreml'].missing()), reason='coremltools is not installed')
@pytest.mark.parametrize('what', ['backbone', 'segmentor'])
def test_core_ml_gets_an_image_and_known_operators(what, tmp_path):
    import coremltools

    path = export(tiny('semantic_fpn'), tmp_path / 'model.mlpackage', what=what, pixels='rgb', precision='fp16')
    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    description = model.get_spec().description
    assert (description.input[0].type.imageType.height, description.input[0].type.imageType.width) == (64, 96)
    assert output_shapes(path) == (
        dict(logits=(1, 8, 64, 96))
        if what == 'segmentor'
        else {f'stage{i + 1}': (1, CHANNELS[i], 16 // 2**i, 24 // 2**i) for i in range(4)}
    )
    operators, outside = count(path)
    assert operators['conv'] >= 50
    # coremltools turns scale and shift into norms. Of the backbone's own norms, those of the four outputs remain.
    assert operators['batch_norm'] == (4 if what == 'backbone' else 0)
    assert all('rank 5' in name for name in outside), outside
    assert f'\n{sum(outside.values())} of them are known to stay off the Neural Engine' in summarize('coreml', path)
    if not FORMATS['coreml'].runs_here():
        with pytest.raises(UsageError, match='cannot be run on this machine'):
            load_exported(path)
