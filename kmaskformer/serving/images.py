"""Pictures of unknown origin: what they are is read from their first bytes, before any memory goes to their pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from kmaskformer.data.images import read_image
from kmaskformer.serving.errors import RequestError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode(contents: bytes, max_pixels: int) -> np.ndarray:
    """An image file as pixels.

    Args:
        contents: The bytes of the file.
        max_pixels: Most pixels that it may have.

    Returns:
        `(height, width, 3)` uint8 RGB, upright.

    Raises:
        RequestError: 415 if it is in no known format, 413 if it is too large, 400 if it is damaged.
    """
    check_header(contents, max_pixels)
    try:
        return read_image(contents)
    except ValueError as error:
        raise RequestError(400, f"The image cannot be read. {error}") from error


def check_header(contents: bytes, max_pixels: int) -> Image.Image:
    """An image file whose header is in order, with its size and format; raises as `decode`, but reads no pixels."""
    if not contents:
        raise RequestError(400, "The request holds no image: its body is empty. Send an image file.")
    try:
        image = Image.open(io.BytesIO(contents), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error), max_pixels) from error
    except UnidentifiedImageError as error:
        raise RequestError(
            415,
            f"The body must be an image file ({', '.join(FORMATS)}). Received: {len(contents)} bytes of another kind.",
        ) from error
    except Exception as error:  # Pillow's parsers raise many kinds of errors on broken headers
        raise RequestError(400, f"The image's header cannot be read: {error}") from error
    if image.width * image.height > max_pixels:
        raise _too_large(f"{image.width} x {image.height}", max_pixels)
    return image


def _too_large(received: str, max_pixels: int) -> RequestError:
    return RequestError(413, f"An image may have {max_pixels} pixels at most. Received: {received}. Send it smaller.")
