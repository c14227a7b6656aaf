"""Predictions on any number of images by any number of processes, as JSON lines in parts.

A process takes the images whose names have a hash that belongs to it, so that no process needs a list of them or has to
talk to another. A part gets its name when it is whole. What is in a part is done, whichever process or run wrote it.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mmcasvit.utils.ahead import map_ahead
from mmcasvit.utils.errors import UsageError
from mmcasvit.utils.images import read_image
from mmcasvit.utils.text import printable
from mmcasvit.weights.integrity import UNFINISHED, rename_durably, write_text

from .sources import Source

# What each line begins with, so that the name can be read without the rest.
_HEAD = '{"image": '
# Threads that read and check images ahead of the model.
_READERS = 4
# Seconds between two reports of the progress.
_REPORT_EVERY = 30.0


class Share(NamedTuple):
    """One of several processes.

    Attributes:
        rank: Its number, from 0.
        processes: Number of them.
        local_rank: Its number on its machine.
    """

    rank: int = 0
    processes: int = 1
    local_rank: int = 0

    @classmethod
    def of_launcher(cls, launcher: str) -> 'Share':
        """Return which process this is, as the launcher says."""
        if launcher == 'none':
            return cls()
        names = dict(
            pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK'),
            slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID'),
            mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_LOCAL_RANK'),
        )[launcher]
        return cls(*(int(os.environ.get(name, 0)) for name in names))


def key_of(name: str) -> int:
    """Return a hash of 64 bits, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest(), 'big')


class Parts:
    """Folder of JSON lines, in parts.

    Args:
        folder: The folder.
        share: This process.
        size: Number of lines of a part.
        settings: What the predictions depend on. A folder has those of one model only.
        resume: Whether parts that exist are kept, and their images left out.

    Raises:
        UsageError: If there are parts that are not to be kept, or those of another model.
    """

    def __init__(self, folder: Path, share: Share, size: int, settings: dict, resume: bool):
        self.folder, self.share, self.size = folder, share, size
        folder.mkdir(parents=True, exist_ok=True)
        own = sorted(folder.glob(f'part-{share.rank:05d}-*.jsonl'))
        if own and not resume:
            raise UsageError(f'{folder} has predictions already. Go on with --resume, or choose another --out-dir.')
        self._check_settings(settings, resume)
        self._next = int(own[-1].stem.rpartition('-')[2]) + 1 if own else 0
        self.done = np.unique(np.fromiter(self._keys(), np.uint64)) if resume else np.zeros(0, np.uint64)
        self._lines: list[str] = []

    def _check_settings(self, settings: dict, resume: bool) -> None:
        file = self.folder / 'settings.json'
        if resume and file.exists() and (before := json.loads(file.read_text())) != settings:
            changed = ', '.join(key for key in settings if settings[key] != before.get(key))
            raise UsageError(
                f'{self.folder} has predictions with other settings ({changed}). Choose another --out-dir.'
            )
        if self.share.rank == 0:
            write_text(file, json.dumps(settings, indent=1))

    def all(self) -> list[Path]:
        """Return the parts that are whole, those of all processes."""
        return sorted(self.folder.glob('part-*.jsonl'))

    def _keys(self) -> Iterator[int]:
        """Yield the hashes of the images of this process that are done."""
        for part in self.all():
            with part.open() as lines:
                for line in lines:
                    key = key_of(_name_in(line))
                    if key % self.share.processes == self.share.rank:
                        yield key

    def missing(self, sources: Iterable[Source]) -> Iterator[Source]:
        """Yield those of the images that belong to this process and are not done."""
        for source in sources:
            key = key_of(printable(source.name.as_posix()))
            if key % self.share.processes == self.share.rank:
                place = np.searchsorted(self.done, np.uint64(key))
                if place == len(self.done) or self.done[place] != key:
                    yield source

    def add(self, source: Source, values: dict) -> None:
        """Add the line of an image, and write a part if there are enough."""
        self._lines.append(json.dumps({'image': printable(source.name.as_posix()), **values}) + '\n')
        if len(self._lines) >= self.size:
            self.flush()

    def flush(self) -> None:
        """Write the lines that are left as a part."""
        if not self._lines:
            return
        part = self.folder / f'part-{self.share.rank:05d}-{self._next:07d}.jsonl'
        unfinished = part.with_name(f'.{part.name}{UNFINISHED}')
        unfinished.write_text(''.join(self._lines))
        rename_durably(unfinished, part)
        self._next += 1
        self._lines = []

    def merge(self, target: Path) -> int:
        """Write the lines of all parts to one file, each image once, and return the number of images."""
        seen = np.unique(np.fromiter(self._keys(), np.uint64))
        left = np.ones(len(seen), dtype=bool)
        unfinished = target.with_name(f'.{target.name}{UNFINISHED}')
        with unfinished.open('w') as merged:
            for part in self.all():
                with part.open() as lines:
                    for line in lines:
                        place = np.searchsorted(seen, np.uint64(key_of(_name_in(line))))
                        if left[place]:
                            merged.write(line)
                            left[place] = False
        rename_durably(unfinished, target)
        for rest in self.folder.glob(f'.part-*{UNFINISHED}'):  # of processes that were killed
            rest.unlink()
        return len(seen)


def _name_in(line: str) -> str:
    """Return the name of the image of a line, without parsing the rest."""
    return json.JSONDecoder().raw_decode(line, len(_HEAD))[0]


def fingerprint(settings: Any, file: str | None) -> str:
    """Return a short hash of settings and of the content of a file, or of its name if it is not a local file."""
    content = hashlib.blake2b(repr(settings).encode(), digest_size=8)
    if file is not None and Path(file).is_file():
        with open(file, 'rb') as stream:
            while block := stream.read(2**20):
                content.update(block)
    else:
        content.update(str(file).encode())
    return content.hexdigest()


def predict_share(build: Callable[[], Any], parts: Parts, sources: Iterable[Source], batch_size: int = 1) -> str:
    """Predict on the images of this process that are not done yet.

    An image that cannot be read has a line with an ``error``. SIGTERM and Ctrl-C end the work after the batch, and what
    was done by then is kept.

    Args:
        build: Function that returns the predictor, which is called only if there is something to do.
        parts: Where the lines go.
        sources: All images, those of other processes included. Videos are left out.
        batch_size: Number of images in a batch.

    Returns:
        Number of images, and images a second, as text.

    Raises:
        KeyboardInterrupt: If the work was ended.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    who = f'process {parts.share.rank} of {parts.share.processes}: ' if parts.share.processes > 1 else ''
    wanted = parts.missing(source for source in sources if not source.is_video)
    done = unreadable = 0
    began = reported = time.monotonic()
    predictor = None
    try:
        with ThreadPoolExecutor(_READERS) as readers:
            ahead = map_ahead(readers, _read, wanted, _READERS + batch_size)
            while batch := list(itertools.islice(ahead, batch_size)):
                predictor = predictor or build()
                for source, values in _predict(predictor, batch):
                    parts.add(source, values)
                    done, unreadable = done + 1, unreadable + ('error' in values)
                if time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    print(f'{who}{done} images, {done / (reported - began):.1f} images/s', file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f'{who}{done} images are done. Go on with --resume.') from None
    finally:
        parts.flush()
        signal.signal(signal.SIGTERM, before)
    if not done:
        return f'{who}0 images, nothing was missing'
    rate = done / max(time.monotonic() - began, 1e-9)
    more = f', of which {unreadable} cannot be read (their lines have an "error")' if unreadable else ''
    return f'{who}{done} images{more}, {rate:.1f} images/s'


def _read(source: Source) -> tuple[Source, np.ndarray | str]:
    """Return an image, or why it cannot be read."""
    try:
        return source, read_image(str(source.path))
    except UsageError as error:
        return source, printable(str(error))


def _predict(predictor: Any, batch: list[tuple[Source, np.ndarray | str]]) -> Iterator[tuple[Source, dict]]:
    images = [image for _, image in batch if not isinstance(image, str)]
    try:
        found = iter(predictor.predict(images) if images else ())
    except (cv2.error, ZeroDivisionError) as error:  # an image that is too narrow to be resized
        if len(batch) == 1:
            yield batch[0][0], dict(error=f'the image cannot be resized: {" ".join(str(error).split())}')
            return
        for one in batch:
            yield from _predict(predictor, [one])
        return
    for source, image in batch:
        if isinstance(image, str):
            yield source, dict(error=image)
        else:
            height, width = image.shape[:2]
            yield source, dict(width=width, height=height, **predictor.values(next(found)))
