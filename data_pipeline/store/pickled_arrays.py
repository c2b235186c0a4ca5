"""Read numpy files that hold pickled objects (dicts, lists, strings, arrays) without running anything in them.

CALVIN keeps its annotations so. A pickle may name any function of the machine; here the few names that numpy itself
writes stand for inert stand-ins, every other name is refused, and the arrays are rebuilt from their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError

_PLAIN_KINDS = "biuf"
"""Kinds of numbers that are rebuilt from bytes: bool, integers, floats."""


class _Dtype:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code), "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = str(state[1])

    def plain(self) -> np.dtype[Any]:
        """Return the type of plain numbers that is meant."""
        kind, order = self.code[:1], "" if self.order == "|" else self.order
        if kind not in _PLAIN_KINDS or order not in ("", "<", ">", "="):
            raise ValueError(f"numbers of type {self.code!r}")
        return np.dtype(order + self.code)


class _Array:
    """Stands for a numpy array until all of the file is read."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype: _Dtype | None = None
        self.fortran, self.data = False, None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.fortran, self.data = state

    def value(self) -> Any:
        """Rebuild the array, or the objects that it holds."""
        if self.dtype is None:
            raise ValueError("an array without content")
        count = math.prod(self.shape)
        if isinstance(self.data, list):  # an array of objects
            if len(self.data) != count:
                raise ValueError(f"{len(self.data)} objects for an array of shape {self.shape}")
            values = [_finish(item) for item in self.data]
            return values[0] if self.shape == () else values
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        dtype = self.dtype.plain()
        if not isinstance(data, bytes) or len(data) != count * dtype.itemsize:
            raise ValueError(f"another number of bytes than an array {self.shape} of {dtype} has")
        return np.frombuffer(data, dtype).reshape(self.shape, order="F" if self.fortran else "C").copy()


class _Scalar:
    """Stands for one numpy number."""

    def __init__(self, dtype: _Dtype, data: Any) -> None:
        self.dtype, self.data = dtype, data

    def value(self) -> Any:
        """Return the number."""
        data = self.data.encode("latin1") if isinstance(self.data, str) else self.data
        return np.frombuffer(data, self.dtype.plain(), count=1)[0].item()


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    return str(text).encode("latin1" if encoding == "latin1" else "utf-8")


_NAMES: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to an object outside")


def _finish(value: Any) -> Any:
    if isinstance(value, _Array | _Scalar):
        return value.value()
    if isinstance(value, dict):
        return {_finish(key): _finish(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finish(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_finish(item) for item in value)
    if value is None or isinstance(value, str | bytes | int | float | bool):
        return value
    raise ValueError(f"an object of type {type(value).__name__}")


def load_pickled_array(path: Path) -> Any:
    """Read a `.npy` file: an array, or the plain objects that an array of objects holds.

    Returns:
        A numpy array; for a pickled file its content made of dict, list, tuple, str, numbers and numpy arrays (the
        object itself where the array has no axes).

    Raises:
        DataError: for a file that is missing, damaged, or names anything but numpy's own array types.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}), expected a .npy file; check the path.") from error
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        _, _, dtype = read_header(file)  # type: ignore[no-untyped-call]
        if not dtype.hasobject:
            return np.load(io.BytesIO(data), allow_pickle=False)
        content = _finish(_Unpickler(file).load())
    except (pickle.UnpicklingError, ValueError, TypeError, AttributeError, EOFError, IndexError, KeyError) as error:
        raise DataError(
            f"{path}: expected a whole .npy file of arrays, numbers, text, lists and dicts, got one that cannot be "
            f"read ({str(error)[:200]}); nothing in it was run. Copy it again."
        ) from error
    return content
