"""Where shards lie: a local folder, or a URL that fsspec can read (`https://`, `s3://`, `gs://`, ...)."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import DataError, EnvironmentMissing

Location = Path | str
"""A file or folder: a path, or a URL as text."""


def is_url(location: Location) -> bool:
    """Distinguish a URL from a path."""
    return isinstance(location, str) and "://" in location and not location.startswith("file://")


def as_location(text: Location) -> Location:
    """Turn what a user typed into a path where it is no URL."""
    if isinstance(text, str) and text.startswith("file://"):
        return Path(text[7:])
    return text if is_url(text) else Path(text).expanduser()


def joined(location: Location, name: str) -> Location:
    """Name a file in a folder."""
    return f"{str(location).rstrip('/')}/{name}" if is_url(location) else Path(location) / name


def file_name(location: Location) -> str:
    """Return the last part of a location."""
    return str(location).rstrip("/").rsplit("/", 1)[-1]


def sibling(location: Location, name: str) -> Location:
    """Name a file beside another one."""
    return f"{str(location).rsplit('/', 1)[0]}/{name}" if is_url(location) else Path(location).with_name(name)


def read_location(location: Location) -> bytes:
    """Read a whole file.

    Raises:
        DataError: it is missing or cannot be read.
        EnvironmentMissing: the package for this kind of URL is not installed.
    """
    try:
        if not is_url(location):
            return Path(location).read_bytes()
        with _open_url(str(location)) as file:
            data: bytes = file.read()
            return data
    except OSError as error:
        raise DataError(f"{location}: cannot be read ({error or type(error).__name__}); check the address.") from error


@contextmanager
def local_copy(location: Location) -> Iterator[Path]:
    """Give a local file: the file itself, or a copy of a URL that is removed afterwards.

    Raises:
        DataError: the URL cannot be read.
    """
    if not is_url(location):
        yield Path(location)
        return
    with TemporaryDirectory(prefix="gr2-") as folder:
        target = Path(folder) / file_name(location)
        _download(str(location), target)
        yield target


def cache_folder() -> Path:
    """Return where copies of remote shards are kept: `$GR2_CACHE`, else `~/.cache/gr2`."""
    return Path(os.environ.get("GR2_CACHE", "~/.cache/gr2")).expanduser()


def cached(location: Location) -> Path:
    """Give a local file: the file itself, or a copy of a URL in the cache folder, downloaded at the first call.

    Raises:
        DataError: the URL cannot be read.
    """
    if not is_url(location):
        return Path(location)
    folder = hashlib.sha256(str(location).rsplit("/", 1)[0].encode()).hexdigest()[:16]
    target = cache_folder() / folder / file_name(location)
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(str(location), target)
    return target


def _download(url: str, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with _open_url(url) as file, temporary.open("wb") as out:
            shutil.copyfileobj(file, out, 1 << 20)
        os.replace(temporary, target)
    except OSError as error:
        raise DataError(f"{url}: cannot be downloaded ({error or type(error).__name__}); check the address.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _open_url(url: str) -> Iterator[Any]:
    import fsspec

    try:
        # read from the first byte to the last: no block cache, no byte ranges, which plain web servers do not know
        options = {"block_size": 0} if url.startswith(("http://", "https://")) else {}
        with fsspec.open(url, "rb", **options) as file:
            yield file
    except ImportError as error:
        raise EnvironmentMissing(f"{url}: {error}; install gr2 with the extra `cloud`.") from error
    except OSError:
        raise
    except Exception as error:
        # each protocol's client has errors of its own (aiohttp.ClientError, botocore.ClientError)
        if isinstance(error, DataError):
            raise
        raise OSError(f"{type(error).__name__}: {error}") from error
