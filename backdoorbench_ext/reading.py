"""Files as strangers may have made them: regular ones only, whose sizes are looked at before
anything is decoded; nothing in them is executed.
"""

from __future__ import annotations

import io
import json
import math
import stat
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import InputError, reason

# text that a terminal shows as it is
Text = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]*\Z", max_length=10_000)]
# neither nan nor infinite
Number = Annotated[float, msgspec.Meta(gt=-1e300, lt=1e300)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

# what Pillow is let decode: never EPS, which it hands to Ghostscript, nor PDF, WMF and the like
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".gif",
    ".webp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
# bytes of a text; pixels of a picture, where Pillow begins to warn
LARGEST_TEXT = 2**28
LARGEST_PICTURE = 89_478_485
# an archive that unpacks to more than so many times its size, and to so many bytes, is a bomb
DENSEST = 200
LARGEST_DENSE = 2**27

# such pictures are refused, below
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def place(text: str | Path) -> Path:
    """A path, in which ``~`` is somebody's home.

    Raises:
        InputError: nobody's home is known.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: {reason(error)}") from error


def regular(path: Path) -> int:
    """The bytes of a file, which must be a regular one.

    Raises:
        InputError: no such file, or a folder, a pipe, a device.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        # a NUL in the name is a ValueError
        missing = isinstance(error, FileNotFoundError)
        why = "no such file" if missing else getattr(error, "strerror", None) or reason(error)
        raise InputError(f"{path}: {why}") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a regular file")
    return found.st_size


def content(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """All of a file.

    Raises:
        InputError: not a regular file, more than ``most`` bytes, or not readable.
    """
    if regular(path) > most:
        raise InputError(f"{path}: larger than {most / 2**20:.0f} MiB")
    try:
        # files of /proc have no size
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if len(data) > most:
        raise InputError(f"{path}: larger than {most / 2**20:.0f} MiB")
    return data


def parsed(path: Path, kind: Any = Any) -> Any:
    """A file of JSON, which must be of a type as ``msgspec`` reads them.

    Raises:
        InputError: not a regular file, no JSON, a number that is none, or of another type.
    """
    data = content(path)
    try:
        # a byte order mark is skipped; msgspec itself refuses the bytes of paths that are no UTF-8
        text = data.decode("utf-8-sig")
        return msgspec.convert(json.loads(text, parse_constant=_no_number), kind)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON of ours ({reason(error)})") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def picture(
    path: Path,
    side: int | None = None,
    formats: Iterable[str] = FORMATS,
    sides: tuple[int, int] | None = None,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image file, uint8 (h, w, 3), the first frame, turned as its EXIF says, of 16
    bits the upper 8.

    Args:
        side: scale it to that square (bilinear).
        formats: those that are decoded.
        sides: the (width, height) that it must have.

    Raises:
        InputError: not a regular file, none of the ``formats``, damaged, cut short, too large, or
            of other ``sides``.
    """
    regular(path)
    try:
        with Image.open(path, formats=tuple(formats)) as image:
            if image.width * image.height > LARGEST_PICTURE:
                raise ValueError(f"{image.width}x{image.height} pixels are too many")
            if sides and image.size != sides:
                have = f"{image.width}x{image.height} pixels"
                raise ValueError(f"{have}, expected {sides[0]}x{sides[1]}")
            image.load()
            rgb = _rgb(ImageOps.exif_transpose(image))
    # whatever damaged bytes bring about in any decoder
    except Exception as error:
        raise InputError(f"{path}: not a readable image ({_of_pillow(error)})") from error
    if side is not None:
        rgb = rgb.resize((side, side), Image.Resampling.BILINEAR)
    return np.array(rgb)


def whole_png(path: Path) -> bool:
    """Whether a PNG file is there that was written to its end."""
    try:
        return path.read_bytes()[-8:-4] == b"IEND"
    except OSError:
        return False


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels of floating point")
    if image.mode.startswith("I"):
        # Pillow would cut off what is above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert("RGB")


def _of_pillow(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image, or of a format that is not read"
    return reason(error)


def arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
    """Arrays of an ``.npz`` file; what their headers say is compared with the file before memory is
    asked for.

    Raises:
        InputError: not a regular file, damaged, encrypted, not plain arrays, a bomb, a missing key.
    """
    regular(path)
    keys = list(keys)
    try:
        with zipfile.ZipFile(path) as archive:
            there = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            missing = [key for key in keys if key not in there]
            if missing:
                raise InputError(
                    f"{path}: lacks {', '.join(missing)}; expected the keys {', '.join(keys)}"
                )
            for key in keys:
                _check_member(archive, there[key])
        with np.load(path, allow_pickle=False) as data:
            return {key: data[key] for key in keys}
    except InputError:
        raise
    # whatever damaged bytes bring about, from zipfile, zlib or NumPy
    except Exception as error:
        why = f"damaged, or no .npz file of plain arrays ({reason(error)})"
        raise InputError(f"{path}: {why}") from error


def array(path: Path) -> np.ndarray[Any, Any]:
    """The numbers of an ``.npy`` file.

    Raises:
        InputError: not a regular file, larger than 256 MiB, damaged, or not plain numbers.
    """
    data = content(path, 2**28)
    try:
        if not data.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("no .npy file")
        made: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(made, np.ndarray) or made.dtype.kind not in "uif":
            raise ValueError("no array of numbers")
        if not np.isfinite(made).all():
            raise ValueError("numbers that are not finite")
    # what damaged bytes bring about
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise InputError(f"{path}: not readable as an array ({reason(error)})") from error
    return made


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Raises: ValueError: a bomb, or a header that says another size than the archive."""
    dense = info.file_size > DENSEST * max(1, info.compress_size)
    if dense and info.file_size > LARGEST_DENSE:
        raise ValueError(f"{info.filename} would unpack to {info.file_size / 2**30:.1f} GiB")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
        if min(shape, default=1) < 0 or kind.hasobject:
            raise ValueError(f"{info.filename} is no plain array")
        size = math.prod(shape) * kind.itemsize
        if size != info.file_size - file.tell():
            raise ValueError(f"{info.filename} says that it has {size} bytes, it has others")
