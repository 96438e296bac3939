"""Every kind of image file gives its right pixels, and one that cannot be used says why."""

from __future__ import annotations

import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from tune_ssl.base.spec import DataSpec
from tune_ssl.data.folder import ImageFile
from tune_ssl.data.image_files import BadImage, Decoding, Header, NoImage, decode, look
from tune_ssl.data.image_reader import ImageReader

MANY = 10**9  # pixels that are allowed
WIDTH, HEIGHT = 12, 8
FULL = ((0.0, 65535.0),)


def ramp(channels: int, dtype: type = np.uint8, most: int = 255) -> np.ndarray:
    """(8, 12, C), each value another one, over all of 0..most."""
    values = np.linspace(0, most, HEIGHT * WIDTH * channels)
    return values.reshape(HEIGHT, WIDTH, channels).astype(dtype)


def upper(values: np.ndarray) -> np.ndarray:
    """(C, H, W) of what 0..65535 becomes."""
    return np.rint(values.astype(float) / 257).astype(np.uint8).transpose(2, 0, 1)


def png(path: Path, values: np.ndarray, orientation: int = 0, after: bytes = b"") -> Path:
    """A 16-bit PNG file of (H, W, 1..4), chunk by chunk: Pillow writes grey ones alone."""
    height, width, channels = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    exif = Image.Exif()
    exif[274] = orientation
    tag = [(b"eXIf", exif.tobytes()[6:])] if orientation else []
    chunks = [(b"IHDR", head), *tag, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + after)
    return path


def pixels(path: Path, channels: int = 3, **how: object) -> np.ndarray:
    return decode(path.read_bytes(), Decoding(channels, **how))


def reader_of(folder: Path, **data: object) -> tuple[ImageReader, list[ImageFile]]:
    """What the files of a folder are, looked at."""
    files = [ImageFile(p.name, p.stat().st_size, 0) for p in sorted(folder.iterdir())]
    reader = ImageReader(folder, DataSpec(**data))
    reader.look(files)
    return reader, files


def reason(path: Path, **how: object) -> str:
    """Why a file of a folder of its own is bad."""
    reader, files = reader_of(path.parent, **how)
    if path.name not in reader.bad:
        list(reader.read(files, Decoding(3), (3, HEIGHT, WIDTH)))
    return reader.bad[path.name]


# ---- more than 8 bits ----------------------------------------------------------------------------


def test_a_16_bit_grey_png_is_scaled_by_the_range_that_is_known(tmp_path):
    values = ramp(1, np.uint16, 65535)
    path = png(tmp_path / "a.png", values)
    assert look(path, MANY) == Header(1, (WIDTH, HEIGHT), wide=True)
    np.testing.assert_array_equal(pixels(path, 1, ranges=FULL), upper(values))


def test_a_16_bit_colour_png_keeps_all_its_bits_until_it_is_scaled(tmp_path):
    values = 7200 + ramp(3, np.uint16, 255)  # within one upper byte, nearly
    path = png(tmp_path / "a.png", values)
    assert look(path, MANY) == Header(3, (WIDTH, HEIGHT), wide=True)
    found = pixels(path, ranges=((7200.0, 7455.0),))
    np.testing.assert_array_equal(found, (values - 7200).transpose(2, 0, 1))


@pytest.mark.parametrize("channels", [2, 4])
def test_the_transparency_of_a_16_bit_png_is_no_channel_and_lays_it_on_the_background(
    channels, tmp_path
):
    values = np.full((HEIGHT, WIDTH, channels), 20000, np.uint16)
    values[..., -1] = 65535
    values[0, 0, -1], values[0, 1, -1] = 0, 32768
    path = png(tmp_path / "a.png", values)
    assert look(path, MANY) == Header(channels - 1, (WIDTH, HEIGHT), wide=True)
    for background, behind in (("white", 255), ("black", 0)):
        found = pixels(path, channels - 1, ranges=FULL, background=background)
        assert (found[:, 0, 0] == behind).all() and (found[:, 1:] == 78).all()
        assert np.abs(found[:, 0, 1] - (78 + behind) / 2).max() <= 1


@pytest.mark.parametrize(
    "dtype, low, high",
    [
        (np.uint16, 0, 65535),
        (np.int16, -32768, 32767),
        (np.uint32, 0, 2**32 - 1),
        (np.int32, -(2**31), 2**31 - 1),
        (np.int8, -128, 127),
        (np.float32, -1.5, 2.5),
        (np.float64, -1e-3, 1e3),
    ],
)
def test_grey_tiff_values_of_every_type_are_scaled_from_low_to_high(dtype, low, high, tmp_path):
    shares = np.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    values = (low + shares * (float(high) - low)).clip(low, high).astype(dtype)
    values[-1, -1] = high
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, photometric="minisblack")
    assert look(tmp_path / "a.tif", MANY) == Header(1, (WIDTH, HEIGHT), wide=True)
    found = pixels(tmp_path / "a.tif", 1, ranges=((low, high),))
    assert np.abs(found[0].astype(int) - 255 * shares).max() <= 1
    assert found[0, 0, 0] == 0 and found[0, -1, -1] == 255


def test_a_16_bit_colour_tiff_keeps_its_bits(tmp_path):
    values = 1000 + ramp(3, np.uint16, 255)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", metadata=None)
    assert look(tmp_path / "a.tif", MANY) == Header(3, (WIDTH, HEIGHT), wide=True)
    found = pixels(tmp_path / "a.tif", ranges=((1000.0, 1255.0),))
    np.testing.assert_array_equal(found, (values - 1000).transpose(2, 0, 1))


def test_a_16_bit_tiff_with_transparency_is_laid_on_the_background(tmp_path):
    values = np.full((HEIGHT, WIDTH, 4), 20000, np.uint16)
    values[..., 3] = 65535
    values[0, 0, 3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unassalpha"], metadata=None)
    assert look(path, MANY) == Header(3, (WIDTH, HEIGHT), wide=True)
    found = pixels(path, ranges=FULL, background="#ffcc00")
    assert found[:, 0, 0].tolist() == [255, 204, 0] and (found[:, 1:] == 78).all()


def pgm(path: Path, values: np.ndarray, most: int) -> Path:
    head = f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode()
    path.write_bytes(head + values.astype(">u2").tobytes())
    return path


def test_a_12_bit_pgm_is_grey_with_more_than_8_bits_and_fills_the_range_of_its_own_values(tmp_path):
    values = ramp(1, np.uint16, 4095)
    pgm(tmp_path / "a.pgm", values, 4095)
    reader, files = reader_of(tmp_path)
    assert reader.headers["a.pgm"] == Header(1, (WIDTH, HEIGHT), wide=True)
    how = reader.decoding(files)
    found = pixels(tmp_path / "a.pgm", 1, ranges=how.ranges)
    assert np.abs(found[0].astype(int) - values[..., 0] * (255 / 4095)).max() <= 1


def test_a_range_is_in_the_values_that_a_12_bit_pgm_has(tmp_path):
    pgm(tmp_path / "a.pgm", np.full((HEIGHT, WIDTH), 2048), 4095)
    assert (pixels(tmp_path / "a.pgm", 1, ranges=((0.0, 4095.0),), every=True) == 128).all()


def test_a_16_bit_colour_ppm_is_refused_with_the_formats_that_hold_such_pixels(tmp_path):
    head = f"P6 {WIDTH} {HEIGHT} 65535\n".encode()
    (tmp_path / "a.ppm").write_bytes(head + ramp(3, ">u2", 65535).tobytes())
    assert reason(tmp_path / "a.ppm") == (
        "has 16 bits a channel, which are read from PNG and TIFF files only"
    )


def test_the_range_is_that_of_the_training_files_but_for_outliers(tmp_path):
    rng = np.random.default_rng(0)
    for index in range(10):
        values = rng.integers(7200, 7600, (64, 64, 1))
        values[0, 0] = 65535  # a hot pixel
        png(tmp_path / f"{index}.png", values)
    reader, files = reader_of(tmp_path)
    ((low, high),) = reader.decoding(files).ranges
    assert low == 7200 and 7600 <= high <= 7800


def test_the_range_is_that_of_the_whole_picture_whatever_its_size(tmp_path):
    values = np.zeros((4096, 8, 1), np.uint16)
    values[:, 1:] = 50000
    png(tmp_path / "a.png", values)
    reader, files = reader_of(tmp_path)
    assert reader.decoding(files).ranges == ((0.0, 50000.0),)


def test_8_bit_pixels_stay_as_they_are_beside_deeper_ones_and_follow_a_range_that_is_given(
    tmp_path,
):
    Image.fromarray(ramp(1)[..., 0]).save(tmp_path / "a.png")
    png(tmp_path / "b.png", ramp(1, np.uint16, 1000))
    reader, files = reader_of(tmp_path)
    how = reader.decoding(files)
    assert how.ranges == ((0.0, 1000.0),) and not how.every
    np.testing.assert_array_equal(
        decode((tmp_path / "a.png").read_bytes(), how), ramp(1).transpose(2, 0, 1)
    )
    reader, files = reader_of(tmp_path, range=[100.0, 200.0])
    found = decode((tmp_path / "a.png").read_bytes(), reader.decoding(files))
    expected = (ramp(1)[..., 0] - 100.0).clip(0, 100) * 2.55
    assert np.abs(found[0] - expected).max() < 0.51


def test_without_a_range_16_bits_mean_what_8_do_and_floats_are_refused(tmp_path):
    values = ramp(1, np.uint16, 65535)
    found = pixels(png(tmp_path / "a.png", values), 1)
    assert np.abs(found[0] - values[..., 0] / 257).max() <= 0.51
    np.save(tmp_path / "a.npy", np.zeros((HEIGHT, WIDTH), np.float32))
    with pytest.raises(BadImage) as caught:
        pixels(tmp_path / "a.npy", 1)
    assert str(caught.value) == (
        "has more than 8 bits a channel, and no training image has: data.range says what 0 and 255 stand for"
    )


def test_a_colour_that_stands_for_transparency_counts_in_16_bits_too(tmp_path):
    values = ramp(1, np.uint16, 65535)
    values[:2] = 777
    image = Image.fromarray(values[..., 0])
    image.save(tmp_path / "a.png", transparency=777)
    found = decode((tmp_path / "a.png").read_bytes(), Decoding(1, ranges=((0, 65535),)))
    assert (found[0, :2] == 255).all() and np.abs(
        found[0, 2:] - values[2:, :, 0] / 257
    ).max() < 0.51


def test_an_imagej_file_with_a_palette_has_its_colours(tmp_path):
    indices = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    colours = np.zeros((3, 256), np.uint16)
    colours[1] = 65535  # all of them green
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, indices, imagej=True, photometric="palette", colormap=colours)
    assert look(path, MANY).channels == 3
    assert pixels(path, 3)[:, 0, 0].tolist() == [0, 255, 0]


def test_a_file_of_pictures_of_several_sizes_is_said_to_hold_several(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(np.zeros((4, 4), np.uint8))
        file.write(np.zeros((HEIGHT, WIDTH), np.uint8))
    assert look(path, MANY).frames == 2


# ---- bands and several pictures ------------------------------------------------------------------


def test_four_bands_of_which_none_is_said_to_be_transparency_are_four_channels(tmp_path):
    values, path = ramp(4), tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["unspecified"], metadata=None)
    assert look(path, MANY) == Header(4, (WIDTH, HEIGHT), wide=False)
    np.testing.assert_array_equal(pixels(path, 4), values.transpose(2, 0, 1))


def bands(path: Path, values: np.ndarray, planar: str = "contig") -> None:
    """A TIFF file of (H, W, C)."""
    kind = {"photometric": "minisblack", "planarconfig": planar, "metadata": None}
    tifffile.imwrite(path, values if planar == "contig" else values.transpose(2, 0, 1), **kind)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_five_bands_are_five_channels_however_they_lie_in_the_file(planar, tmp_path):
    values, path = ramp(5), tmp_path / "a.tif"
    bands(path, values, planar)
    assert look(path, MANY) == Header(5, (WIDTH, HEIGHT), wide=False)
    np.testing.assert_array_equal(pixels(path, 5), values.transpose(2, 0, 1))


def test_the_channels_of_a_microscope_s_stack_are_channels(tmp_path):
    values = ramp(2, np.uint16, 65535).transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "CYX"})
    assert look(tmp_path / "a.tif", MANY) == Header(2, (WIDTH, HEIGHT), wide=True)
    found = pixels(tmp_path / "a.tif", 2, ranges=FULL)
    np.testing.assert_array_equal(found, upper(values.transpose(1, 2, 0)))


def test_of_a_microscope_s_stack_of_planes_the_first_is_taken_with_all_its_channels(tmp_path):
    values = np.arange(3 * 2 * HEIGHT * WIDTH, dtype=np.uint8).reshape(3, 2, HEIGHT, WIDTH)
    tifffile.imwrite(tmp_path / "a.tif", values, imagej=True, metadata={"axes": "ZCYX"})
    assert look(tmp_path / "a.tif", MANY) == Header(2, (WIDTH, HEIGHT), wide=False, frames=3)
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif", 2), values[0])


def test_every_band_is_scaled_to_the_side_on_its_own(tmp_path):
    values = np.zeros((40, 60, 5), np.uint8)
    values[:] = [10, 20, 30, 40, 50]
    bands(tmp_path / "a.tif", values)
    found = pixels(tmp_path / "a.tif", 5, side=16)
    assert found.shape == (5, 16, 16) and found[:, 3, 4].tolist() == [10, 20, 30, 40, 50]


def test_of_several_pages_the_first_is_taken_and_it_is_said(tmp_path):
    first, path = Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50)), tmp_path / "a.tif"
    others = [Image.new("RGB", (WIDTH, HEIGHT)) for _ in range(2)]
    first.save(path, save_all=True, append_images=others)
    assert look(path, MANY) == Header(3, (WIDTH, HEIGHT), wide=False, frames=3)
    assert (pixels(path) == np.array([200, 100, 50]).reshape(3, 1, 1)).all()
    reader, _ = reader_of(tmp_path)
    assert reader.notes(Decoding(3)) == [
        "1 files hold several pictures, of which the first is taken: a.tif"
    ]


def pages(path: Path, first: Image.Image, **options: object) -> Path:
    """A TIFF file of two pages."""
    first.save(path, save_all=True, append_images=[first], **options)
    return path


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
def test_compressed_tiff_files_are_read(compression, tmp_path):
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / "a.tif", compression=compression)
    assert look(tmp_path / "a.tif", MANY) == Header(3, (64, 48), wide=False)
    assert np.abs(pixels(tmp_path / "a.tif")[:, 5, 5] - [200.0, 100, 50]).max() <= 3


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg"])
def test_the_first_of_several_compressed_pages_is_read(compression, tmp_path):
    path = pages(
        tmp_path / "a.tif", Image.new("RGB", (64, 48), (200, 100, 50)), compression=compression
    )
    assert look(path, MANY) == Header(3, (64, 48), wide=False, frames=2)
    assert np.abs(pixels(path)[:, 5, 5] - [200.0, 100, 50]).max() <= 3


@pytest.mark.parametrize(
    "mode",
    ["P", "CMYK", "1", "RGBA"],
)
def test_the_first_of_several_pages_looks_as_it_does_alone(mode, tmp_path):
    image = Image.fromarray(ramp(3)).convert(mode)
    image.save(tmp_path / "one.tif")
    alone, path = pixels(tmp_path / "one.tif"), pages(tmp_path / "two.tif", image)
    assert look(path, MANY) == look(tmp_path / "one.tif", MANY)._replace(frames=2)
    np.testing.assert_array_equal(pixels(path), alone)


@pytest.mark.parametrize("dtype, count", [(np.uint8, 2), (np.uint16, 1)])
def test_where_zero_stands_for_white_it_is_white_in_every_kind_of_tiff(dtype, count, tmp_path):
    values = ramp(1, dtype, np.iinfo(dtype).max)[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for _ in range(count):
            file.write(values, photometric="miniswhite", metadata=None)
    found = pixels(tmp_path / "a.tif", 1, ranges=FULL)[0]
    assert found[0, 0] == 255 and found[-1, -1] == 0


def test_values_that_were_multiplied_with_their_transparency_are_not_multiplied_again(tmp_path):
    values = np.full((HEIGHT, WIDTH, 4), 10_000, np.uint16)
    values[..., 3] = 32_768
    kind = {"photometric": "rgb", "extrasamples": ["assocalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", values, **kind)
    assert (pixels(tmp_path / "a.tif", ranges=FULL, background="black") == 39).all()


# ---- .npy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", ["HW", "HWC", "CHW"])
def test_an_array_file_is_an_image_with_its_channels_first_or_last(axes, tmp_path):
    values = ramp(1 if axes == "HW" else 3)
    stored = {"HW": values[..., 0], "HWC": values, "CHW": values.transpose(2, 0, 1)}[axes]
    np.save(tmp_path / "a.npy", stored)
    channels = values.shape[2]
    assert look(tmp_path / "a.npy", MANY) == Header(channels, (WIDTH, HEIGHT), wide=False)
    np.testing.assert_array_equal(pixels(tmp_path / "a.npy", channels), values.transpose(2, 0, 1))


def test_an_array_of_booleans_is_black_and_white(tmp_path):
    values = ramp(1)[..., 0] > 100
    np.save(tmp_path / "a.npy", values)
    assert look(tmp_path / "a.npy", MANY) == Header(1, (WIDTH, HEIGHT), wide=False)
    np.testing.assert_array_equal(pixels(tmp_path / "a.npy", 1)[0], values * 255)


def test_what_is_no_number_in_an_array_becomes_the_low_end_and_does_not_shape_the_range(tmp_path):
    values = np.linspace(-1, 3, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    values[0, :3] = np.nan, np.inf, -np.inf
    np.save(tmp_path / "a.npy", values)
    reader, files = reader_of(tmp_path)
    how = reader.decoding(files)
    assert how.ranges == ((pytest.approx(values[0, 3]), 3.0),)
    found = decode((tmp_path / "a.npy").read_bytes(), how)[0]
    assert found[0, :4].tolist() == [0, 255, 0, 0] and found[-1, -1] == 255


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.zeros(5), "has the shape (5,), but must have (H, W), (H, W, C) or (C, H, W)"),
        (np.zeros((0, 4)), "has the shape (0, 4), but must have (H, W), (H, W, C) or (C, H, W)"),
        (np.zeros((70, 80, 90)), "has the shape (70, 80, 90), but must have at most 64 channels"),
        (
            np.zeros((4, 4), complex),
            "has values of type complex128, but must have whole or real numbers",
        ),
        (np.full((4, 4), None), "has values of type object, but must have whole or real numbers"),
    ],
)
def test_an_array_that_is_no_image_says_why(values, expected, tmp_path):
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    assert reason(tmp_path / "a.npy") == expected


# ---- what people look at -------------------------------------------------------------------------


def test_a_cmyk_jpeg_has_the_colours_that_pillow_shows(tmp_path):
    image = Image.new("RGB", (32, 32), (200, 100, 50)).convert("CMYK")
    image.save(tmp_path / "a.jpg", quality=95)
    assert look(tmp_path / "a.jpg", MANY) == Header(3, (32, 32), wide=False)
    assert np.abs(pixels(tmp_path / "a.jpg")[:, 9, 9] - [200.0, 100, 50]).max() <= 3


def seen_through(path: Path, background: str) -> np.ndarray:
    """Of a picture whose left half is transparent: the colour there, after the right half was checked."""
    found = pixels(path, background=background)
    assert np.abs(found[:, :, 8:] - np.array([200.0, 100, 50]).reshape(3, 1, 1)).max() <= 4
    return found[:, 4, 2]


@pytest.mark.parametrize(
    "background, behind",
    [("white", [255, 255, 255]), ("black", [0, 0, 0]), ("#ffcc00", [255, 204, 0])],
)
@pytest.mark.parametrize("kind", ["a.png", "a.webp", "a.gif", "palette.png", "a.tif"])
def test_transparent_pixels_show_the_background(kind, background, behind, tmp_path):
    values = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    values[:, 6:] = [200, 100, 50, 255]
    image = Image.fromarray(values)
    if kind == "palette.png":
        image = image.quantize(4)
    image.save(tmp_path / kind, **({"lossless": True} if kind == "a.webp" else {}))
    assert look(tmp_path / kind, MANY).channels == 3
    assert seen_through(tmp_path / kind, background).tolist() == behind


@pytest.mark.parametrize("mode, channels", [("RGB", 3), ("L", 1)])
def test_a_colour_that_stands_for_transparency_shows_the_background(mode, channels, tmp_path):
    key: object = (9, 9, 9) if mode == "RGB" else 9
    Image.new(mode, (WIDTH, HEIGHT), key).save(tmp_path / "a.png", transparency=key)
    assert (pixels(tmp_path / "a.png", channels) == 255).all()


def test_half_transparent_pixels_mix_with_the_background_in_a_grey_folder_too(tmp_path):
    Image.new("LA", (WIDTH, HEIGHT), (100, 128)).save(tmp_path / "a.png")
    assert look(tmp_path / "a.png", MANY).channels == 1
    assert np.abs(pixels(tmp_path / "a.png", 1, background="black").astype(int) - 50).max() <= 1


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_picture_is_taken_and_it_is_said(suffix, tmp_path):
    colours = [(200, 100, 50), (0, 255, 0), (0, 0, 255)]
    first, *others = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in colours)
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=others)
    assert look(path, MANY) == Header(3, (WIDTH, HEIGHT), wide=False, frames=3)
    assert np.abs(pixels(path)[:, 3, 3] - [200.0, 100, 50]).max() <= 4
    reader, _ = reader_of(tmp_path)
    assert reader.notes(Decoding(3)) == [
        f"1 files hold several pictures, of which the first is taken: a.{suffix}"
    ]


@pytest.mark.parametrize(
    "suffix", ["avif", "heic", "jp2", "bmp", "tga", "ico", "pcx", "qoi", "mpo"]
)
def test_the_other_formats_of_cameras_and_programs_are_read(suffix, tmp_path):
    if suffix == "heic":
        import pillow_heif

        pillow_heif.register_heif_opener()
    options = {"sizes": [(64, 48)]} if suffix == "ico" else {}
    Image.new("RGB", (64, 48), (200, 100, 50)).save(tmp_path / f"a.{suffix}", **options)
    header = look(tmp_path / f"a.{suffix}", MANY)
    assert header == Header(3, (64, 48), wide=False)
    assert np.abs(pixels(tmp_path / f"a.{suffix}")[:, 5, 5] - [200.0, 100, 50]).max() <= 4


# ---- upright -------------------------------------------------------------------------------------

UNSAVED: dict[int, Image.Transpose | None] = {  # how a camera's pixels lie that has this tag
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(tag: int, image: Image.Image) -> Image.Image:
    how = UNSAVED[tag]
    return image if how is None else image.transpose(how)


def upright() -> np.ndarray:
    """48 x 32 with another colour in each corner."""
    values = np.zeros((32, 48, 3), np.uint8)
    values[:16, :24], values[:16, 24:] = (240, 20, 20), (20, 240, 20)
    values[16:, :24], values[16:, 24:] = (20, 20, 240), (240, 240, 20)
    return values


@pytest.mark.parametrize("tag", UNSAVED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "avif"])
def test_an_orientation_tag_is_obeyed(suffix, tag, tmp_path):
    exif = Image.Exif()
    exif[274] = tag
    path, image = tmp_path / f"a.{suffix}", Image.fromarray(upright())
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95, "subsampling": 0}}.get(suffix, {})
    turned(tag, image).save(path, exif=exif, **options)
    assert look(path, MANY) == Header(3, (48, 32), wide=False)
    found = pixels(path).transpose(1, 2, 0)
    assert found.shape == (32, 48, 3)
    for y, x in ((8, 12), (8, 36), (24, 12), (24, 36)):
        assert np.abs(found[y, x].astype(int) - upright()[y, x]).max() <= 30


@pytest.mark.parametrize("tag", UNSAVED)
@pytest.mark.parametrize("kind", ["grey.png", "colour.png", "grey.tif", "colour.tif"])
def test_an_orientation_tag_of_a_16_bit_file_is_obeyed(kind, tag, tmp_path):
    values = upright() if kind.startswith("colour") else upright()[..., :1]
    stored = np.dstack(
        [
            turned(tag, Image.fromarray(np.ascontiguousarray(values[..., c])))
            for c in range(values.shape[2])
        ]
    )
    deep = stored.astype(np.uint16) * 257
    if kind.endswith("png"):
        png(tmp_path / kind, deep, orientation=tag)
    else:
        tifffile.imwrite(
            tmp_path / kind,
            deep if deep.shape[2] == 3 else deep[..., 0],
            photometric="rgb" if deep.shape[2] == 3 else "minisblack",
            extratags=[(274, "H", 1, tag, True)],
            metadata=None,
        )
    channels = values.shape[2]
    assert look(tmp_path / kind, MANY) == Header(channels, (48, 32), wide=True)
    found = pixels(tmp_path / kind, channels, ranges=FULL)
    np.testing.assert_array_equal(found, values.transpose(2, 0, 1))


def test_an_orientation_tag_behind_the_pixels_counts_in_the_size_that_is_known_before(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(upright()).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    start = content.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(content[start : start + 4], "big")
    end = content.index(b"IEND") - 4
    moved = content[:start] + content[stop:end] + content[start:stop] + content[end:]
    (tmp_path / "a.png").write_bytes(moved)
    assert pixels(tmp_path / "a.png").shape == (3, 48, 32)
    assert look(tmp_path / "a.png", MANY).size == (32, 48)


def test_a_photograph_and_its_turned_copy_give_the_same_small_picture(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(upright()).resize((480, 320))
    image.save(tmp_path / "a.png")
    turned(6, image).save(tmp_path / "b.png", exif=exif)
    plain, same = (pixels(tmp_path / name, side=32, resize="pad") for name in ("a.png", "b.png"))
    assert np.abs(plain.astype(int) - same).max() <= 1


# ---- made square ---------------------------------------------------------------------------------


def edge(path: Path) -> Path:
    """A 96 x 24 picture, grey, with a red object at its left edge."""
    values = np.full((24, 96, 3), 80, np.uint8)
    values[4:20, 2:14] = 220, 40, 40
    Image.fromarray(values).save(path)
    return path


def is_red(found: np.ndarray) -> np.ndarray:
    return found[0].astype(int) - found[1] > 100


def test_crop_shows_the_centre_without_what_lies_at_the_edge(tmp_path):
    found = pixels(edge(tmp_path / "a.png"), side=24)
    assert found.shape == (3, 24, 24) and (found == 80).all()


def test_squash_shows_all_in_other_proportions(tmp_path):
    red = is_red(pixels(edge(tmp_path / "a.png"), side=24, resize="squash"))
    assert red.any(axis=1).sum() == 16 and 2 <= red.any(axis=0).sum() <= 4


def test_pad_shows_all_in_its_proportions_between_bars_of_the_background(tmp_path):
    found = pixels(edge(tmp_path / "a.png"), side=24, resize="pad", background="#ffcc00")
    bars = np.concatenate([found[:, :9], found[:, -9:]], axis=1)
    assert (bars == np.array([255, 204, 0]).reshape(3, 1, 1)).all()
    assert (found[2, 9:15] != 0).all()
    red = is_red(found[:, 9:15])
    assert red.any(axis=1).sum() == 4 and 2 <= red.any(axis=0).sum() <= 4


def test_that_a_crop_loses_much_of_long_pictures_is_said_with_what_to_do(tmp_path):
    edge(tmp_path / "a.png")
    reader, files = reader_of(tmp_path, image_size=24)
    assert reader.notes(reader.decoding(files)) == [
        "of 1 long images the centre is cut out, down to 25 % of their area; "
        "data.resize: pad or squash shows all of them"
    ]
    reader, files = reader_of(tmp_path, image_size=24, resize="pad")
    assert reader.notes(reader.decoding(files)) == []


@pytest.mark.parametrize("how", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(1, 20_000), (20_000, 1)])
def test_a_picture_of_a_single_line_becomes_square(how, size, tmp_path):
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "a.png")
    found = pixels(tmp_path / "a.png", side=224, resize=how)
    assert found.shape == (3, 224, 224) and found[:, 111, 111].tolist() == [200, 100, 50]


def test_a_thin_picture_takes_little_memory(tmp_path):
    Image.new("RGB", (1, 20_000)).save(tmp_path / "a.png")
    code = """
        import resource, sys
        from tune_ssl.data.image_files import Decoding, decode
        content = open(sys.argv[1], "rb").read()
        decode(content, Decoding(3, 8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for how in ("crop", "pad", "squash"):
            decode(content, Decoding(3, 224, how))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "KB"


def test_a_large_jpeg_that_becomes_small_looks_as_if_all_of_it_had_been_decoded(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (75, 100, 3), dtype=np.uint8))
    image = coarse.resize((2000, 1500), Image.Resampling.BICUBIC)
    image.save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as whole:
        expected = ImageOps.fit(whole.convert("RGB"), (96, 96), Image.Resampling.BILINEAR)
    found = pixels(tmp_path / "a.jpg", side=96).transpose(1, 2, 0)
    assert np.abs(found.astype(float) - np.asarray(expected)).mean() < 2


# ---- what cannot be used -------------------------------------------------------------------------


def test_more_pixels_than_are_allowed_make_a_bad_image_before_they_are_decoded(tmp_path):
    png(tmp_path / "a.png", ramp(1, np.uint16))
    np.save(tmp_path / "b.npy", ramp(1)[..., 0])
    Image.fromarray(ramp(3)).save(tmp_path / "c.jpg")
    reader, _ = reader_of(tmp_path, max_pixels=WIDTH * HEIGHT - 1)
    text = "has 12 x 8 pixels, but data.max_pixels allows 95"
    assert reader.bad == {"a.png": text, "b.npy": text, "c.jpg": text}
    reader, _ = reader_of(tmp_path, max_pixels=WIDTH * HEIGHT)
    assert reader.bad == {}


def test_a_text_with_the_name_of_an_image_is_bad_and_one_with_its_own_name_is_none(tmp_path):
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "notes.txt").write_text("no image")
    reader, _ = reader_of(tmp_path)
    assert reader.bad == {"a.jpg": "is no image by its content"}
    assert reader.no_images == {"notes.txt": "no image by its content"}


@pytest.mark.parametrize("name", ["a.txt", "a", "a.jpg", "a.tga"])
def test_an_image_is_known_by_its_content_and_not_by_its_name(name, tmp_path):
    Image.fromarray(ramp(3)).save(tmp_path / name, "PNG")
    reader, _ = reader_of(tmp_path)
    assert reader.headers == {name: Header(3, (WIDTH, HEIGHT), wide=False)}
    np.testing.assert_array_equal(pixels(tmp_path / name), ramp(3).transpose(2, 0, 1))


@pytest.mark.parametrize(
    "name, text",
    [
        ("paper.pdf", "%PDF-1.7"),
        ("a.h5", "\x89HDF"),
        ("notes.txt", "BMI of the patients"),
        ("notes.txt", "P5 is blurred"),
    ],
)
def test_a_file_of_another_kind_is_no_bad_image(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    reader, _ = reader_of(tmp_path)
    assert reader.bad == {} and list(reader.no_images) == [name]


def test_an_empty_file_and_a_cut_one_say_so(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").write_bytes(b"")
    assert reason(tmp_path / "a" / "a.png") == "is empty"
    path = tmp_path / "b" / "a.jpg"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    assert reason(path).startswith("image file is truncated")


def test_a_program_of_postscript_is_no_image_that_is_run(tmp_path):
    Image.fromarray(ramp(3)).save(tmp_path / "a.eps")
    with pytest.raises(NoImage):
        look(tmp_path / "a.eps", MANY)


def test_images_of_other_channels_than_most_have_are_bad_each_with_its_number(tmp_path):
    for name in "abc":
        bands(tmp_path / f"{name}.tif", ramp(5))
    Image.fromarray(ramp(1)[..., 0]).save(tmp_path / "grey.png")
    reader, files = reader_of(tmp_path)
    assert reader.decoding(files).channels == 5
    assert reader.bad == {"grey.png": "has 1 channels, but most images have 5"}


def test_a_deep_image_of_other_channels_than_most_have_is_bad_and_no_crash(tmp_path):
    for name in "abc":
        bands(tmp_path / f"{name}.tif", ramp(5, np.uint16, 65535))
    png(tmp_path / "grey.png", ramp(1, np.uint16, 65535))
    reader, files = reader_of(tmp_path)
    assert len(reader.decoding(files).ranges) == 5
    assert reader.bad == {"grey.png": "has 1 channels, but most images have 5"}


def test_one_file_of_other_channels_does_not_take_the_colour_from_the_others(tmp_path):
    for index in range(3):
        Image.fromarray(ramp(1)[..., 0]).save(tmp_path / f"grey{index}.png")
    Image.fromarray(ramp(3)).save(tmp_path / "colour.png")
    bands(tmp_path / "five.tif", ramp(5))
    reader, files = reader_of(tmp_path)
    assert reader.decoding(files).channels == 3
    assert list(reader.bad) == ["five.tif"]


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_an_image_of_too_few_channels_for_a_model_says_how_many_it_has(channels, mode, tmp_path):
    Image.new(mode, (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    with pytest.raises(BadImage) as caught:
        pixels(tmp_path / "a.png", 5)
    assert str(caught.value) == f"has {channels} channels, but the other images have 5"
