"""What goes into an exported graph and what comes out of it: written into each file, read when it is loaded."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from mmcasvit.utils.errors import UsageError

DTYPES = dict(fp32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)
# The name under which a file keeps its signature.
KEY = 'mmcasvit'


@dataclass(frozen=True)
class Signature:
    """The interface of an exported graph.

    Attributes:
        format: one of :data:`mmcasvit.exporting.formats.FORMATS`.
        what: ``'backbone'``, ``'segmentor'`` or ``'detector'``.
        size: ``(height, width)`` of the input; with ``resize`` that to which pixels are stretched.
        dynamic_batch, dynamic_size: what may differ from the example; a fixed batch is 1.
        precision: what it computes in.
        pixels: ``'rgb'`` or ``'bgr'`` if the graph takes pixels, ``(N, H, W, 3)`` in uint8, and normalises them;
            None if it takes normalised images ``(N, 3, H, W)`` in float32.
        resize: pixels of any size are stretched to ``size``; boxes are in pixels of what was given.
        argmax: a segmentor that gives classes instead of logits.
        outputs: names of what comes out.
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
        """What the weights are converted to in PyTorch: some converters and runtimes do it themselves."""
        return 'fp32' if self.format in ('openvino', 'coreml') else self.precision

    @property
    def free_size(self) -> bool:
        """Whether images of any size can be given."""
        return self.dynamic_size or self.resize

    def with_outputs(self, names: Sequence[str]) -> 'Signature':
        return replace(self, outputs=tuple(names))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None, path: object) -> 'Signature':
        """Reads what :meth:`to_json` wrote.

        Raises:
            UsageError: there is nothing to read, or something else.
        """
        try:
            fields = json.loads(text or '')
            return cls(**{**fields, 'size': tuple(fields['size']), 'outputs': tuple(fields['outputs'])})
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f'{path} was not written by tools/export.py: it has no signature.') from error
