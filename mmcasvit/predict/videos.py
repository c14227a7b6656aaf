"""Predictions on videos and cameras, frame by frame."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from mmcasvit.utils.errors import UsageError
from mmcasvit.weights.integrity import UNFINISHED, rename_durably

from .outputs import Output
from .sources import Source

# FFmpeg's readers of files that hold the video themselves. Others read a list of further files, from anywhere.
_CONTAINERS = 'mov,avi,matroska,mpeg,mpegts,mpegvideo,h264,hevc,asf,flv,ogg'
# How files of these containers begin. MP4 and MOV have the name of a box after its length.
_BEGINNINGS = (b'RIFF', b'\x1aE\xdf\xa3', b'\0\0\1', b'\0\0\0\1', b'G', b'0&\xb2u', b'FLV', b'OggS')
_BOXES = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide')
# Frames a second of a drawing if the video or camera does not say.
_DEFAULT_RATE = 25.0


class Frame(NamedTuple):
    """Frame of a video or camera.

    Attributes:
        image: ``(H, W, 3)`` in uint8 BGR.
        seconds: Time since the first frame.
    """

    image: np.ndarray
    seconds: float


class Video:
    """Video file or camera.

    Args:
        source: Path of the file, or index of the camera.

    Attributes:
        rate: Frames a second.
        count: Number of frames as the file states it, which may be wrong, or None if it states none.

    Raises:
        UsageError: If it cannot be opened.
    """

    def __init__(self, source: str | int):
        self.source, self.is_camera = source, isinstance(source, int)
        if self.is_camera:
            self._capture = cv2.VideoCapture(source)
        else:
            if not _begins_as_a_video(str(source)):
                raise UsageError(f'{source} cannot be read as a video.')
            with _containers_only():
                self._capture = cv2.VideoCapture(source, cv2.CAP_FFMPEG)
        if not self._capture.isOpened():
            raise UsageError(
                f'camera {source} cannot be opened.' if self.is_camera else f'{source} cannot be read as a video.'
            )
        rate, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.rate = rate if math.isfinite(rate) and 1 <= rate <= 1000 else _DEFAULT_RATE
        self.count = int(count) if math.isfinite(count) and count > 0 and not self.is_camera else None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames as they are read, one at a time.

        Raises:
            UsageError: If there is none.
        """
        began, index = time.monotonic(), 0
        while True:
            read, image = self._capture.read()
            if not read:
                break
            seconds = time.monotonic() - began if self.is_camera else self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            yield Frame(image, max(seconds, 0.0))
            index += 1
        if not index:
            raise UsageError(f'{"camera " if self.is_camera else ""}{self.source} has no frame that can be read.')

    def close(self) -> None:
        self._capture.release()


def check_videos(sources: Iterable[Source]) -> None:
    """Check that the videos and cameras among some sources can be opened.

    Raises:
        UsageError: If one cannot.
    """
    for source in sources:
        if source.is_video:
            Video(source.path).close()


def _begins_as_a_video(file: str) -> bool:
    """Return whether a file may be a video, and no playlist: OpenCV before 4.12 does not listen to the environment."""
    try:
        with open(file, 'rb') as opened:
            head = opened.read(8)
    except OSError:  # FFmpeg cannot read it either
        return False
    return head.startswith(_BEGINNINGS) or head[4:] in _BOXES or head[4:5] == b'G'  # M2TS, after a time stamp


@contextlib.contextmanager
def _containers_only() -> Iterator[None]:
    """Make FFmpeg read videos only, and no playlists, which may name files anywhere."""
    key = 'OPENCV_FFMPEG_CAPTURE_OPTIONS'
    before = os.environ.get(key)
    os.environ[key] = f'format_whitelist;{_CONTAINERS}'
    try:
        yield
    finally:
        os.environ.pop(key)
        if before is not None:
            os.environ[key] = before


class _Writer:
    """Annotated video and JSON lines of one source, which get their names when they are closed.

    Args:
        output: The files to write.
        rate: Frames a second.
        live: Repeat a drawing until the time of the next frame: a camera gives fewer frames than its rate if the model
            is slower.
    """

    def __init__(self, output: Output, rate: float, live: bool):
        self.output, self.rate, self.live, self.drawn = output, rate, live, 0
        for path in output[1:]:
            path.parent.mkdir(parents=True, exist_ok=True)
        # OpenCV takes the format from the suffix.
        self._drawing, self._lines = (path.with_name(f'.{path.stem}{UNFINISHED}{path.suffix}') for path in output[1:])
        self._video: Any = None
        self._file = self._lines.open('w')

    def write(self, frame: Frame, drawing: np.ndarray, values: dict) -> None:
        height, width = drawing.shape[:2]
        if self._video is None:
            self._size = (width, height)
            self._video = cv2.VideoWriter(
                str(self._drawing), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*'mp4v'), self.rate, self._size
            )
            if not self._video.isOpened():
                raise UsageError(f'{self.output.drawing} cannot be written as an mp4 of {width}x{height} pixels.')
        if (width, height) != self._size:  # a video may change its size
            drawing = cv2.resize(drawing, self._size)
        due = int(frame.seconds * self.rate) if self.live else 0
        while True:
            self._video.write(drawing)
            self.drawn += 1
            if self.drawn >= due:
                break
        self._file.write(json.dumps(values) + '\n')

    def close(self, keep: bool) -> None:
        """Give the files their names, or remove them."""
        self._file.close()
        if self._video is not None:
            self._video.release()
        if keep:
            rename_durably(self._drawing, self.output.drawing)
            rename_durably(self._lines, self.output.prediction)
        for path in (self._drawing, self._lines):
            path.unlink(missing_ok=True)


def predict_video(predictor: Any, output: Output, batch_size: int = 1, max_frames: int | None = None) -> str:
    """Predict on a video or camera, and write an annotated mp4 and one JSON line for each frame.

    Memory does not grow with the length of the video. A camera ends with Ctrl-C.

    Args:
        predictor: Such as :class:`~mmcasvit.predict.predictor.Predictor`.
        output: The source, and the files to write.
        batch_size: Number of frames in a batch.
        max_frames: Number of frames after which to stop.

    Returns:
        Number of frames and frames a second, as text.

    Raises:
        UsageError: If the video cannot be read or the drawing cannot be written.
        KeyboardInterrupt: If a video was interrupted. What was done by then is written.
    """
    video = Video(output.source)
    title = f'camera {video.source}' if video.is_camera else Path(str(video.source)).name
    total = min(filter(None, (video.count, max_frames)), default=None)
    frames = itertools.islice(video.frames(), max_frames)
    writer, done, began = _Writer(output, video.rate, video.is_camera), 0, time.monotonic()
    speed = ''
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('{task.fields[speed]}'))
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(title, total=total, speed=speed)
            while batch := list(itertools.islice(frames, batch_size)):
                samples = predictor.predict([frame.image for frame in batch])
                for frame, sample in zip(batch, samples):
                    values = dict(frame=done, seconds=round(frame.seconds, 3), **predictor.values(sample))
                    writer.write(frame, predictor.draw(frame.image, sample), values)
                    done += 1
                speed = f'{done / max(time.monotonic() - began, 1e-9):.1f} frames/s'
                progress.update(task, completed=done, speed=speed)
    except KeyboardInterrupt:
        if not done:
            raise
        if not video.is_camera:
            raise KeyboardInterrupt(f'The first {done} frames of {title} are in {output.drawing}.') from None
    finally:
        video.close()
        writer.close(keep=done > 0)
    return f'{title}: {done} frames, {speed}'
