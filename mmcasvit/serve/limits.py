"""Limits of the server."""

from dataclasses import dataclass

from PIL import Image

from mmcasvit.utils.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Limits of a server and options of its batching.

    Attributes:
        max_batch: Maximum number of images per batch.
        max_delay_ms: Time the first image of a batch waits for others, in milliseconds.
        max_waiting: Maximum number of open requests, uploads included. Further ones are refused.
        max_bytes: Maximum size of an uploaded file.
        max_pixels: Maximum number of pixels of an image, according to its header.
        timeout: Time limit in seconds for an upload, and again for the answer.
    """

    max_batch: int = 8
    max_delay_ms: float = 5
    max_waiting: int = 64
    max_bytes: int = 20 * 2**20
    max_pixels: int = 25_000_000
    timeout: float = 30

    def __post_init__(self):
        if min(self.max_batch, self.max_waiting, self.max_bytes, self.max_pixels) < 1:
            raise UsageError('the maximum batch, queue, file size and number of pixels must be at least 1.')
        # NaN fails every comparison.
        if not (0 <= self.max_delay_ms <= 60_000 and 0 < self.timeout <= 86_400):
            raise UsageError(
                'the delay must be at least 0 and at most 60000 ms, and the timeout above 0 and at most 86400 s, got '
                f'{self.max_delay_ms:g} ms and {self.timeout:g} s.'
            )
        if self.max_pixels > Image.MAX_IMAGE_PIXELS:
            raise UsageError(
                f'max_pixels must be at most {Image.MAX_IMAGE_PIXELS}, got {self.max_pixels}: Pillow treats larger '
                'images as an attack.'
            )

    @property
    def too_many_bytes(self) -> str:
        """Message for a file that is too large."""
        return f'the file is larger than {self.max_bytes} bytes, the limit of this server: scale the image down.'

    @property
    def max_connections(self) -> int:
        """Maximum number of connections, including those that wait for a request or send its headers."""
        return 4 * self.max_waiting + 64
