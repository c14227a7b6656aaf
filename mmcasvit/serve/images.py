"""Uploaded images, read within limits."""

import io

import cv2
import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from mmcasvit.utils.errors import Refused

# What Pillow calls the formats of mmcasvit.tooling.IMAGE_SUFFIXES.
IMAGE_FORMATS = ('JPEG', 'PNG', 'BMP', 'TIFF', 'WEBP')


def read_picture(data: bytes, max_pixels: int, color_type: str = 'color', backend: str | None = None) -> np.ndarray:
    """Decodes an image file as ``LoadImageFromFile`` of a config does, but not before its header was looked at.

    Args:
        data: the file.
        max_pixels: more than these are refused before they are decoded.
        color_type, backend: of ``LoadImageFromFile``. With its defaults the picture is turned upright as EXIF says, and
            grey, 16 bits, transparency and CMYK become BGR in uint8.

    Returns:
        ``(H, W, 3)``.

    Raises:
        Refused: it is too large, damaged or no image.
    """
    if not data:
        raise Refused(422, 'the file is empty: send the bytes of an image.')
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as file:
            if file.width * file.height > max_pixels:
                raise Refused(
                    413,
                    f'the picture has {file.width}x{file.height} pixels, and this server takes at most '
                    f'{max_pixels} in all: scale it down.',
                )
            file.load()  # to its end: OpenCV fills what is missing of a cut-off one with grey, and says nothing
    except Refused:
        raise
    except UnidentifiedImageError as error:
        raise Refused(
            415,
            'this is no image, or none of a format that is read here, whatever its name says: send '
            f'{", ".join(IMAGE_FORMATS[:-1])} or {IMAGE_FORMATS[-1]}.',
        ) from error
    except Image.DecompressionBombError as error:
        raise Refused(
            413, f'the picture has too many pixels, and this server takes at most {max_pixels}: scale it down.'
        ) from error
    except Exception as error:  # decoders raise nearly anything
        raise Refused(422, f'the image is damaged: {error}. Send a file that other programs open.') from error
    try:
        picture = mmcv.imfrombytes(data, flag=color_type, backend=backend)
    except cv2.error:
        picture = None
    if picture is None:
        raise Refused(422, 'OpenCV cannot decode this image: save it as an ordinary JPEG or PNG.')
    return picture
