"""Every kind of image file that people have, and every kind that is broken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kmaskformer.data.images import read_image, read_label_map, read_pair, read_panoptic_ids


@pytest.fixture()
def picture(rng) -> np.ndarray:
    """A 6 by 10 RGB image."""
    return rng.integers(0, 256, (6, 10, 3), np.uint8)


def save(image, path, **options):
    Image.fromarray(image).save(path, **options) if isinstance(image, np.ndarray) else image.save(path, **options)
    return path


def save_with_orientation(image, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif)
    return path


def test_rgb_from_path_and_bytes(picture, tmp_path):
    path = save(picture, tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path), picture)
    np.testing.assert_array_equal(read_image(str(path)), picture)
    np.testing.assert_array_equal(read_image(path.read_bytes()), picture)
    assert read_image(path).dtype == np.uint8


def test_grey_becomes_rgb(picture, tmp_path):
    image = read_image(save(picture[..., 0], tmp_path / "grey.png"))
    np.testing.assert_array_equal(image, np.repeat(picture[..., :1], 3, axis=-1))


def test_black_and_white_becomes_0_and_255(tmp_path):
    image = read_image(save(Image.fromarray(np.array([[True, False]])), tmp_path / "bw.png"))
    np.testing.assert_array_equal(image[..., 0], [[255, 0]])


def test_alpha_is_dropped(picture, tmp_path):
    alpha = np.arange(60, dtype=np.uint8).reshape(6, 10, 1)
    np.testing.assert_array_equal(
        read_image(save(np.concatenate([picture, alpha], -1), tmp_path / "rgba.png")), picture
    )
    grey_alpha = np.concatenate([picture[..., :1], alpha], -1)
    np.testing.assert_array_equal(read_image(save(grey_alpha, tmp_path / "la.png"))[..., 1], picture[..., 0])


def test_palette_image_gives_its_colors(tmp_path):
    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    image = read_image(save(palette, tmp_path / "p.png", transparency=0))
    np.testing.assert_array_equal(image[0], [[10, 20, 30], [200, 100, 50]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 100, 255], [0, 100, 255]),  # 8-bit data in a 16-bit file
        ([0, 2048, 4095], [0, 128, 255]),  # 12 bits
        ([0, 32768, 65535], [0, 128, 255]),
    ],
)
def test_16_bit_grey_is_scaled(tmp_path, values, expected):
    image = read_image(save(np.array([values], np.uint16), tmp_path / "16.png"))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[0], np.repeat(np.array(expected)[:, None], 3, axis=1))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (50, 150, 250)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").mean() == 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(picture, tmp_path, orientation):
    upright = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture, 1),
    }[orientation]
    path = save_with_orientation(picture, tmp_path / "a.png", orientation)
    np.testing.assert_array_equal(read_image(path), upright)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_map_of_a_rotated_image_fits_either_way(picture, tmp_path, orientation):
    """The map may be drawn on the stored pixels or on the upright image; both end up aligned with the image."""
    image_path = save_with_orientation(picture, tmp_path / "image.png", orientation)
    stored = save(picture[..., 0], tmp_path / "stored.png")
    upright = save(read_image(image_path)[..., 0], tmp_path / "upright.png")
    for map_path in (stored, upright):
        image, label_map = read_pair(image_path, map_path)
        np.testing.assert_array_equal(label_map, image[..., 0])


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_map_with_its_own_orientation_is_turned_like_its_image(picture, tmp_path, orientation, suffix):
    """The same pixels and the same tag in both files, as a program writes that copies the tags."""
    image_path = save_with_orientation(picture, tmp_path / "image.png", orientation)
    map_path = save_with_orientation(picture[..., 0], tmp_path / f"map.{suffix}", orientation)
    image, label_map = read_pair(image_path, map_path)
    np.testing.assert_array_equal(label_map, image[..., 0])
    assert label_map.dtype == np.int32
    panoptic_path = save_with_orientation(picture, tmp_path / f"panoptic.{suffix}", orientation)
    ids = read_pair(image_path, panoptic_path, read_panoptic_ids)[1]
    np.testing.assert_array_equal(ids, image.astype(np.int32) @ [1, 256, 65536])


def test_exif_data_that_are_none_turn_nothing(picture, tmp_path):
    path = save(picture, tmp_path / "a.png", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(read_image(path), picture)
    path = save(picture[..., 0], tmp_path / "map.png", exif=b"garbage")
    np.testing.assert_array_equal(read_label_map(path), picture[..., 0])


def test_sizes_that_differ(picture, tmp_path):
    image, labels = save(picture, tmp_path / "image.png"), save(picture[:5, :, 0], tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"image.png with height 6, width 10, and .*labels.png with height 5, width"):
        read_pair(image, labels)
    with pytest.raises(ValueError, match=r"<\d+ bytes> with height 6, width 10, and <\d+ bytes> with height 5"):
        read_pair(image.read_bytes(), labels.read_bytes())
    rotated = save(picture[..., 0].T, tmp_path / "rotated.png")
    with pytest.raises(ValueError, match="same size"):
        read_pair(image, rotated)


def test_unreadable_images(picture, tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.tile(picture, (20, 20, 1))).save(stream, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(stream.getvalue()[: len(stream.getvalue()) // 2])
    (tmp_path / "text.jpg").write_text("this is no image")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cut.jpg: cannot be read as image .*get it again"):
        read_image(tmp_path / "cut.jpg")
    for name in ("text.jpg", "empty.png"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as image: its content is in no known"):
            read_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"<3 bytes>: cannot be read"):
        read_image(b"abc")
    with pytest.raises(FileNotFoundError, match=r"none.png: no such image file"):
        read_image(tmp_path / "none.png")


def test_image_values_without_a_known_range(tmp_path):
    with pytest.raises(ValueError, match=r"float.tiff: .*floating-point"):
        read_image(save(np.ones((2, 2), np.float32), tmp_path / "float.tiff"))
    with pytest.raises(ValueError, match=r"wide.tiff: grey values must lie in 0..65535. Received: 0..70000"):
        read_image(save(np.array([[0, 70000]], np.int32), tmp_path / "wide.tiff"))


def test_label_maps_keep_their_numbers(tmp_path):
    labels = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(read_label_map(save(labels, tmp_path / "8.png")), labels)
    wide = np.array([[0, 300, 65535]], np.uint16)
    np.testing.assert_array_equal(read_label_map(save(wide, tmp_path / "16.png")), wide)
    long = np.array([[0, 26001, 1_000_000]], np.int32)
    np.testing.assert_array_equal(read_label_map(save(long, tmp_path / "32.tiff")), long)
    palette = Image.fromarray(labels)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    label_map = read_label_map(save(palette, tmp_path / "palette.png"))
    np.testing.assert_array_equal(label_map, labels)
    assert label_map.dtype == np.int32
    np.testing.assert_array_equal(read_label_map(save(Image.fromarray(labels > 0), tmp_path / "1.png")), [[0, 1, 1]])


def test_label_maps_that_are_none(picture, tmp_path):
    with pytest.raises(ValueError, match=r"colors.png: a label map must have one channel .* RGB image"):
        read_label_map(save(picture, tmp_path / "colors.png"))
    with pytest.raises(ValueError, match=r"lossy.jpg: a label map must be stored without loss.*JPEG"):
        read_label_map(save(picture[..., 0], tmp_path / "lossy.jpg"))
    with pytest.raises(FileNotFoundError, match=r"none.png: no such label map file"):
        read_label_map(tmp_path / "none.png")


def test_ids_in_a_lossy_tiff_are_refused(picture, tmp_path):
    """A TIFF may hold a JPEG; what compresses without loss is read."""
    path = save(picture[..., 0], tmp_path / "lossy.tif", compression="jpeg")
    with pytest.raises(ValueError, match=r"lossy.tif: .*stored without loss.*a TIFF compressed as jpeg"):
        read_label_map(path)
    with pytest.raises(ValueError, match=r"lossy.tif: .*stored without loss"):
        read_panoptic_ids(save(picture, tmp_path / "lossy.tif", compression="jpeg"))
    for lossless in ("tiff_lzw", "tiff_deflate", "packbits", None):
        path = save(picture[..., 0], tmp_path / "map.tif", compression=lossless)
        np.testing.assert_array_equal(read_label_map(path), picture[..., 0])


def test_panoptic_ids(tmp_path):
    ids = np.array([[0, 255, 256, 65536, 16777215]])
    colors = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    decoded = read_panoptic_ids(save(colors, tmp_path / "p.png"))
    np.testing.assert_array_equal(decoded, ids)
    assert decoded.dtype == np.int32
    with pytest.raises(ValueError, match=r"grey.png: a COCO panoptic PNG must be RGB.*mode L"):
        read_panoptic_ids(save(colors[..., 0], tmp_path / "grey.png"))


def png(depth, kind, raw):
    """A PNG of 4 pixels in a row, from its uncompressed bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_16_bit_colors_of_an_unknown_range_are_refused(tmp_path, kind, channels):
    """The high byte is read; where it is that of 8 or 12 bits, the picture would be nearly black."""
    path = tmp_path / "deep.png"
    for largest in (0, 255, 4095, 4096, 65535):
        numbers = np.full((4, channels), 65535)  # alpha does not count
        colors = numbers[:, : 3 if channels > 2 else 1]
        colors[...] = 0
        colors[1, 0] = largest
        path.write_bytes(png(16, kind, b"\x00" + numbers.astype(">u2").tobytes()))
        if largest < 4096:
            with pytest.raises(ValueError, match=r"deep\.png: .*all lie below 4096.*Save it with 8 bits"):
                read_image(path)
        else:
            assert read_image(path)[0, :, 0].tolist() == [0, largest // 256, 0, 0]


@pytest.mark.parametrize(
    ("depth", "kind", "raw"), [(2, 0, b"\x00\x1b"), (4, 0, b"\x00\x12\x30"), (16, 2, b"\x00" + b"\x01\x2c" * 12)]
)
def test_label_maps_whose_numbers_would_change_are_refused(tmp_path, depth, kind, raw):
    """PNGs of 4 x 1 pixels, written by hand: Pillow reads them, but not as the numbers they store."""
    content = png(depth, kind, raw)
    (tmp_path / "map.png").write_bytes(content)
    message = rf"must be PNG with 8 or 16 bits of grey, or a palette. Received: {depth} bits"
    for source in (content, tmp_path / "map.png"):
        with pytest.raises(ValueError, match=message):
            read_label_map(source)
