"""Numpy arrays in msgpack, as the protocols of openpi and of vla-eval mark them; bounds on all that is read.

openpi marks an array by keys of bytes (`b"__ndarray__"`, `b"data"`, `b"dtype"`, `b"shape"`) and a numpy scalar by
`b"__npgeneric__"`. vla-eval marks an array by the same keys as texts, and an image by `"__image__"` with a `format` of
png, jpeg or raw. `unpack` reads all of them.

Source: openpi-client 0.1.2 (`msgpack_numpy`), vla-eval 0.8.0 (`protocol/numpy_codec`, `protocol/image_codec`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from PIL import Image

from ...contracts import Array
from ...errors import DataError, EnvironmentMissing
from .remote import MAX_BYTES

Marks = Literal["openpi", "vla-eval"]
"""Whose marks are written."""

_KINDS = "biufUS"
"""Kinds of arrays that are read: numbers and texts, no objects."""


_MAX_DTYPE = 32
"""Longest name of a dtype [characters]; those of structures, which are never read, can take seconds to parse."""


def require_serving_packages() -> None:
    """Check that the packages of the extra `serve` are installed.

    Raises:
        EnvironmentMissing: one is missing.
    """
    try:
        import msgpack  # noqa: F401
        import websockets.sync.server  # noqa: F401
    except ImportError as error:
        raise EnvironmentMissing(
            f"protocols openpi and vla-eval: expected the packages websockets and msgpack, got {error}; install them "
            "with: pip install 'gr2[serve]'."
        ) from error


def pack(value: Any, marks: Marks) -> bytes:
    """Write nested dicts, lists, texts, numbers and arrays as one message."""
    import msgpack

    packed: bytes = msgpack.packb(value, default=partial(_encode, marks=marks))
    return packed


def unpack(data: bytes | str) -> Any:
    """Read one message of either protocol; arrays are copies that can be written to.

    Raises:
        DataError: it is no msgpack, an array is of objects or has another size than it states, or its images take up
            more than `MAX_BYTES` together.
    """
    import msgpack

    if isinstance(data, str):
        raise DataError(f"message: expected binary msgpack, got a text of {len(data)} characters.")
    try:
        return msgpack.unpackb(data, object_hook=partial(_decode, images=_Images()))
    except DataError:
        raise
    except Exception as error:  # msgpack's own errors have no common root
        raise DataError(f"message of {len(data)} bytes: expected msgpack, got {error!r}.") from error


def _encode(value: Any, marks: Marks) -> Any:
    if isinstance(value, np.generic):
        if marks == "vla-eval":
            return value.item()
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    if not isinstance(value, np.ndarray):
        raise TypeError(f"cannot be sent: {type(value).__name__}")
    if value.dtype.kind not in _KINDS:
        raise TypeError(f"cannot be sent: an array of {value.dtype}")
    if marks == "openpi":
        return {
            b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": list(value.shape)
        }  # fmt: skip
    body = {"data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    if value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] in (1, 3, 4):
        return {"__image__": True, "format": "raw", **body}
    return {"__ndarray__": True, **body}


def _decode(value: dict[Any, Any], images: _Images) -> Any:
    if "__image__" in value:
        return images.read(value)
    if "__ndarray__" in value:
        return _array(value.get("data"), value.get("dtype"), value.get("shape"))
    if b"__ndarray__" in value:
        return _array(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
    if b"__npgeneric__" in value:
        return _scalar(value.get(b"data"), value.get(b"dtype"))
    return value


def _scalar(data: Any, stated_dtype: Any) -> Any:
    """Read a numpy scalar; texts come from texts alone, for numpy makes N empty bytes of a number N."""
    dtype = _dtype(stated_dtype)
    if not isinstance(data, str | bytes if dtype.kind in "US" else bool | int | float):
        raise DataError(f"scalar: expected a value of dtype {dtype}, got {type(data).__name__}.")
    return dtype.type(data)


def _dtype(stated: Any) -> np.dtype[Any]:
    if isinstance(stated, str | bytes) and len(stated) > _MAX_DTYPE:
        raise DataError(f"array: expected the name of a number's type as dtype, got {len(stated)} characters.")
    try:
        dtype = np.dtype(stated if isinstance(stated, str) else stated.decode())
    except (TypeError, ValueError, AttributeError, SyntaxError) as error:
        raise DataError(f"array: expected the name of a number's type as dtype, got {stated!r:.80}.") from error
    if dtype.kind not in _KINDS:
        raise DataError(f"array: expected numbers or texts, got dtype {dtype}.")
    return dtype


def _shape(stated: Any) -> tuple[int, ...]:
    whole = isinstance(stated, list | tuple) and all(type(n) is int and 0 <= n <= MAX_BYTES for n in stated)
    if not whole or len(stated) > 8:
        raise DataError(f"array: expected a shape of up to 8 whole numbers, got {stated!r:.80}.")
    return tuple(stated)


def _array(data: Any, stated_dtype: Any, stated_shape: Any) -> Array:
    dtype, shape = _dtype(stated_dtype), _shape(stated_shape)
    size = dtype.itemsize * math.prod(shape)
    if not isinstance(data, bytes) or len(data) != size:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise DataError(f"array: expected {size} bytes for {dtype} {shape}, got {got}.")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


class _Images:
    """The images of one message: what they unpack to is bounded, for a small PNG can hold many pixels."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def read(self, value: Mapping[str, Any]) -> Array:
        """Read an image, whose size is checked before it is decoded."""
        form, data = value.get("format"), value.get("data")
        if form == "raw":
            return _array(data, value.get("dtype", "|u1"), value.get("shape"))
        if form not in ("png", "jpeg") or not isinstance(data, bytes):
            raise DataError(f"image: expected the format png, jpeg or raw with bytes, got {form!r:.40}.")
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                self._left -= image.width * image.height * 4
                if self._left < 0:
                    raise DataError(
                        f"image: expected images of at most {MAX_BYTES} bytes in a message, got one of "
                        f"{image.width} x {image.height} px beside the others."
                    )
                return np.array(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"image: expected a whole {form} file, got {error}.") from error
