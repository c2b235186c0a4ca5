"""Repositories of the Hugging Face Hub: fetch one by its name, put files into one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from .errors import HubError

Kind = Literal["model", "dataset"]

_NAME = re.compile(r"(?:hf://)?(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?")


def names_repository(source: str | Path) -> bool:
    """Return whether a source names a repository of the Hub: `user/name`, `user/name@revision`, or with `hf://`.

    A path wins: what begins with a folder that is here is no name of the Hub, so a misspelled path asks nobody.
    """
    source = str(source)
    if source.startswith("hf://"):
        return True
    return bool(_NAME.fullmatch(source)) and not Path(source.split("/")[0]).exists() and source[0] not in "./~"


def download(source: str, files: Sequence[str], *, kind: Kind = "model") -> Path:
    """Fetch files of a repository into the cache of `huggingface_hub` and return the folder.

    Args:
        source: `user/name`, `user/name@revision` (branch, tag or commit), or either with `hf://` before it.
        files: patterns of what is fetched; nothing else is.
        kind: of the repository.

    Raises:
        HubError: no such repository, no access, or the Hub is out of reach and the cache has nothing.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    match = _NAME.fullmatch(source)
    if match is None:
        raise HubError(f"{source}: expected user/name or user/name@revision after hf://; correct the name.")
    try:
        folder = snapshot_download(
            match["repository"], revision=match["revision"], repo_type=kind, allow_patterns=list(files)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise HubError(
            f"{source}: expected a folder here or a {kind} repository on the Hugging Face Hub, got neither "
            f"({_first_line(error)}); check the path or the name, and log in with `hf auth login` where it is private."
        ) from error
    return Path(folder)


def upload(files: Mapping[str, Path | bytes], repository: str, *, kind: Kind, private: bool, message: str) -> str:
    """Put files into a repository, made where there is none, in one commit; return its address.

    Args:
        files: path in the repository -> file here, or its content.
        repository: `user/name`.
        kind: of the repository.
        private: whether a new repository is.
        message: of the commit.

    Raises:
        HubError: a name that is none, no right to write, or the Hub is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    match = _NAME.fullmatch(repository)
    if match is None or match["revision"]:
        raise HubError(f"--to {repository}: expected user/name; correct the name.")
    hub, name = HfApi(), match["repository"]
    operations = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()]
    try:
        address = hub.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        hub.create_commit(name, operations, repo_type=kind, commit_message=message)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        raise HubError(
            f"--to {repository}: the Hugging Face Hub refused the upload or is out of reach ({_first_line(error)}); "
            "log in with `hf auth login` and a token that may write, and try again."
        ) from error
    return str(address)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
