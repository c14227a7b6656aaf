"""The files that a prediction writes, named after their images."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import IMAGE_SUFFIXES
from mmcasvit.utils.text import shorten

from .sources import Source

# The folder and the suffix of the predictions of each framework.
_PREDICTIONS = dict(mmdet=('preds', '.json'), mmseg=('pred', '.png'), mmpretrain=('preds', '.json'))


class Output(NamedTuple):
    """The files of one image, video or camera.

    Attributes:
        source: Path of the image or video, or index of the camera.
        drawing: Path of the drawing, a video for a video or camera.
        prediction: Path of the prediction, JSON lines for a video or camera.
    """

    source: str | int
    drawing: Path
    prediction: Path


def plan_outputs(scope: str, sources: Sequence[Source], out_dir: Path, force: bool = False) -> list[Output]:
    """Name the files that a prediction writes after their images, videos and cameras.

    Args:
        scope: Framework of the inferencer: ``'mmdet'``, ``'mmseg'`` or ``'mmpretrain'``.
        sources: Images, videos and cameras.
        out_dir: Folder for the drawings (``vis``) and the predictions: ``preds`` with one JSON file per image for
            detectors and classifiers, ``pred`` with one index mask per image for segmentors. Videos and cameras have
            JSON lines in ``preds``.
        force: Whether files that exist may be overwritten.

    Raises:
        UsageError: If an output exists, or is one of the sources, or if two sources would have the same.
    """
    outputs = [_output(scope, source, out_dir) for source in sources]
    owners: dict[Path, Source] = {}
    for source, output in zip(sources, outputs):
        if (other := owners.setdefault(output.prediction, source)) is not source:
            raise UsageError(
                f'{other.path} and {source.path} have the same name, so their predictions would have too. Put them '
                'into different folders, or predict on them one by one.'
            )
    inputs = {Path(source.path).resolve() for source in sources if isinstance(source.path, str)}
    existing = [path for output in outputs for path in output[1:] if path.exists()]
    if own := [path for path in existing if path.resolve() in inputs]:
        raise UsageError(f'{own[0]} is one of the images. Choose another --out-dir.')
    if existing and not force:
        raise UsageError(
            f'{shorten(map(str, existing), 2)} exist already. Use --force to overwrite them, or another --out-dir.'
        )
    return outputs


def _output(scope: str, source: Source, out_dir: Path) -> Output:
    drawing, name = out_dir / 'vis' / source.name, source.name
    if source.is_video:
        return Output(source.path, drawing.with_suffix('.mp4'), out_dir / 'preds' / name.with_suffix('.jsonl'))
    if scope == 'mmpretrain' or name.suffix.lower() not in IMAGE_SUFFIXES:
        drawing = drawing.with_suffix('.png')
    folder, suffix = _PREDICTIONS[scope]
    return Output(source.path, drawing, out_dir / folder / name.with_suffix(suffix))
