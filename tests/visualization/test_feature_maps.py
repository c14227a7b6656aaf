import cv2
import matplotlib.image
import pytest
import torch
import torch.nn.functional as F
from helpers.reference import fill, image
from helpers.tiny_models import TINY, TWINS, tiny_model
from torch import nn
from torch.testing import assert_close

from mmcasvit import CASViT
from mmcasvit.utils.errors import UsageError
from mmcasvit.visualization.feature_maps import (
    activation_maps,
    half_radius,
    look_at,
    look_inside,
    receptive_field,
    recorded,
    stages_of,
)
from mmcasvit.visualization.figure import columns_of, draw


def test_gates_and_context_are_those_of_the_last_block():
    backbone, x = fill(CASViT(TINY)).eval().double(), image(0, (1, 3, 64, 96))
    stages = look_inside(backbone, x)
    with torch.no_grad():
        inside = backbone.patch_embed(x)
        block = backbone.network[0][0]
        inside = block.norm1(inside + block.local_perception(inside))
        q, k, _ = F.conv2d(inside, block.attn.qkv.weight).chunk(3, dim=1)
        gated = []
        for letter, part, (spatial, channel) in (('q', q, block.attn.oper_q), ('k', k, block.attn.oper_k)):
            gate = F.conv2d(spatial.block[1](spatial.block[0](part)).relu(), spatial.block[3].weight).sigmoid()
            assert_close(stages[0].spatial_gates[letter], gate[0, 0], rtol=1e-10, atol=1e-12)
            part = part * gate
            gate = F.conv2d(part.mean((2, 3), keepdim=True), channel.block[1].weight).sigmoid()
            assert_close(stages[0].channel_gates[letter], gate.flatten(), rtol=1e-10, atol=1e-12)
            gated.append(part * gate)
        assert_close(stages[0].context, block.attn.dwc(sum(gated))[0], rtol=1e-10, atol=1e-12)
        outputs = backbone(x)
    for number, (stage, output) in enumerate(zip(stages, outputs)):
        norm = getattr(backbone, f'norm{2 * number}')
        assert_close(norm(stage.output[None]), output, rtol=1e-10, atol=1e-10)
        assert stage.receptive_field.shape == (64, 96)
        assert stage.stride == backbone.strides[number]
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    'token_mixer, spatial, channel',
    [
        ('additive', 'qk', 'qk'),
        (dict(type='additive', spatial_gate=False), '', 'qk'),
        (dict(type='additive', channel_gate=False), 'qk', ''),
        ('self_attention', '', ''),
        ('pooling', '', ''),
    ],
    ids=str,
)
def test_other_mixers_show_the_gates_they_have(token_mixer, spatial, channel):
    backbone = fill(CASViT(TINY, out_indices=(1, 2), token_mixer=token_mixer)).eval()
    stages = look_inside(backbone, torch.rand(1, 3, 64, 64))
    assert len(stages) == 3
    for stage in stages:
        assert (''.join(stage.spatial_gates), ''.join(stage.channel_gates)) == (spatial, channel)
        assert stage.context.shape == stage.output.shape
    assert [title for title in columns_of(stages) if 'gate' in title] == (
        ['spatial gate of q', 'spatial gate of k'] if spatial else []
    ) + (['channel gates'] if channel else [])


def test_a_receptive_field_is_the_effect_on_the_center():
    backbone, x = fill(CASViT(TINY)).eval().double(), image(0, (1, 3, 64, 96))
    field = look_inside(backbone, x)[1].receptive_field
    output = backbone.network[:3]
    with torch.no_grad():

        def center(x):
            x = backbone.patch_embed(x)
            for layer in output:
                x = layer(x)
            return x[0, :, 4, 6].sum()

        y, z = divmod(int(field.argmax()), 96)
        wanted = 0
        for channel in range(3):
            step = torch.zeros_like(x)
            step[0, channel, y, z] = 1e-5
            wanted += ((center(x + step) - center(x - step)) / 2e-5).abs()
    assert_close(field[y, z], wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('stride, size', [(1, 9), (2, 10)])
def test_a_receptive_field_of_a_convolution_is_its_kernel(stride, size):
    conv = nn.Conv2d(2, 3, 3, stride=stride, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    x = torch.rand(1, 2, size, size + 2, requires_grad=True)
    output = conv(x)
    wanted = torch.zeros(size, size + 2)
    row, column = (side // 2 * stride for side in output.shape[2:])
    wanted[row - 1 : row + 2, column - 1 : column + 2] = 3 * 2
    assert_close(receptive_field(x, output), wanted)


def test_half_of_a_field_lies_within_its_half_radius():
    field = torch.zeros(65, 97)
    row, column = 32, 48  # the center of a map of stride 1
    field[row, column] = 2.0
    field[row, column + 7], field[row - 9, column] = 1.0, 3.0
    assert half_radius(field, 1) == 7
    field[row, column] = 5.0
    assert half_radius(field, 1) == 0
    field[row, column] = 0.0
    assert half_radius(field, 1) == 9
    # The center of a map with stride 8 and 8x12 positions is in the fifth row and the seventh column.
    field = torch.zeros(64, 96)
    field[36:40, 52:56] = 1.0
    assert half_radius(field, 8) < 4


def test_activation_maps_of_a_score_whose_gradient_is_known():
    x, weight = (image(i, (1, 4, 5, 6)).requires_grad_() for i in range(2))
    (found,) = activation_maps((x * weight).sum(), [x])
    assert_close(found, (x * weight).sum(1)[0].clamp(min=0).detach())
    (found,) = activation_maps((x * weight).sum(), [x], 'Grad-CAM')
    assert_close(found, sum(x[0, c] * weight[0, c].mean() for c in range(4)).clamp(min=0).detach())


def test_an_activation_map_is_the_growth_of_the_score_with_the_features_of_a_position(image_file):
    """Check that scaling the features of one position changes the score by that position of the map."""
    model = tiny_model('semantic_fpn').double()
    sight = look_at(model, image_file)
    label = model.dataset_meta['classes'].index(sight.category)
    data = model.data_preprocessor(
        dict(inputs=[torch.from_numpy(cv2.imread(str(image_file))).permute(2, 0, 1)], data_samples=None), False
    )
    with torch.no_grad():
        logits = model(data['inputs'], mode='tensor')[0]
        where = logits.argmax(0) == label
        assert where.sum() == max((logits.argmax(0) == c).sum() for c in range(8))
        for number, module in enumerate(stages_of(model.backbone)):
            activation = sight.stages[number].activation
            y, x = divmod(int(activation.argmax()), activation.shape[1])
            scores = []
            for scale in (1 + 1e-6, 1 - 1e-6):

                def scaled(_, __, output, y=y, x=x, scale=scale):
                    output[:, :, y, x] *= scale
                    return output

                handle = module.register_forward_hook(scaled)
                scores.append(model(data['inputs'], mode='tensor')[0, label][where].sum())
                handle.remove()
            assert_close((scores[0] - scores[1]) / 2e-6, activation.max(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('name', TWINS)
def test_feature_maps_of_a_model_are_recorded_and_drawn(name, image_file, tmp_path):
    model = tiny_model(name)
    with torch.no_grad():  # random heads find nothing
        if name == 'retinanet':
            model.bbox_head.retina_cls.bias += 5
        elif name == 'mask_rcnn':
            model.roi_head.bbox_head.fc_cls.bias[2] += 5
        elif name == 'ssdlite':
            for branch in model.bbox_head.cls_convs:
                branch[-1].bias.view(-1, model.bbox_head.cls_out_channels)[:, 2] += 5
        elif name == 'rtmdet_ins':
            for classes, distances in zip(model.bbox_head.rtm_cls, model.bbox_head.rtm_reg):
                classes.bias[2] += 5
                distances.bias += 1  # negative ones make empty boxes
    before = {key: value.clone() for key, value in model.state_dict().items()}
    sight = look_at(model, image_file)
    assert sight.category in model.dataset_meta['classes']
    assert sight.image.shape == (64, 96, 3)
    assert abs(sight.image.astype(int) - cv2.imread(str(image_file))[..., ::-1]).max() <= 1
    assert sight.prediction.shape == (64, 96, 3)
    for stage in sight.stages:
        assert stage.activation.shape == stage.output.shape[1:]
    assert any(stage.activation.max() > 0 for stage in sight.stages)
    if name == 'mask_rcnn':
        assert sight.category == model.dataset_meta['classes'][2]
    assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())
    other = look_at(model, image_file, method='Grad-CAM')
    assert other.method == 'Grad-CAM'
    assert not torch.equal(other.stages[0].activation, sight.stages[0].activation)
    for suffix in ('.png', '.svg'):
        draw(sight, tmp_path / f'seen{suffix}')
    figure = matplotlib.image.imread(tmp_path / 'seen.png')
    assert figure.shape[1] > 1500
    text = (tmp_path / 'seen.svg').read_text()
    for words in (
        'input of the model',
        'strongest channels',
        'spatial gate of k',
        'channel gates',
        'receptive field',
        f'HiResCAM: {sight.category}',
        'stage 4',
        '24 x 2 x 3',
    ):
        assert f'<!-- {words} -->' in text, words


def test_without_a_prediction_there_is_no_activation_map(image_file, tmp_path):
    model = tiny_model('mask_rcnn')
    with torch.no_grad():
        model.roi_head.bbox_head.fc_cls.bias[-1] += 50  # all background
    sight = look_at(model, image_file)
    assert sight.category == ''
    assert not any('CAM' in title for title in columns_of(sight.stages))
    draw(sight, tmp_path / 'seen.png')
    assert (tmp_path / 'seen.png').stat().st_size > 10000


def test_wrong_models_and_classes_are_refused(image_file):
    model = tiny_model('semantic_fpn')
    with pytest.raises(UsageError, match=r"no class 'dog'\. Valid: sky, ground, disc"):
        look_at(model, image_file, 'dog')
    model.backbone = nn.Identity()
    with pytest.raises(UsageError, match='whose backbone is a CASViT'):
        look_at(model, image_file)


def test_hooks_are_removed_if_the_model_fails():
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match='shapes'), recorded(dict(x=module)):
        module(torch.rand(1, 3))
    assert not module._forward_hooks
