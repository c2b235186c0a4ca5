"""Images in arrays of npz, HDF5 and zarr files: pixels in any of the usual layouts, or one image file a step.

Image files are bytes of any length, or rows of uint8 padded to one length, as recorders of ALOHA write them. Source:
MarkFzp/mobile-aloha, `record_episodes.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..files import camera_name
from .record import load_image

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""First bytes of JPEG, PNG, WEBP, BMP and TIFF files."""

_NO_COLORS = re.compile(r"depth|disparity|mask|segm|(?:^|_)seg(?:$|_)|flow|normal|latent|embed|feature")
_IMAGE_WORDS = re.compile(r"image|img|rgb|cam|color|colour|pixel|frame|view|gray|grey|wrist")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayHeader:
    """Shape and type of an array that was not read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def find_images(headers: Mapping[str, ArrayHeader], first: Callable[[str], Array]) -> list[str]:
    """List the arrays that hold color images, sorted.

    Args:
        headers: name -> shape and type.
        first: reads the first step of an array.
    """
    found = (name for name, header in headers.items() if _may_hold_images(name.lower(), header))
    return sorted(name for name in found if not may_be_files(headers[name]) or is_image_file(first(name)))


def _may_hold_images(name: str, header: ArrayHeader) -> bool:
    shape, leaf = header.shape, name.rpartition("/")[2]
    if _NO_COLORS.search(leaf) or "next_obs" in name or 0 in shape:
        return False
    if may_be_files(header):
        return bool(_IMAGE_WORDS.search(name))
    if len(shape) == 4 and header.dtype.kind in "iuf" and 3 in (shape[-1], shape[1]):
        return header.dtype == np.uint8 or bool(_IMAGE_WORDS.search(name))
    gray_or_alpha = header.dtype == np.uint8 and (len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 4)))
    return gray_or_alpha and shape[-1] != 3 and bool(_IMAGE_WORDS.search(name))


def is_named_color(name: str) -> bool:
    """Return whether a name has a word for images or cameras, and none for depth or masks."""
    return bool(_IMAGE_WORDS.search(name.lower())) and not _NO_COLORS.search(name.lower())


def may_be_files(header: ArrayHeader) -> bool:
    """Return whether an array has the form of one file a step: bytes, or rows of uint8."""
    if len(header.shape) == 1:
        return header.dtype.kind in "SO"
    return len(header.shape) == 2 and header.dtype == np.uint8


def is_image_file(value: Any) -> bool:
    """Return whether bytes, or numbers that stand for them, begin as an image file does."""
    return _bytes_of(value)[:8].startswith(_MAGIC)


def name_cameras(first: str, main: str, images: Sequence[str], drop: str = "$") -> dict[str, str]:
    """Name arrays of images.

    Args:
        first: name of the camera `main`.
        main: an array, which need not be there.
        images: all arrays; the others are named by the end of their path, or all of it where the ends are the same.
        drop: pattern of what names lose at their end.
    """
    others = [image for image in images if image != main]
    names = [camera_name(re.sub(drop, "", _end_of_path(image))) for image in others]
    if len({camera_name(first), *names}) <= len(names):
        names = [camera_name(image.replace("/", "_")) for image in others]
    cameras = {camera_name(first): main} if main in images else {}
    return cameras | dict(zip(names, others, strict=True))


def _end_of_path(name: str) -> str:
    """Return the last part of a path, with the one before where it is a word for any image."""
    *before, last = name.split("/")
    return f"{before[-1]}_{last}" if before and last in ("rgb", "image", "images", "img", "color") else last


def check_images(where: str, header: ArrayHeader) -> None:
    """Check that an array can hold images, by its shape and type.

    Raises:
        DataError: it cannot.
    """
    shape = header.shape
    color = len(shape) == 4 and (shape[-1] in (1, 3, 4) or (shape[1] > 0 and shape[1] % 3 == 0))
    gray = len(shape) == 3 and header.dtype == np.uint8 and shape[-1] != 3
    pixels = header.dtype.kind in "iuf" and (color or gray)
    if 0 in shape or not (pixels or may_be_files(header)):
        raise DataError(
            f"{where}: expected integers 0 to 255 or floats 0 to 1, (t, h, w, 3) or (t, 3, h, w), gray of uint8, or an "
            f"image file a step, got {header.dtype} {shape}; name the images in a spec, or write one file an episode."
        )


def colors_of(where: str, values: Array) -> Array:
    """Turn an array of images into uint8 `[t h w 3]`; alpha is left out, gray becomes three equal channels.

    Raises:
        DataError: they are no images, or their values no colors.
    """
    header = ArrayHeader(shape=values.shape, dtype=values.dtype)
    check_images(where, header)
    if may_be_files(header):
        return _decoded(where, values)
    if values.ndim == 3:
        values = values[..., None]
    if values.shape[-1] in (3, 4):
        values = values[..., :3]
    elif values.shape[-1] == 1:
        values = np.broadcast_to(values, (*values.shape[:-1], 3))
    else:
        values = values[:, -3:].transpose(0, 2, 3, 1)
    if values.dtype == np.uint8:
        return values
    low, high = values.min(), values.max()
    whole = values.dtype.kind != "f" or (1 < high <= 255 and bool((values == np.rint(values)).all()))
    top = 255 if whole else 1
    if not (low >= 0 and high <= top):  # NaN is neither
        raise DataError(f"{where}: expected {values.dtype} from 0 to {top}, got {low} to {high}; convert the images.")
    scaled = values if whole else np.rint(values * 255)
    colors: Array = scaled.astype(np.uint8)
    return colors


def _decoded(where: str, values: Array) -> Array:
    frames: list[Array] = []
    for step, value in enumerate(values):
        try:
            frame = np.asarray(load_image(_bytes_of(value)).convert("RGB"))
        except DataError as error:
            raise DataError(f"{where}: step {step}: {error}") from error
        if frames and frame.shape != frames[0].shape:
            raise DataError(
                f"{where}: step {step}: expected {frames[0].shape[:2]} (height, width) as before it, got "
                f"{frame.shape[:2]}; leave the episode out."
            )
        frames.append(frame)
    return np.stack(frames)


def _bytes_of(value: Any) -> bytes:
    if isinstance(value, str):
        return b""
    return value if isinstance(value, bytes) else np.asarray(value).tobytes()
