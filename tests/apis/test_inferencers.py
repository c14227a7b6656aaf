"""The inferencers of mmdet and mmseg work with the configs and checkpoints of this project."""

import cv2
import numpy as np
import pytest
import torch
from helpers.repository import write_tiny_config
from mmengine.runner import save_checkpoint

import mmcasvit
from mmcasvit.apis.inference import get_inferencer

MASK_RCNN = 'mask-rcnn_casvit-xs_fpn_6e_shapes'
SEGMENTOR = 'semantic-fpn_casvit-xs_300i_shapes'
IMAGE = np.random.RandomState(0).randint(0, 255, (64, 96, 3), np.uint8)


def trained(folder, name):
    """Return a tiny variant of a config's model, its config file, and a checkpoint with the metadata of a runner.

    The BatchNorm statistics are random, so that a tensor that is not loaded changes the result.
    """
    config = write_tiny_config(folder / f'{name}.py', mmcasvit.config_path(name))
    model = mmcasvit.get_model(config)
    torch.manual_seed(0)
    for key, value in model.state_dict().items():
        if key.endswith('running_var'):
            value.uniform_(0.5, 1.5)
        elif key.endswith('running_mean'):
            value.normal_(0, 0.1)
    checkpoint = folder / f'{name}.pth'
    save_checkpoint(dict(meta=dict(dataset_meta=model.dataset_meta), state_dict=model.state_dict()), str(checkpoint))
    return model, str(config), str(checkpoint)


def test_a_detector_with_masks(tmp_path):
    from mmdet.apis import DetInferencer, inference_detector

    model, config, checkpoint = trained(tmp_path, MASK_RCNN)
    inferencer = DetInferencer(config, checkpoint, device='cpu', show_progress=False)
    assert inferencer.model.dataset_meta['classes'] == ('disc', 'square', 'triangle', 'star', 'cross', 'ring')
    found = inferencer(IMAGE, return_datasamples=True, no_save_vis=True)['predictions'][0].pred_instances
    assert len(found) > 0
    assert found.bboxes.shape == (len(found), 4)
    assert found.masks.shape == (len(found), *IMAGE.shape[:2])
    assert set(found.labels.tolist()) <= set(range(6))

    expected = inference_detector(model, IMAGE).pred_instances
    torch.testing.assert_close(found.bboxes, expected.bboxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert torch.equal(found.labels, expected.labels)


def test_a_detector_by_the_name_of_its_config(tmp_path):
    """mmdet looks up only its own models by name, so the config itself is passed."""
    from mmdet.apis import DetInferencer

    model = mmcasvit.get_model('retinanet_casvit-xs_fpn_6e_shapes')
    save_checkpoint(
        dict(meta=dict(dataset_meta=model.dataset_meta), state_dict=model.state_dict()), str(tmp_path / 'x.pth')
    )
    inferencer = DetInferencer(
        mmcasvit.get_config('retinanet_casvit-xs_fpn_6e_shapes'),
        str(tmp_path / 'x.pth'),
        device='cpu',
        show_progress=False,
    )
    torch.testing.assert_close(inferencer.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    cv2.imwrite(str(tmp_path / 'image.png'), IMAGE)
    result = inferencer(str(tmp_path / 'image.png'), out_dir=str(tmp_path / 'out'), no_save_pred=False)
    assert set(result['predictions'][0]) == {'labels', 'scores', 'bboxes'}
    assert [file.name for file in sorted(tmp_path.glob('out/*/*'))] == ['image.json', 'image.png']


@pytest.mark.parametrize('name, classes', [(SEGMENTOR, 8), ('semantic-fpn_casvit-xs_8xb4-40k_ade20k-512x512', 150)])
def test_a_segmentor(tmp_path, name, classes):
    from mmseg.apis import MMSegInferencer, inference_model

    model, config, checkpoint = trained(tmp_path, name)
    inferencer = MMSegInferencer(config, checkpoint, device='cpu')
    assert len(inferencer.model.dataset_meta['classes']) == classes
    assert inferencer.model.dataset_meta['classes'] == model.dataset_meta['classes']
    found = inferencer(IMAGE, return_datasamples=True)
    assert found.seg_logits.data.shape == (classes, *IMAGE.shape[:2])
    assert found.pred_sem_seg.data.shape == (1, *IMAGE.shape[:2])
    torch.testing.assert_close(found.seg_logits.data, inference_model(model, IMAGE).seg_logits.data)
    assert torch.equal(found.pred_sem_seg.data[0], found.seg_logits.data.argmax(0))


@pytest.mark.slow
def test_our_tool_draws_a_segmentation_in_the_colors_of_its_dataset(tmp_path, run_tool):
    from mmseg.apis import MMSegInferencer

    model, config, checkpoint = trained(tmp_path, SEGMENTOR)
    image = str(tmp_path / 'image.png')
    cv2.imwrite(image, IMAGE)
    inferencer = MMSegInferencer(
        config, checkpoint, device='cpu', classes=model.dataset_meta['classes'], palette=model.dataset_meta['palette']
    )
    inferencer(image, out_dir=str(tmp_path / 'theirs'))
    run_tool('infer.py', image, config, checkpoint, '--device', 'cpu', '--out-dir', 'ours', cwd=tmp_path)
    for file in ('vis/image.png', 'pred/image.png'):
        ours, theirs = (
            cv2.imread(str(next((tmp_path / who).glob(file.replace('image', '*'))))) for who in ('ours', 'theirs')
        )
        np.testing.assert_array_equal(ours, theirs)


def test_an_inferencer_refuses_half_a_model(tmp_path):
    from mmdet.apis import DetInferencer

    model, config, _ = trained(tmp_path, MASK_RCNN)
    weights = {key: value for key, value in model.state_dict().items() if not key.startswith('backbone.')}
    save_checkpoint(dict(state_dict=weights), str(tmp_path / 'half.pth'))
    with pytest.raises(mmcasvit.WeightsError, match='missing'):
        DetInferencer(config, str(tmp_path / 'half.pth'), device='cpu')


@pytest.mark.parametrize('palette', [None, [[1, 2, 3]], 3])
@pytest.mark.parametrize('old', [False, True])
def test_a_checkpoint_without_a_color_for_each_class_gets_colors(tmp_path, palette, old):
    model, config, checkpoint = trained(tmp_path, SEGMENTOR)
    names = [f'class {i}' for i in range(8)]
    meta = dict(CLASSES=names, PALETTE=palette) if old else dict(dataset_meta=dict(classes=names, palette=palette))
    save_checkpoint(dict(meta=meta, state_dict=model.state_dict()), checkpoint)
    inferencer = get_inferencer(mmcasvit.get_config(config), checkpoint, 'cpu')
    assert list(inferencer.model.dataset_meta['classes']) == names
    assert np.array(inferencer.visualizer.dataset_meta['palette']).shape == (8, 3)


def test_a_checkpoint_keeps_its_colors(tmp_path):
    model, config, checkpoint = trained(tmp_path, SEGMENTOR)
    inferencer = get_inferencer(mmcasvit.get_config(config), checkpoint, 'cpu')
    assert inferencer.visualizer.dataset_meta['palette'] == model.dataset_meta['palette']
