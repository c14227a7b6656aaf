import pytest
import torch
from helpers.reference import fill
from helpers.tiny_models import tiny_config

from mmcasvit import get_model
from mmcasvit.visualization.explore import predict, read_upload


@pytest.fixture(scope='session')
def image_file(shapes):
    return shapes / 'coco/val2017/000000000001.jpg'


def spread_scores(model, pixels):
    """Make a head with random weights find objects of the third class, with scores from low to high."""
    layer, inputs = model.roi_head.bbox_head.fc_cls, []
    handle = layer.register_forward_hook(lambda _, args, __: inputs.append(args[0]))
    predict(model, pixels)
    handle.remove()
    with torch.no_grad():
        offset = inputs[0] - inputs[0].mean(0)
        direction = offset[offset.norm(dim=1).argmax()]
        direction *= 2 / (offset @ direction).std()
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[2] = direction
        layer.bias[2] = -1.3 - inputs[0].mean(0) @ direction


@pytest.fixture(scope='session')
def work(tmp_path_factory, pixels):
    """Write the work directories of two tiny runs, and a file that is not a checkpoint."""
    root = tmp_path_factory.mktemp('explore') / 'work'
    for name, kind in (('detector', 'mask_rcnn'), ('segmentor', 'semantic_fpn')):
        torch.manual_seed(0)
        cfg = tiny_config(kind)
        if name == 'detector':
            cfg.model.test_cfg.rcnn.max_per_img = 20  # a hundred masks take seconds to draw
        model = get_model(cfg)
        fill(model.backbone)
        if name == 'detector':
            spread_scores(model, pixels)
        (root / name).mkdir(parents=True)
        cfg.dump(root / name / f'tiny-{name}.py')
        torch.save(dict(state_dict=model.state_dict()), root / name / 'epoch_1.pth')
    (root / 'broken.pth').write_bytes(b'no checkpoint')
    return root


@pytest.fixture(scope='session')
def pixels(image_file):
    return read_upload(image_file.read_bytes())
