"""`gr2 push`: put a released model on the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import CheckpointError, ConfigError
from ...hub import upload
from ..model.card import CARD, model_card
from ..model.release import load_release, read_record, release_files, release_folder


def push(*, release: str, to: str, results: Path | None = None, private: bool = False) -> str:
    """Put a released model into a repository of the Hugging Face Hub; `gr2.load_policy("user/name")` loads it there.

    The token is that of `hf auth login` or of HF_TOKEN.

    Args:
        release: folder that training wrote, or "pretrained".
        to: `user/name`; made where there is none.
        results: `results.json` of `gr2 benchmark calvin`, whose figures go into the model card.
        private: whether a new repository is.

    Returns:
        The address.

    Raises:
        CheckpointError: the release is not whole, or its encoders are files of this machine alone.
        HubError: the Hub refuses or is out of reach.
    """
    folder = release_folder(release)
    load_release(folder)  # whole and undamaged
    record = read_record(folder)
    for kind in ("tokenizer", "text"):
        source = str(record["provenance"].get(f"{kind}_source", "small"))
        if source not in ("small", kind) and Path(source).exists():
            raise CheckpointError(
                f"{folder}: expected a {kind} encoder that others can load, got the file {source} of this machine; "
                "train with a folder of `gr2 tokenizer train` or `gr2 text train`, which goes into the release."
            )
    try:
        card = model_card(record, None if results is None else json.loads(results.read_text()), name=to)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--results {results}: expected results.json of `gr2 benchmark calvin`, got something else ({error!r}); "
            "name that file."
        ) from error
    files: dict[str, Path | bytes] = {str(f.relative_to(folder)): f for f in release_files(folder)}
    address = upload(files | {CARD: card.encode()}, to, kind="model", private=private, message="gr2 push")
    print(address)
    return address
