"""The interface of an exported graph. It is stored in every exported file and read back when the file is loaded."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mmcasvit.utils.errors import UsageError

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
# The metadata key under which a file stores its signature.
KEY = 'mmcasvit'
# A loaded file: takes the input of the graph, returns its outputs in the order of the signature.
Run = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Signature:
    """Inputs, outputs and options of an exported graph.

    Attributes:
        format: One of :data:`mmcasvit.export.formats.FORMATS`.
        what: ``'backbone'``, ``'segmentor'`` or ``'detector'``.
        size: Input size ``(height, width)``. With ``resize``, the size to which pixels are resized.
        dynamic_batch: If False, the batch size is 1.
        dynamic_size: If False, the input has exactly ``size`` pixels.
        precision: Precision of the computation.
        pixels: Channel order ``'rgb'`` or ``'bgr'`` if the graph takes raw pixels ``(N, H, W, 3)`` in uint8 and
            normalizes them. None if it takes normalized images ``(N, 3, H, W)`` in float32.
        resize: Resize pixels of any size to ``size`` inside the graph. Boxes are in pixels of the original image.
        argmax: Return classes instead of logits (segmentors only).
        outputs: Names of the outputs.
    """

    format: str
    what: str
    size: tuple[int, int]
    dynamic_batch: bool = False
    dynamic_size: bool = False
    precision: str = 'fp32'
    pixels: str | None = None
    resize: bool = False
    argmax: bool = False
    outputs: tuple[str, ...] = ()

    @property
    def module_precision(self) -> str:
        """Precision of the PyTorch module before it is written. Some formats convert the weights themselves."""
        return 'fp32' if self.format in ('openvino', 'coreml', 'litert', 'ncnn') else self.precision

    @property
    def ends_at_head(self) -> bool:
        """Whether the outputs are the maps of a detector's head, from which boxes are decoded outside of the file."""
        return self.what == 'detector' and self.format in ('litert', 'ncnn')

    @property
    def free_size(self) -> bool:
        """Whether the graph takes images of any size."""
        return self.dynamic_size or self.resize

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: object) -> 'Signature':
        """Parse the output of :meth:`to_json`.

        Raises:
            UsageError: If the text is missing or is not a signature.
        """
        try:
            fields = json.loads(text or '')
            return cls(**{**fields, 'size': tuple(fields['size']), 'outputs': tuple(fields['outputs'])})
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f'{path} was not written by tools/export.py: it has no signature.') from error
