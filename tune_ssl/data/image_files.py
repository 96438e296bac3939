"""One image file: what it is, by its content, and its pixels as uint8 (C, H, W).

Pillow reads what people look at; torchvision PNG files of 16 bits in colour; tifffile what Pillow cuts down or does not
know in a TIFF (bands, floats, 16 bits in colour); numpy .npy files. A file is `wide` where its values have more than 8
bits: they are scaled to 0..255 by a range that the data set has found or was given (`Decoding.ranges`).

Orientation tags are obeyed, transparency is laid on a background, and of a sequence the first frame is taken.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image

Uint8s = NDArray[np.uint8]
Floats = NDArray[np.float64]
Range = tuple[float, float]

FORMATS = (
    *("PNG", "JPEG", "MPO", "JPEG2000", "GIF", "BMP", "DIB", "WEBP", "AVIF", "HEIF", "TIFF", "PPM"),
    *("TGA", "PCX", "SGI", "ICO", "QOI", "DDS", "PSD"),
)
"""Pillow's names. What runs another program (EPS) or draws (WMF) is not read."""
GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
WIDE = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
ORIENTATION, BITS, SAMPLES, SAMPLE_FORMAT = 274, 258, 277, 339  # tags
DESCRIPTION, PHOTOMETRIC, WHITE_IS_0 = 270, 262, 0
PNG, NPY = b"\x89PNG\r\n\x1a\n", b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MOST_PAGES = 16  # unnamed pages of a TIFF file that are taken for its channels
MOST_BANDS = 64  # the last axis of an array is its channels where it is no longer than this, and the shortest
GAP = 2.0  # a JPEG is decoded at the smallest scale that has so many times the pixels a side
REDUCING_GAP = 3.0  # likewise, for what averages blocks of pixels before it interpolates
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as in Pillow's "L"

TURNS: dict[int, Callable[[Any], Any]] = {  # EXIF 2.3, tag 274: how to turn (H, W, C) upright
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


class BadImage(ValueError):
    """An image that cannot be used; the text says why."""


class NoImage(ValueError):
    """A file whose content is of no format that is read here."""


class Header(NamedTuple):
    """What is known of a file before its pixels are decoded: `size` is (width, height), upright.

    `channels` does not count transparency. `frames` is 1 where the file holds one picture.
    """

    channels: int
    size: tuple[int, int]
    wide: bool
    frames: int = 1


@dataclass(frozen=True)
class Decoding:
    """How files become arrays of one shape. It is saved with a store and with a model: both must see the same.

    `side` None keeps an image's own size. `ranges` (low, high), one for each channel or one for all, are what 0 and 255
    stand for: of wide files, and with `every` of 8-bit files too.
    """

    channels: int
    side: int | None = None
    resize: str = "crop"
    background: str = "white"
    ranges: tuple[Range, ...] | None = None
    every: bool = False
    max_pixels: int = 178_956_970

    def to_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Decoding:
        ranges = record.get("ranges")
        pairs = None if ranges is None else tuple((low, high) for low, high in ranges)
        return cls(**{**record, "ranges": pairs})


def look(path: Path, max_pixels: int) -> Header:
    """What the file holds; its pixels are not decoded.

    Raises:
        NoImage: its content is of no format that is read here.
        BadImage: an image of one that cannot be used, or more pixels than allowed.
        OSError, and what the libraries raise: it cannot be read.
    """
    with open(path, "rb") as file:
        magic = file.read(32)
        image = _opened(file, magic, max_pixels, str(path))
        if image is not None:
            with image:
                return _header(image, magic)
        file.seek(0)
        header = _array_header(file) if magic.startswith(NPY) else _tiff_header(file)
    _check_pixels(header.size, max_pixels)
    return header


def decode(content: bytes, how: Decoding) -> Uint8s:
    """A file's content as uint8 (channels, H, W), fitted to `side`. Raises what `look` does."""
    image = _opened(io.BytesIO(content), content[:32], how.max_pixels)
    if image is not None and not _is_wide(image, content[:32]):
        return _photograph(image, how)
    return _measured(content, image, how)


def values_of(content: bytes, most: int, max_pixels: int) -> Floats:
    """At most `most` finite pixels, always the same ones, (m, C) of a wide file, as they are in the file."""
    image = _opened(io.BytesIO(content), content[:32], max_pixels)
    values_HWC, alpha_HW = _values(content, image)
    rows = values_HWC.reshape(-1, values_HWC.shape[2])
    if alpha_HW is not None:
        rows = rows[alpha_HW.ravel() > 0]
    if len(rows) > most:  # by chance, for a step through the rows might see one column alone
        rows = rows[np.random.default_rng(0).integers(0, len(rows), most)]
    rows = rows.astype(np.float64)
    finite: Floats = rows[np.isfinite(rows).all(axis=1)]
    return finite


def has_image_suffix(name: str) -> bool:
    """Whether a file's name says that it is an image."""
    suffix = Path(name).suffix.lower()
    known = _pillow().registered_extensions().get(suffix) in FORMATS
    return known or suffix in (".heic", ".heif", ".npy")


# ---- what a file is -----------------------------------------------------------------------------


@cache
def _pillow() -> Any:
    """Pillow's Image, with HEIC where its plugin is installed; the limit of pixels is our own."""
    from PIL import Image

    Image.init()  # its rarer formats too
    Image.MAX_IMAGE_PIXELS = None
    # What is wrong with a file is said by us, beside its name
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        import pillow_heif  # type: ignore[import-untyped]
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
    return Image


def _opened(file: Any, magic: bytes, max_pixels: int, name: str = "") -> Image.Image | None:
    """The image, its pixels not read yet, where Pillow reads all that the file has; None: what is an array.

    TGA files have no signature: where a name is given, it must say that the file is one.
    """
    from PIL import UnidentifiedImageError

    if magic.startswith(NPY):
        return None
    file.seek(0)
    try:
        named = not name or name.lower().endswith((".tga", ".vda", ".icb", ".vst"))
        known = [f for f in FORMATS if f in _pillow().OPEN and (named or f != "TGA")]
        image: Any = _pillow().open(file, formats=known)
    except UnidentifiedImageError:
        if magic.startswith(TIFF):
            return None
        if magic[4:8] == b"ftyp" and magic[8:12] in HEIC:
            raise BadImage("is HEIC, which needs: pip install 'tune-ssl[heic]'") from None
        raise NoImage("no image by its content") from None
    _check_pixels(image.size, max_pixels)
    if image.format == "TIFF" and _cut_down(image):
        return None
    deep = (isinstance(tile[3], tuple) and tile[3][-1] > 255 for tile in image.tile)
    if image.format == "PPM" and image.mode == "RGB" and any(deep):
        raise BadImage("has 16 bits a channel, which are read from PNG and TIFF files only")
    return image  # type: ignore[no-any-return]


def _header(image: Image.Image, magic: bytes) -> Header:
    width, height = image.size
    # Of a PNG file Pillow reads all pixels to find a tag behind them; of a TIFF file it gives the turned size
    if image.format != "TIFF" and (image.format != "PNG" or _png_has_exif(image)):
        width, height = (height, width) if _orientation(image) >= 5 else (width, height)
    frames = getattr(image, "n_frames", 1) if image.format in ("GIF", "TIFF", "WEBP", "PNG") else 1
    grey = image.mode in GREY or (_is_wide(image, magic) and magic[25] in (0, 4))
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [0, 1, 0]).reshape(-1, 3)
        grey = bool((palette == palette[:, :1]).all())
    return Header(1 if grey else 3, (width, height), _is_wide(image, magic), frames)


def _png_has_exif(image: Any) -> bool:
    """Whether a chunk before or behind the pixels has EXIF tags; only the chunks' heads are read."""
    file = image.fp
    before, at = file.tell(), len(PNG)
    try:
        while True:
            file.seek(at)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            if head[4:] == b"eXIf":
                return True
            at += 12 + int.from_bytes(head[:4], "big")
    finally:
        file.seek(before)


def _is_wide(image: Image.Image, magic: bytes) -> bool:
    return image.mode in WIDE or (magic.startswith(PNG) and magic[24] == 16)


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ORIENTATION, 1))


def _cut_down(image: Any) -> bool:
    """Whether a TIFF file has more than Pillow reads of it: bands, bits, or pages that are bands."""
    tags = image.tag_v2
    bits, kinds = tags.get(BITS) or (1,), tags.get(SAMPLE_FORMAT) or (1,)
    deep = max(bits) > 8 or any(kind != 1 for kind in kinds)
    whole = image.mode in WIDE and (max(bits) == 16 or kinds[0] in (2, 3))
    bands = {"LA": 2, "RGB": 3, "RGBA": 4, "RGBa": 4, "CMYK": 4, "YCbCr": 3, "LAB": 3}
    samples = tags.get(SAMPLES, 1)
    about = str(tags.get(DESCRIPTION, ""))
    axes = about.startswith("ImageJ=") or "<OME" in about or '"shape"' in about
    pages = axes and image.mode in GREY and image.n_frames > 1
    return (deep and not whole) or samples != bands.get(image.mode, 1) or pages


def _check_pixels(size: tuple[int, int], most: int) -> None:
    if size[0] * size[1] > most:
        text = f"has {size[0]} x {size[1]} pixels, but data.max_pixels allows {most}"
        raise BadImage(text)


# ---- arrays: .npy, bands, more than 8 bits ------------------------------------------------------


def _array_header(file: Any) -> Header:
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(file)
    _check_kind(dtype)
    return _shaped(shape, dtype)


def _tiff_header(file: Any) -> Header:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        shape, frames, kept = _tiff_axes(tiff)
        dtype, page = tiff.series[0].dtype, tiff.pages.first
        _check_kind(dtype)
        header = _shaped(shape, dtype, frames, bands_last="S" in kept or "C" in kept)
        channels = header.channels - (_tiff_alpha(page, header.channels) is not None)
        turned = page.tags.valueof(ORIENTATION, 1) in (5, 6, 7, 8)
        size = header.size[::-1] if turned else header.size
    return header._replace(channels=channels, size=size)


def _tiff_axes(tiff: Any) -> tuple[tuple[int, ...], int, str]:
    """The shape of the first picture as (H, W), (H, W, C) or, where nobody says, (C, H, W); how many there are; its
    axes in the file's order.
    """
    axes, shape = tiff.series[0].axes, tiff.series[0].shape
    # Q is an axis that tifffile itself wrote without a name: perhaps channels, as in a .npy file
    some = len(axes) == 3 and min(shape[0], shape[-1]) <= MOST_PAGES
    kept = "".join(a for a in axes if a in "YXSC" or (a == "Q" and some))
    sizes = dict(zip(axes, shape, strict=True))
    others = [a for a in axes if a not in kept]
    frames = max(int(np.prod([sizes[a] for a in others])) if others else 1, len(tiff.series))
    first = tuple(sizes[a] for a in _bands_last(kept))
    return first, frames, kept


def _bands_last(axes: str) -> str:
    """The axes with the one that is said to be channels at the end."""
    return "".join(a for a in axes if a not in "SC") + "".join(a for a in axes if a in "SC")


def _tiff_alpha(page: Any, samples: int) -> int | None:
    """Which of the samples is transparency, as the file says."""
    kinds = [int(kind) for kind in page.extrasamples]
    if samples in (2, 4) and len(kinds) == 1 and kinds[0] in (1, 2):
        return samples - 1
    return None


def _shaped(
    shape: tuple[int, ...], dtype: Any, frames: int = 1, bands_last: bool = False
) -> Header:
    known = bands_last and len(shape) == 3 and 0 not in shape
    height, width, channels = shape if known else _channels_last(shape)
    return Header(channels, (width, height), dtype != np.uint8 and dtype != np.bool_, frames)


def _channels_last(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(H, W, C) of (H, W), (H, W, C) or (C, H, W): the channels are the axis beside two equal ones, else the shorter
    one of the outer axes."""
    if len(shape) not in (2, 3) or 0 in shape:
        raise BadImage(f"has the shape {shape}, but must have (H, W), (H, W, C) or (C, H, W)")
    if len(shape) == 2:
        return shape[0], shape[1], 1
    first, middle, last = shape
    if min(first, last) > MOST_BANDS:
        raise BadImage(f"has the shape {shape}, but must have at most {MOST_BANDS} channels")
    bands_last = first == middle if (first == middle) != (middle == last) else last <= first
    return (first, middle, last) if bands_last else (middle, last, first)


def _check_kind(dtype: Any) -> None:
    if dtype.kind not in "buif":
        raise BadImage(f"has values of type {dtype}, but must have whole or real numbers")


def _values(content: bytes, image: Image.Image | None) -> tuple[NDArray[Any], Floats | None]:
    """(H, W, C) as it is in the file, upright, and its alpha (H, W) in 0..1 where it has one."""
    turn, alpha_at, multiplied = 1, None, False
    if content.startswith(NPY):
        values = np.load(io.BytesIO(content), allow_pickle=False)
        if values.ndim == 3 and _channels_last(values.shape) != values.shape:
            values = np.moveaxis(values, 0, -1)
    elif image is None:
        values, turn, alpha_at, multiplied = _tiff_values(content)
    elif content.startswith(PNG) and content[24] == 16 and image.mode not in WIDE:
        import torch
        from torchvision.io import decode_image  # type: ignore[import-untyped]

        values = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8)).numpy()
        values = np.moveaxis(values, 0, -1)
        alpha_at = values.shape[2] - 1 if values.shape[2] in (2, 4) else None
        turn = _orientation(image)
    else:
        values, turn = _grey_values(image), _orientation(image)
    _check_kind(values.dtype)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if values.ndim == 2:
        values = values[..., None]
    values = TURNS.get(turn, np.asarray)(values)
    hidden = None if image is None else image.info.get("transparency")
    if hidden is not None and alpha_at is None:  # one colour of a PNG file stands for transparency
        return values, 1.0 - (values == np.array(hidden)).all(axis=2)
    return _without_alpha(values, alpha_at, multiplied)


def _grey_values(image: Any) -> NDArray[Any]:
    """A wide grey image as its file has it: Pillow stretches a PGM's values, and does not turn white-is-0 around."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    largest = image.tile[0][3][-1] if image.format == "PPM" and image.tile else 0
    values = np.asarray(image)
    if isinstance(largest, int) and largest > 255:
        return np.rint(values * (largest / 65535)).astype(np.int32)
    return _inverted(values) if tags.get(PHOTOMETRIC) == WHITE_IS_0 else values


def _tiff_values(content: bytes) -> tuple[NDArray[Any], int, int | None, bool]:
    """(H, W) or (H, W, C) of the first picture, the tag that turns it upright, where its alpha is, and whether the
    colours are multiplied by it.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        shape, _, kept = _tiff_axes(tiff)
        series, page = tiff.series[0], tiff.pages.first
        try:
            if len(kept) == page.ndim and set(series.axes) > set(
                kept
            ):  # several pictures, each a page
                values = page.asarray()
            else:
                values = series.asarray()
                values = values[tuple(slice(None) if a in kept else 0 for a in series.axes)]
        except (NotImplementedError, ValueError) as error:
            if isinstance(error, NotImplementedError) or "COMPRESSION" in str(error):
                text = "is packed in a way that needs: pip install imagecodecs"
                raise BadImage(text) from None
            raise
        if page.tags.valueof(PHOTOMETRIC) == WHITE_IS_0:
            values = _inverted(values)
        values = values.transpose([kept.index(a) for a in _bands_last(kept)])
        if values.ndim == 3 and not {*"SC"} & {*kept} and _channels_last(shape) != shape:
            values = np.moveaxis(values, 0, -1)
        samples = 1 if values.ndim == 2 else values.shape[2]
        at = _tiff_alpha(page, samples)
        multiplied = at is not None and int(page.extrasamples[0]) == 1
        return values, int(page.tags.valueof(ORIENTATION, 1)), at, multiplied


def _inverted(values: NDArray[Any]) -> NDArray[Any]:
    """Of a file in which 0 is white, as in 8 bits."""
    if values.dtype.kind == "u":
        return np.asarray(np.iinfo(values.dtype).max - values)
    return ~values if values.dtype == np.bool_ else -values


def _without_alpha(
    values_HWC: NDArray[Any], alpha_at: int | None, multiplied: bool = False
) -> tuple[NDArray[Any], Floats | None]:
    """The colours, and alpha in 0..1; `multiplied` says that the file has them multiplied already."""
    if alpha_at is None:
        return values_HWC, None
    whole = np.iinfo(values_HWC.dtype).max if values_HWC.dtype.kind in "ui" else 1
    alpha_HW = values_HWC[..., alpha_at].astype(np.float64) / whole
    colours = values_HWC[..., :alpha_at]
    if multiplied:
        colours = colours / np.where(alpha_HW > 0, alpha_HW, 1)[..., None]
    return colours, alpha_HW


def _measured(content: bytes, image: Image.Image | None, how: Decoding) -> Uint8s:
    """Bands, and values of more than 8 bits, as uint8 (channels, H, W)."""
    values_HWC, alpha_HW = _values(content, image)
    found = values_HWC.shape[2]
    if found != how.channels and {found, how.channels} != {1, 3}:
        raise BadImage(f"has {found} channels, but the other images have {how.channels}")
    pixels_HWC = values_HWC
    if values_HWC.dtype != np.uint8 or (how.every and how.ranges):
        ranges = how.ranges
        if ranges is None and values_HWC.dtype.kind == "u":  # as of 16-bit photos among 8-bit ones
            ranges = ((0.0, float(np.iinfo(values_HWC.dtype).max)),)
        if ranges is None:
            text = "has more than 8 bits a channel, and no training image has: data.range says what 0 and 255 stand for"
            raise BadImage(text)
        pixels_HWC = scaled(values_HWC, ranges)
    if alpha_HW is not None:
        behind = np.array(_background(how.background, found), np.float64)
        laid = behind + (pixels_HWC - behind) * alpha_HW[..., None]
        pixels_HWC = np.rint(laid).astype(np.uint8)
    if found == 3 and how.channels == 1:
        pixels_HWC = np.rint(pixels_HWC @ np.array(LUMA)).astype(np.uint8)[..., None]
    elif found != how.channels:
        pixels_HWC = np.repeat(pixels_HWC, how.channels, axis=2)
    if how.channels in (1, 3):
        plain = pixels_HWC[..., 0] if how.channels == 1 else pixels_HWC
        return to_array(fit(_pillow().fromarray(np.ascontiguousarray(plain)), how))
    planes = (np.ascontiguousarray(pixels_HWC[..., c]) for c in range(how.channels))
    return np.concatenate([to_array(fit(_pillow().fromarray(plane), how)) for plane in planes])


def scaled(values_HWC: NDArray[Any], ranges: tuple[Range, ...]) -> Uint8s:
    """Values as 0..255 between the ends of the ranges; what is no number becomes the low end."""
    low, high = (np.array(end, np.float64) for end in zip(*ranges, strict=True))
    width = np.where(high > low, high - low, 1)
    shares = (values_HWC.astype(np.float64) - low) / width
    whole = np.nan_to_num(shares, nan=0, posinf=1, neginf=0).clip(0, 1)
    levels: Uint8s = np.rint(255 * whole).astype(np.uint8)
    return levels


# ---- photographs: what Pillow reads in full -----------------------------------------------------


def _photograph(image: Image.Image, how: Decoding) -> Uint8s:
    from PIL import ImageOps

    if how.channels not in (1, 3):
        channels = 1 if image.mode in GREY else 3
        raise BadImage(f"has {channels} channels, but the other images have {how.channels}")
    if how.side is not None and image.format == "JPEG":
        width, height = image.size
        short = max(width, height) if how.resize == "pad" else min(width, height)
        share = GAP * how.side / short
        image.draft(image.mode, (int(width * share), int(height * share)))
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        behind = _pillow().new("RGBA", image.size, how.background)
        image = _pillow().alpha_composite(behind, image)
    if image.mode == "LAB":  # which becomes grey by way of RGB alone
        image = image.convert("RGB")
    mode = "L" if how.channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if how.every and how.ranges:
        pixels = np.asarray(image)
        pixels = scaled(pixels[..., None] if pixels.ndim == 2 else pixels, how.ranges)
        image = _pillow().fromarray(pixels[..., 0] if how.channels == 1 else pixels)
    return to_array(fit(image, how))


def fit(image: Image.Image, how: Decoding) -> Image.Image:
    """An L or RGB image with `side` pixels a side; side None keeps it.

    `crop` cuts out the largest centred square, `pad` adds background to make one, `squash` changes the proportions.
    """
    bilinear, side = _pillow().Resampling.BILINEAR, how.side
    if side is None or image.size == (side, side):
        return image
    width, height = image.size
    if how.resize == "pad":
        share = side / max(width, height)
        inner = (max(1, round(width * share)), max(1, round(height * share)))
        small = image.resize(inner, bilinear, reducing_gap=REDUCING_GAP)
        bands = len(image.getbands())
        colour = _background(how.background, bands)
        padded: Image.Image = _pillow().new(
            image.mode, (side, side), colour if bands > 1 else colour[0]
        )
        padded.paste(small, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return padded
    box = None
    if how.resize == "crop":
        short = min(width, height)
        left, top = (width - short) / 2, (height - short) / 2
        box = (left, top, left + short, top + short)
    return image.resize((side, side), bilinear, box=box, reducing_gap=REDUCING_GAP)


def to_array(image: Image.Image) -> Uint8s:
    """uint8 (C, H, W) of an L or RGB image."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _background(name: str, channels: int) -> tuple[int, ...]:
    """The background's value in each channel; its grey where they are not red, green and blue."""
    from PIL import ImageColor

    colour = ImageColor.getrgb(name)[:3]
    return colour if channels == 3 else (round(float(np.dot(colour, LUMA))),) * channels
