"""Predictions of an exported model on uploaded images, as JSON or PNG."""

import io
import threading
from collections.abc import Hashable, Sequence

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement
from PIL import Image

from mmcasvit.apis.model import get_model
from mmcasvit.export.evaluation import image_pipeline, substitute
from mmcasvit.export.formats import Exported
from mmcasvit.utils.errors import Refused, UsageError

from .answers import check_wanted, encode_masks, keep_logits, labels_of
from .images import read_image
from .limits import Limits


class Predictor:
    """Exported model with the pre- and postprocessing of its config.

    The answers are those of ``tools/test.py --exported``, computed by the same code.

    Args:
        exported: Exported detector or segmentor.
        cfg: Config it was exported with.
        max_pixels: Maximum number of pixels of an image.

    Attributes:
        classes: Class names in the order of the labels.

    Raises:
        UsageError: If file and config do not belong together, or the file holds only a backbone.
    """

    def __init__(self, exported: Exported, cfg: Config, max_pixels: int = Limits.max_pixels):
        if exported.signature.what == 'backbone':
            raise UsageError(
                f'{exported.path} holds a backbone, which predicts nothing: export the whole model, --what model.'
            )
        model = get_model(cfg)
        model.backbone = None  # only the exported model computes
        self.exported, self.max_pixels = exported, max_pixels
        self.classes = list(model.dataset_meta.get('classes') or ())
        self.model = substitute(model, exported, paste=False)
        if self.is_segmentor:
            self.model.postprocess_result = keep_logits
        load, *steps = image_pipeline(cfg, exported.signature)
        if not load['type'].endswith('LoadImageFromFile'):
            raise UsageError(
                f'the test pipeline of the config starts with {load["type"]}: only LoadImageFromFile can be served.'
            )
        options = {name: value for name, value in load.items() if name not in ('type', 'backend_args')}
        self.decoding = (options.get('color_type', 'color'), options.get('imdecode_backend'))
        self.pipeline = Compose([dict(options, type='LoadImageFromNDArray'), *steps])
        self._try()

    def _try(self) -> None:
        """Run one image. This also makes the first request as fast as later ones."""
        try:
            [sample] = self.predict([self.pipeline(dict(img=np.zeros((*self.exported.signature.size, 3), np.uint8)))])
            if self.is_segmentor and len(sample.seg_logits.data) != (expected := self.model.decode_head.out_channels):
                raise ValueError(f'it outputs {len(sample.seg_logits.data)} classes, and the config has {expected}')
        except UsageError:
            raise
        except Exception as error:  # runtimes raise types of their own
            raise UsageError(f'{self.exported.path} does not work with the config: {error}') from error

    @property
    def is_segmentor(self) -> bool:
        return self.exported.signature.what == 'segmentor'

    def prepare(self, data: bytes) -> dict:
        """Decode an image file and run the test pipeline on it.

        Raises:
            Refused: If the file is not a usable image.
        """
        image = read_image(data, self.max_pixels, *self.decoding)
        try:
            return self.pipeline(dict(img=image))
        except (cv2.error, ZeroDivisionError) as error:
            height, width = image.shape[:2]
            raise Refused(
                422,
                f'an image of {width}x{height} pixels cannot be resized to the input of the model: send one that is '
                'less narrow.',
            ) from error

    def group(self, prepared: dict) -> Hashable:
        """Return a key that is the same for images that can run together."""
        signature = self.exported.signature
        if not self.is_segmentor and not signature.free_size:
            return signature.size  # all of them are padded to it
        return tuple(prepared['inputs'].shape)

    @torch.inference_mode()
    def predict(self, batch: Sequence[dict]) -> list[BaseDataElement]:
        """Predict on images of one group, as mmdet's or mmseg's ``test_step`` does.

        Masks and logits stay as small as the model computes them.
        """
        return self.model.test_step(
            dict(inputs=[one['inputs'] for one in batch], data_samples=[one['data_samples'] for one in batch])
        )

    @torch.inference_mode()
    def to_json(self, sample: BaseDataElement, min_score: float, gone: threading.Event | None = None) -> dict:
        """Return the detections of one image as JSON, with masks in COCO's run-length encoding.

        Args:
            sample: Prediction for the image.
            min_score: Minimum score of a detection.
            gone: Event that ends the work, with an error, when it is set.
        """
        instances = sample.pred_instances[sample.pred_instances.scores >= min_score]
        height, width = sample.ori_shape[:2]
        detections = [
            dict(label=label, name=self.classes[label] if self.classes else None, score=score, box=box)
            for label, score, box in zip(*(instances[key].tolist() for key in ('labels', 'scores', 'bboxes')))
        ]
        if 'masks' in instances:
            masks = encode_masks(instances, (height, width), self.model, gone, sample.scale_factor)
            for detection, mask in zip(detections, masks):
                detection['mask'] = mask
        return dict(width=width, height=height, detections=detections)

    @torch.inference_mode()
    def to_png(self, sample: BaseDataElement, gone: threading.Event | None = None) -> bytes:
        """Return the labels of one image as a grayscale PNG of the same size, 16-bit if there are over 256 classes.

        Args:
            sample: Prediction for the image.
            gone: Event that ends the work, with an error, when it is set.
        """
        labels = labels_of(sample.seg_logits.data, tuple(sample.ori_shape[:2]), self.model, gone).numpy()
        check_wanted(gone)
        stream = io.BytesIO()
        Image.fromarray(labels.astype(np.uint8 if len(self.classes) <= 256 else np.uint16)).save(stream, 'PNG')
        return stream.getvalue()
