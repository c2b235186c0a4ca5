"""`gr2 data push`: put video or token shards on the Hugging Face Hub, with a card that says what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...hub import upload

_COMPLETE = "complete"
_LOGS = ".dropped.jsonl"
"""Ending of the lists of what was dropped, whose entries name files of this machine."""


def push(*, shards: Path, to: str, private: bool = False) -> str:
    """Put a folder of shards into a data set repository of the Hugging Face Hub; every command reads them from there.

    The token is that of `hf auth login` or of HF_TOKEN. Lists of dropped records and the folder that the shards came
    from stay here.

    Args:
        shards: folder of `gr2 data shards`, `curate`, `caption` or `tokens`.
        to: `user/name`; made where there is none.
        private: whether a new repository is.

    Returns:
        The address that `--shards` takes.

    Raises:
        DataError: no shards, or they are not complete.
        HubError: the Hub refuses or is out of reach.
    """
    manifest = _complete_manifest(shards)
    files: dict[str, Path | bytes] = {
        str(file.relative_to(shards)): file
        for file in sorted(shards.rglob("*"))
        if file.is_file() and not file.name.startswith(".") and not file.name.endswith(_LOGS)
    }
    files["manifest.json"] = json.dumps(_without_places(manifest), indent=1).encode()
    files["README.md"] = _card(manifest, to).encode()
    address = upload(files, to, kind="dataset", private=private, message="gr2 data push")
    print(f"{address}\n--shards {address}/resolve/main")
    return f"{address}/resolve/main"


def _complete_manifest(shards: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((shards / "manifest.json").read_text())
        complete = manifest["status"] == _COMPLETE and manifest["counts"] is not None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{shards}: expected a folder of shards with manifest.json, got none that can be read ({error!r}); name "
            "the --out of `gr2 data shards` or `gr2 data tokens`."
        ) from error
    if not complete:
        raise DataError(f"{shards}: expected complete shards, got a stopped run; run its command again first.")
    return dict(manifest)


def _without_places(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest without folders of this machine."""
    parameters = {
        key: Path(value).name if key in ("source", "shards") and isinstance(value, str) else value
        for key, value in manifest.get("parameters", {}).items()
    }
    return {key: value for key, value in manifest.items() if key != "examples"} | {"parameters": parameters}


def _card(manifest: Mapping[str, Any], name: str) -> str:
    counts = manifest["counts"]
    rows = "\n".join(f"| {key} | {value:,.0f} |" for key, value in counts.items() if isinstance(value, int | float))
    return (
        "---\ntags:\n- gr2\n- webdataset\n- robotics\n---\n"
        f"# {manifest['stage'].replace('_', ' ').capitalize()} of gr2\n\n"
        f"| | |\n|---|---|\n{rows}\n\n"
        "```bash\n"
        f"gr2 data tokens --shards https://huggingface.co/datasets/{name}/resolve/main --out tokens\n```\n\n"
        "Who made the recordings and what they may be used for is for whoever puts them here to say.\n"
    )
