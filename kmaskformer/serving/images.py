"""Pictures of unknown origin: what they are is read from their first bytes, before any memory goes to their pixels."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from kmaskformer.data.images import read_image
from kmaskformer.serving.errors import RequestError
from kmaskformer.serving.limits import Limits

_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")


def decode(contents: bytes, limits: Limits) -> np.ndarray:
    """An image file as pixels.

    Args:
        contents: The bytes of the file.
        limits: Bounds of its size.

    Returns:
        `(height, width, 3)` uint8 RGB, upright.

    Raises:
        RequestError: 415 if it is in no known format, 413 if it is too large, 400 if it is damaged.
    """
    check_header(contents, limits)
    try:
        return read_image(contents)
    except ValueError as error:
        raise RequestError(400, f"The image cannot be read. {error}") from error


def check_header(contents: bytes, limits: Limits) -> Image.Image:
    """An image file whose header is in order, with its size and format; raises as `decode`, but reads no pixels."""
    if not contents:
        raise RequestError(400, "The request holds no image: its body is empty. Send an image file.")
    try:
        image = Image.open(io.BytesIO(contents), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise too_large(limits, "more than twice what Pillow opens") from error
    except UnidentifiedImageError as error:
        if contents.startswith(_SIGNATURES):
            raise RequestError(400, "The image cannot be read: it is damaged or incomplete.") from error
        raise RequestError(
            415,
            f"The body must be an image file ({', '.join(FORMATS)}). Received: {len(contents)} bytes of another kind.",
        ) from error
    except Exception as error:  # Pillow's parsers raise many kinds of errors on broken headers
        raise RequestError(400, f"The image's header cannot be read: {error}") from error
    if image.width * image.height > limits.image_pixels or max(image.size) > limits.image_side:
        raise too_large(limits, f"{image.width} x {image.height}")
    return image


def too_large(limits: Limits, received: str) -> RequestError:
    """The refusal of an image for its size."""
    return RequestError(
        413,
        f"An image may have {limits.image_pixels} pixels at most, {limits.image_side} on a side. "
        f"Received: {received}. Send it smaller.",
    )
