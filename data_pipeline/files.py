"""Write files so that a reader sees the old one or the new one, never half of one."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Array
from ..errors import DataError, refuse_lfs_pointer


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` through a temporary file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any, compact: bool = False) -> None:
    """Write `value` as JSON, indented, or without any white space where it is `compact`."""
    layout: dict[str, Any] = {"separators": (",", ":")} if compact else {"indent": 1}
    write_bytes(path, (json.dumps(value, ensure_ascii=False, **layout) + "\n").encode(errors="backslashreplace"))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: where it is missing, is no JSON, or is a pointer of Git LFS.
    """
    try:
        refuse_lfs_pointer(path)
        return json.loads(path.read_text(encoding="utf-8-sig"))  # Windows begins files with a mark
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}); make it again.") from error


def array_bytes(array: Array) -> bytes:
    """Serialize an array in the `.npy` format."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def load_array(data: bytes | Path) -> Array:
    """Read an array of the `.npy` format; pickled objects are refused.

    Raises:
        DataError: where the bytes are no `.npy` array.
    """
    try:
        array: Array = np.load(data if isinstance(data, Path) else io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        name = str(data) if isinstance(data, Path) else f"{len(data)} bytes"
        raise DataError(f"{name}: cannot be read as a .npy array ({error}); make it again.") from error
    return array


def sample_key(relative: str) -> str:
    """Turn a relative path into a key without dots or slashes; a short digest keeps different paths apart."""
    slug = re.sub(r"[^A-Za-z0-9_-]+", "_", relative).strip("_")[-80:]
    return f"{slug}-{hashlib.sha256(printable(relative).encode()).hexdigest()[:8]}"


def printable(name: str) -> str:
    """Return a file's name with what is no UTF-8 in it written out, as it can be printed and stored."""
    return name.encode(errors="backslashreplace").decode()


def camera_name(name: str) -> str:
    """Make a camera name fit for a tar member: no dots, no slashes."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name)


@lru_cache(maxsize=64)
def text_encoding(path: Path) -> str:
    """Return how a text file is encoded: UTF-8, UTF-16 by its first two bytes, else Latin-1, which is told.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        with path.open(encoding="utf-8-sig") as text:
            while text.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        print(f"{path}: is no UTF-8 (byte {error.start}); it is read as Latin-1", file=sys.stderr)
        return "latin-1"
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); check the path.") from error
    return "utf-8-sig"
