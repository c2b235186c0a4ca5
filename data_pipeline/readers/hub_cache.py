"""Find a dataset of the Hugging Face hub, named by its id, in the caches of this machine; nothing is downloaded."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import DataError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_dataset_id(text: str) -> bool:
    """Return whether a text looks like `owner/name`."""
    return _ID.fullmatch(text) is not None and not text.endswith(
        (".tar", ".tgz", ".gz", ".npz", ".hdf5", ".h5", ".zip")
    )


def cached_dataset(name: str) -> Path | None:
    """Return the folder of a dataset in the cache of `huggingface_hub` or of LeRobot; None where it is in neither.

    Of several revisions in the cache of `huggingface_hub` it is that of `refs/main`, else the newest.

    Raises:
        DataError: the cache knows the dataset and holds no file of it.
    """
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    own = Path(os.environ.get("HF_LEROBOT_HOME", home / "lerobot")).expanduser() / name
    if own.is_dir():
        return own
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    place = hub / f"datasets--{name.replace('/', '--')}"
    if not place.is_dir():
        return None
    reference = place / "refs" / "main"
    if reference.is_file():
        chosen = place / "snapshots" / reference.read_text().strip()
        if chosen.is_dir():
            return chosen
    found = [folder for folder in place.glob("snapshots/*") if folder.is_dir()]
    if not found:
        raise DataError(f"{place}: holds no snapshot; run `{download_command(name)}`.")
    return max(found, key=lambda folder: folder.stat().st_mtime)


def download_command(name: str) -> str:
    """Return the command that puts a dataset into the cache."""
    return f"hf download --repo-type dataset {name}"
