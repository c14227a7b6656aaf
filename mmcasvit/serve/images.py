"""Decoding of uploaded images within limits."""

import io

import cv2
import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmcasvit.utils.errors import Refused
from mmcasvit.utils.images import IMAGE_FORMATS, open_image


def read_image(data: bytes, max_pixels: int, color_type: str = 'color', backend: str | None = None) -> np.ndarray:
    """Decode an image file as ``LoadImageFromFile`` does, after a check of its header.

    Args:
        data: Content of the file.
        max_pixels: Maximum number of pixels. Larger images are refused before they are decoded.
        color_type, backend: Options of ``LoadImageFromFile``. With the defaults the image is rotated as EXIF says, and
            grayscale, 16-bit, transparent and CMYK images are converted to BGR in uint8.

    Returns:
        ``(H, W, 3)``.

    Raises:
        Refused: If the image is too large or damaged, or the file is not an image.
    """
    if not data:
        raise Refused(422, 'the file is empty: send the bytes of an image.')
    try:
        with open_image(io.BytesIO(data)) as file:
            if file.width * file.height > max_pixels:
                raise Refused(
                    413,
                    f'the image has {file.width}x{file.height} pixels, and this server accepts at most {max_pixels}: '
                    'scale it down.',
                )
            file.load()  # OpenCV would fill the missing part of a truncated file with gray without an error
    except Refused:
        raise
    except UnidentifiedImageError as error:
        raise Refused(
            415,
            'the file is not an image of a supported format, whatever its name says: send '
            f'{", ".join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}.',
        ) from error
    except Image.DecompressionBombError as error:
        raise Refused(
            413, f'the image has too many pixels, and this server accepts at most {max_pixels}: scale it down.'
        ) from error
    except Exception as error:  # decoders raise almost any type
        raise Refused(422, f'the image is damaged: {error}. Send a file that other programs can open.') from error
    try:
        image = mmcv.imfrombytes(data, flag=color_type, backend=backend)
    except cv2.error:
        image = None
    if image is None:
        raise Refused(422, 'OpenCV cannot decode this image: save it as an ordinary JPEG or PNG.')
    return image
