"""Models on a GPU compute what they do on a CPU, in every form and precision."""

import copy
import itertools

import pytest
import torch
from helpers.reference import fill
from helpers.tiny_models import TWINS, export, tiny
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.benchmark.preparation import deviation, prepare
from mmcasvit.benchmark.variants import Variant
from mmcasvit.utils.errors import NotApplicable
from mmcasvit.utils.timing import DTYPES

pytestmark = pytest.mark.gpu
# Largest relative difference; on a CPU, it is 1e-6, 0.002 and 0.02.
TOLERANCE = dict(fp32=1e-4, fp16=0.01, bf16=0.05)


@pytest.mark.parametrize(
    'form, precision',
    [*itertools.product(['eager', 'deploy', 'channels_last'], TOLERANCE), ('compiled', 'fp32')],  # compiling takes long
)
def test_the_backbone_agrees_with_that_of_the_cpu(device, form, precision):
    try:
        prepared = prepare(Variant('xs', form=form, precision=precision, device=device, batch=2, size=(64, 96)))
    except NotApplicable as reason:
        pytest.skip(str(reason))
    assert prepared.deviation < TOLERANCE[precision]


@pytest.mark.parametrize('precision', TOLERANCE)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients_agree_with_those_in_double_precision(device, precision, memory_format):
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = fill(CASViT('xs')).double()
    maps = wanted(x)
    torch.stack([out.square().mean() for out in maps]).sum().backward()
    found = fill(CASViT('xs')).to(device=device, memory_format=memory_format)
    with torch.autocast(device, DTYPES[precision], enabled=precision != 'fp32'):
        outputs = found(x.float().to(device, memory_format=memory_format))
        torch.stack([out.float().square().mean() for out in outputs]).sum().backward()
    assert deviation([out.detach().cpu() for out in outputs], maps) < TOLERANCE[precision]
    pairs = zip(found.parameters(), wanted.parameters())
    grads, wanted_grads = zip(*((a.grad.cpu().flatten(), b.grad.flatten()) for a, b in pairs))
    assert deviation([torch.cat(grads)], [torch.cat(wanted_grads)]) < TOLERANCE[precision]


@pytest.mark.parametrize('twin', TWINS)
def test_predictions_are_made_on_the_device(device, twin):
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = copy.deepcopy(tiny(twin)).to(device)
    with torch.no_grad():
        samples = model.test_step(dict(inputs=list(images), data_samples=samples_of(twin)))
    for sample in samples:
        found = sample.pred_sem_seg.data if 'pred_sem_seg' in sample else sample.pred_instances.scores
        assert found.device.type == device
        assert found.numel()


def samples_of(twin):
    settings = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96), scale_factor=(1.0, 1.0))
    if twin in ('retinanet', 'mask_rcnn'):
        from mmdet.structures import DetDataSample as Sample
    else:
        from mmseg.structures import SegDataSample as Sample
    return [Sample(metainfo=settings) for _ in range(2)]


def test_an_onnx_file_gives_the_same_maps(device, tmp_path):
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package)
    import onnxruntime

    provider = dict(cuda='CUDAExecutionProvider', cpu='CPUExecutionProvider')[device]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f'this onnxruntime has no {provider}')
    file = export(tiny('semantic_fpn'), tmp_path / 'model.onnx')
    options = dict(use_tf32=0) if device == 'cuda' else {}
    session = onnxruntime.InferenceSession(file, providers=[(provider, options)])
    if session.get_providers()[0] != provider:
        pytest.skip(f'onnxruntime cannot load its {provider}')
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    wanted = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider']).run(None, dict(image=image.numpy()))
    found = session.run(None, dict(image=image.numpy()))
    for a, b in zip(found, wanted, strict=True):
        assert_close(torch.from_numpy(a), torch.from_numpy(b), rtol=1e-3, atol=1e-3)
