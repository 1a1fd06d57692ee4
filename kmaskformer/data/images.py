"""Image files and label maps, decoded with Pillow.

Images come out upright, RGB and uint8 whatever the file holds; label maps come out as the numbers they store, upright
by their own EXIF orientation. Every failure is a `ValueError` (or `FileNotFoundError`) that names the file.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

ImageSource = str | os.PathLike | bytes

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the value of its EXIF orientation tag."""
_FULL_SIZE = "kmaskformer_full_size"
_PNG_KIND = "kmaskformer_png_kind"  # of a PNG, bits and kind of its channels
_PNG_CHANNELS = (2, 4, 6)  # kinds of several: colour, grey with alpha, colour with alpha
_HIGH_BYTE_OF_12_BITS = 15  # of the largest number
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "AVIF")
_LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")  # of a TIFF, by Pillow's names


def read_image(source: ImageSource) -> np.ndarray:
    """Reads an image as people see it in a viewer.

    The EXIF orientation is applied, grey and palette images become RGB, alpha is dropped, the first frame is taken of
    an animation. 16-bit grey is brought to 8 bits by the same factor for every image of a bit depth: values up to 255
    are kept, up to 4095 are taken for 12 bits, all others for 16. Of 16-bit colours the high byte is taken.

    Args:
        source: Path of the file, or the file's bytes.

    Returns:
        `(height, width, 3)` uint8 RGB.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read as an image, or is a 16-bit colour PNG whose values all lie below 4096.
    """
    return _decode_image(source)[0]


def read_label_map(source: ImageSource) -> np.ndarray:
    """Reads a map of class or instance ids: 8-bit, 16-bit or palette PNG (the palette's indices), or 32-bit TIFF.

    Grey that was saved as colour, with or without alpha, is read as grey. A map with an EXIF orientation is turned.

    Returns:
        `(height, width)` int32, the stored numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, holds colours instead of ids, or was compressed with loss.
    """
    return stored_ids(_open(source, "label map"), _name(source))


def stored_ids(image: Image.Image, where: str) -> np.ndarray:
    """The label map that a PIL image is, as `read_label_map` reads it; `where` begins the message of an error."""
    _refuse_loss(image, where)
    _check_depth(image, where)
    orientation = _orientation(image)
    if image.mode in ("LA", "RGB", "RGBA") and _is_grey(image):
        image = image.getchannel(0)
    if image.mode not in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
        raise ValueError(
            f"{where}: a label map must have one channel that holds ids. Received: a {image.mode} image, "
            "whose pixels are colours. Convert each colour to its class id and save an 8-bit grey or palette PNG."
        )
    return _turned(np.asarray(image).astype(np.int32), orientation)


def read_panoptic_ids(source: ImageSource) -> np.ndarray:
    """Reads a COCO panoptic PNG: `(height, width)` int32 of `R + 256 G + 65536 B`, turned by its EXIF orientation.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is not RGB, or was compressed with loss.
    """
    image = _open(source, "panoptic PNG")
    _refuse_loss(image, _name(source))
    # Optimizing programs store images of few colours with a palette.
    if image.mode not in ("RGB", "RGBA", "P"):
        raise ValueError(
            f"{_name(source)}: a COCO panoptic PNG must be RGB, segment id = R + 256 G + 65536 B. "
            f"Received: mode {image.mode}. Give the folder of the panoptic PNGs, not of semantic labels."
        )
    # Four bytes per pixel are one little-endian number whose highest byte, alpha, is masked out.
    numbers = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]
    return _turned((numbers & 0xFFFFFF).view(np.int32), _orientation(image))


def read_pair(
    image_path: ImageSource, map_path: ImageSource, read_map=read_label_map, least_edge: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Reads an image with its map, aligned.

    A map whose file has an EXIF orientation of its own is turned by it. Another map of an EXIF-rotated image may have
    been drawn on the upright image or on the stored pixels. The size tells; where both fit (a square image, or upside
    down), the map is taken to belong to the upright image that viewers show.

    Args:
        image_path: The image, as a path or its bytes.
        map_path: Its label map.
        read_map: Reads the map's file to `(height, width)` int32.
        least_edge: If not 0, a JPEG may be decoded at a half, a quarter or an eighth of its size, as long as no side
            gets shorter than this; the map is shrunk with it. That takes a fraction of the time.

    Returns:
        `(height, width, 3)` uint8 image and `(height, width)` int32 map.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file cannot be read or the sizes differ.
    """
    image, orientation, size = _decode_image(image_path, least_edge)
    segment_map = read_map(map_path)
    if segment_map.shape == size:
        return image, _shrunk(segment_map, image)
    if orientation >= 5 and segment_map.shape == size[::-1]:
        return image, _shrunk(_turned(segment_map, orientation), image)
    raise ValueError(
        f"Image and label map must have the same size. Received: {_name(image_path)} with height {size[0]}, width "
        f"{size[1]}, and {_name(map_path)} with height {segment_map.shape[0]}, width {segment_map.shape[1]}. "
        "Resize the one that is wrong (labels without interpolation), or correct the pattern that pairs them."
    )


def _refuse_loss(image: Image.Image, where: str) -> None:
    """Refuses ids from a compression that mixes neighbours; that of a TIFF is known by what it holds, not its name."""
    compression = image.info.get("compression") if image.format == "TIFF" else None
    if image.format in _LOSSY_FORMATS or compression in _LOSSY_COMPRESSIONS:
        received = f"a TIFF compressed as {compression}" if compression else image.format
        raise ValueError(
            f"{where}: a label map must be stored without loss, as PNG. Received: {received}, whose "
            "compression changes ids at borders. Save the original labels as PNG."
        )


def _check_depth(image: Image.Image, where: str) -> None:
    """Refuses PNGs whose numbers Pillow changes: 2 and 4 bits of grey are stretched to 8, 16-bit colours cut to 8."""
    if _PNG_KIND not in image.info or image.format != "PNG":  # opened elsewhere, its bytes are out of reach
        return
    depth, kind = image.info[_PNG_KIND]
    if (kind == 0 and depth in (2, 4)) or (kind in _PNG_CHANNELS and depth == 16):
        raise ValueError(
            f"{where}: a label map must be PNG with 8 or 16 bits of grey, or a palette. Received: {depth} bits "
            f"of {'grey' if kind == 0 else 'colour or alpha'}. Save it as 8-bit or 16-bit grey, with the same numbers."
        )


def _is_grey(image: Image.Image) -> bool:
    colors = np.asarray(image)[..., :3] if image.mode != "LA" else None
    return colors is None or bool((colors == colors[..., :1]).all())


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8; 1, which is upright, where there is none that can be read."""
    image.load()  # Pillow turns a TIFF itself when it is loaded, and takes the tag away
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except SyntaxError:  # EXIF data that are none; viewers show such images as they are stored
        return 1
    return orientation if orientation in _TRANSPOSE else 1


def _turned(segment_map: np.ndarray, orientation: int) -> np.ndarray:
    """The map made upright, as `_TRANSPOSE` makes an image."""
    if orientation == 1:
        return segment_map
    return np.asarray(Image.fromarray(segment_map).transpose(_TRANSPOSE[orientation]))


def _shrunk(segment_map: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The map at the size of its image, which may have been decoded at a reduced size."""
    if segment_map.shape == image.shape[:2]:
        return segment_map
    return np.asarray(Image.fromarray(segment_map).resize(image.shape[1::-1], Image.Resampling.NEAREST))


def _decode_image(source: ImageSource, least_edge: int = 0) -> tuple[np.ndarray, int, tuple[int, int]]:
    """`(height, width, 3)` uint8 upright image, the EXIF orientation (1..8) of the file, and its upright full size."""
    image = _open(source, "image", least_edge)
    full_size = image.info[_FULL_SIZE][::-1]
    orientation = _orientation(image)
    full_size = full_size[::-1] if orientation >= 5 else full_size
    pixels = upright_rgb(image, _name(source))
    _refuse_low_colors(pixels, image, _name(source))
    return pixels, orientation, full_size


def _refuse_low_colors(pixels: np.ndarray, image: Image.Image, where: str) -> None:
    """Refuses 16-bit colour PNGs of 8 or 12 bits' values, of which Pillow's high byte leaves nearly nothing."""
    depth, kind = image.info[_PNG_KIND] if image.format == "PNG" else (8, 0)
    if depth == 16 and kind in _PNG_CHANNELS and pixels.max() <= _HIGH_BYTE_OF_12_BITS:
        raise ValueError(
            f"{where}: a PNG with 16 bits per channel must use them. Received: values that all lie below "
            f"{256 * (_HIGH_BYTE_OF_12_BITS + 1)}, so that their range is not known. Save it with 8 bits per channel."
        )


def upright_rgb(image: Image.Image, where: str) -> np.ndarray:
    """A PIL image as `read_image` shows it; `where` begins the message of an error."""
    orientation = _orientation(image)
    image = image.transpose(_TRANSPOSE[orientation]) if orientation != 1 else image
    if image.mode == "F":
        raise ValueError(
            f"{where}: images must hold whole numbers. Received: a floating-point image, whose range is "
            "unknown. Save it with 8 or 16 bits per channel."
        )
    if image.mode.startswith("I"):
        return _grey_to_rgb(np.asarray(image), where)
    # A palette's transparency goes through RGBA; a plain conversion would warn and lose it.
    image = image.convert("RGBA") if image.mode in ("P", "PA") else image
    # Converting from RGB to RGB would copy.
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray, where: str) -> np.ndarray:
    """16-bit `(height, width)` to `(height, width, 3)` uint8."""
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"{where}: grey values must lie in 0..65535. Received: {low}..{high}. Save the image with 16 bits."
        )
    full = 255 if high <= 255 else 4095 if high <= 4095 else 65535
    scaled = np.round(grey.astype(np.float32) * (255.0 / full)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def _open(source: ImageSource, kind: str, least_edge: int = 0) -> Image.Image:
    """The first frame, fully decoded, so that a truncated file is found here; more of the file is in `info`."""
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise FileNotFoundError(f"{_name(source)}: no such {kind} file. Check the path.")
    try:
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        image = Image.open(io.BytesIO(content))
        full_size = image.size
        if least_edge:
            shorter = min(full_size)
            image.draft(None, tuple(-(-side * least_edge // shorter) for side in full_size))
        image.load()
        image.info |= {_FULL_SIZE: full_size, _PNG_KIND: content[24:26]}
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{_name(source)}: cannot be read as {kind}: its content is in no known image format. "
            "Give an image file, or take it out of the dataset."
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{_name(source)}: cannot be read as {kind}: it is too large. {str(error).partition(',')[0]}, twice "
            "`PIL.Image.MAX_IMAGE_PIXELS`. Cut it into parts, or make it smaller."
        ) from error
    # Pillow's decoders raise many kinds of errors on broken files, SyntaxError and struct.error among them.
    except Exception as error:
        raise ValueError(
            f"{_name(source)}: cannot be read as {kind} ({type(error).__name__}: {error}). "
            "The file is damaged, incomplete or no image: get it again or take it out of the dataset."
        ) from error
    return image


def _name(source: ImageSource) -> str:
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else str(source)
