"""The release format: `model.safetensors` beside `config.json`, checked on loading.

`config.json` holds the format version, the model's configuration, and whether it was finetuned on robot episodes. It
holds the normalization statistics (for people; the weights hold them, too) and the statistics of the datasets that the
model was trained on. It ends with the fingerprints of the image tokenizer and of the text encoder, the weight file's
SHA-256 and its provenance.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...cvae_head.kinds import head_config_from_dict
from ...data_pipeline.files import write_bytes, write_json
from ...data_pipeline.statistics.datasets import DatasetStatistics, read_datasets
from ...embodiment import Embodiment
from ...errors import CheckpointError, ConfigError, DataError, refuse_lfs_pointer
from ...fingerprints import same_encoder
from ...hub import download, names_repository
from ...tokenizers.weight_files import sha256
from .card import CARD, model_card
from .config import CameraSpec, ModelConfig
from .normalization import Normalization
from .world_model import WorldModel

FORMAT_VERSION = 1
WEIGHTS, RECORD = "model.safetensors", "config.json"
RELEASE_FILES = (RECORD, WEIGHTS, CARD, "tokenizer/*", "text/*")
"""What a release is made of; encoders of its own lie in their folders."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A loaded model and what is known about it.

    frame_step: distance of successive frames [control steps]; control_hz: rate of the chunk's poses [Hz]; of several
        robots, those of the first.
    frame_steps: robot -> its own frame_step, where there are several.
    provenance: command, seed, steps and whatever the writer added.
    datasets: fingerprint -> statistics of the states and actions it was trained on; empty where nobody kept them.
    """

    model: WorldModel
    tokenizer: str
    text: str
    frame_step: int
    control_hz: float
    provenance: Mapping[str, Any]
    datasets: Mapping[str, DatasetStatistics] = field(default_factory=dict)
    frame_steps: Mapping[str, int] = field(default_factory=dict)

    def clocks_of(self, place: int) -> tuple[int, float]:
        """Return distance of frames [control steps] and rate [Hz] of the robot at a place of the configuration."""
        if not self.model.config.is_mixture:
            return self.frame_step, self.control_hz
        robot = self.model.config.embodiments[place]
        return self.frame_steps[robot.name], robot.control_hz

    @property
    def normalization(self) -> Normalization | None:
        """What the model normalizes with, and the data that it is for; None where it was not finetuned."""
        if not self.model.acts:
            return None
        return Normalization(statistics=self.model.get_statistics(), datasets=self.datasets)


_RENAMED = {"code_renaming": "code_permutation"}
"""Keys of 0.1.0 and what they are called now."""


def config_from_dict(values: Mapping[str, Any]) -> ModelConfig:
    """Rebuild a configuration from `dataclasses.asdict` or its JSON.

    Raises:
        CheckpointError: unknown, missing or unusable values.
    """
    try:
        known = {entry.name for entry in fields(ModelConfig)}
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        if "embodiment" in values:  # one robot, as gr2 0.1.0 kept it
            values["embodiments"] = [values.pop("embodiment")]
        unknown = sorted(set(values) - known)
        if unknown:
            raise CheckpointError(
                f"model configuration: expected only known values, got {unknown} as well; update gr2."
            )
        values |= {name: tuple(values.get(name, ())) for name in ("motions", "contacts")}
        cameras = tuple(
            CameraSpec(name=camera["name"], grid=(int(camera["grid"][0]), int(camera["grid"][1])))
            for camera in values["cameras"]
        )
        return ModelConfig(
            **{**values, "cameras": cameras, "head": head_config_from_dict(values["head"]), **_embodiments(values)}
        )
    except (KeyError, TypeError, IndexError, ConfigError) as error:
        raise CheckpointError(
            f"model configuration: expected the values of ModelConfig, got an unusable one ({error}); "
            "the file is damaged or of another version: export the model again."
        ) from error


def _embodiments(values: Mapping[str, Any]) -> dict[str, tuple[Embodiment, ...]]:
    """Read the embodiments; the oldest records have none."""
    return {"embodiments": tuple(map(Embodiment.from_dict, values["embodiments"]))} if "embodiments" in values else {}


def save_release(
    folder: Path,
    model: WorldModel,
    *,
    tokenizer: str,
    text: str,
    frame_step: int,
    control_hz: float,
    provenance: Mapping[str, Any],
    datasets: Mapping[str, DatasetStatistics] | None = None,
    frame_steps: Mapping[str, int] | None = None,
) -> Path:
    """Write a release; the record comes last, so that a folder with a record is whole.

    Args:
        tokenizer, text: fingerprints of the frozen encoders the model was trained with.
        frame_step: distance of successive frames [control steps].
        control_hz: steps a second of the predicted chunk [Hz].
        provenance: seed, steps, data; the command line is added.
        datasets: fingerprint -> statistics of the states and actions it was trained on.
        frame_steps: robot -> its own frame_step, needed where there are several.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f".{WEIGHTS}.{os.getpid()}"
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}, weights)
    except BaseException:
        weights.unlink(missing_ok=True)
        raise
    record = {
        "format_version": FORMAT_VERSION,
        "model": asdict(model.config),
        "acts": model.acts,
        "predicts": model.predicts,
        "statistics": model.get_statistics().to_dict(),
        "datasets": {key: dataset.to_dict() for key, dataset in (datasets or {}).items()},
        "tokenizer": tokenizer,
        "text": text,
        "frame_step": frame_step,
        "control_hz": control_hz,
        "frame_steps": dict(frame_steps or {}),
        "sha256": sha256(weights),
        "provenance": {"command": " ".join(["gr2", *sys.argv[1:]]), **provenance},
    }
    write_json(folder / f".{RECORD}.{os.getpid()}", record)
    weights.chmod((folder / f".{RECORD}.{os.getpid()}").stat().st_mode)  # safetensors lets nobody else read its files
    os.replace(weights, folder / WEIGHTS)
    write_bytes(folder / CARD, model_card(record).encode())
    os.replace(folder / f".{RECORD}.{os.getpid()}", folder / RECORD)
    return folder


def release_files(folder: Path) -> list[Path]:
    """Return the files of a release, none of the training beside them."""
    return sorted(file for pattern in RELEASE_FILES for file in folder.glob(pattern) if file.is_file())


def release_folder(source: str | Path) -> Path:
    """Return the folder of "pretrained" (shipped), of a path, or of `user/name` on the Hugging Face Hub, once fetched.

    Raises:
        CheckpointError: this installation ships no policy.
        HubError: there is no such repository, or the Hub is out of reach.
    """
    if names_repository(source):
        return download(str(source), RELEASE_FILES)
    if str(source) != "pretrained":
        return Path(source)
    folder = Path(__file__).parents[1] / "weights" / "reference"
    if not folder.is_dir():
        raise CheckpointError(
            "Policy 'pretrained': expected shipped weights, got none in this installation; train one with "
            "`gr2 demo` and give its finetune folder."
        )
    return folder


def load_release(folder: Path, *, tokenizer: str | None = None, text: str | None = None) -> Release:
    """Read a release and check that it fits the encoders at hand.

    Args:
        tokenizer, text: fingerprints that the release must have been trained with; None skips the check.

    Raises:
        CheckpointError: files missing, damaged, of another version, or other encoders.
    """
    record = read_record(folder)
    for kind, wanted in (("tokenizer", tokenizer), ("text", text)):
        if wanted is not None and not same_encoder(record[kind], wanted):
            raise CheckpointError(
                f"{folder}: expected a model trained with the {kind} encoder {wanted}, got one trained with "
                f"{record[kind]}; "
                "use the encoder of the training run."
            )
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{weights}: expected the weight file, got none; copy the whole release folder.")
    refuse_lfs_pointer(weights)
    if sha256(weights) != record["sha256"]:
        raise CheckpointError(
            f"{weights}: expected the SHA-256 that {RECORD} states, got another; the file is truncated or "
            f"changed: "
            "copy the release again."
        )
    model = WorldModel(config_from_dict(record["model"]))
    _read_weights(model, weights)
    if record["statistics"] != json.loads(json.dumps(model.get_statistics().to_dict())):
        raise CheckpointError(
            f"{folder}: expected one normalization, got statistics in {RECORD} that differ from those in {WEIGHTS}; "
            "both files must come from the same release: copy it again."
        )
    model.acts, model.predicts = _acts(record), bool(record.get("predicts", True))
    return Release(
        model=model.eval(),
        tokenizer=record["tokenizer"],
        text=record["text"],
        frame_step=record["frame_step"],
        control_hz=record["control_hz"],
        provenance=record["provenance"],
        datasets=_read_datasets(folder, record),
        frame_steps=_read_frame_steps(folder, record, model.config),
    )


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a safetensors file one at a time, so that they are in memory one at a time.

    Raises:
        SafetensorError: the file is damaged.
    """
    with safe_open(file, "pt") as opened:
        names = list(opened.keys())
    for name in names:
        with safe_open(file, "pt") as opened:  # what is mapped stays in memory as long as this is open
            tensor = opened.get_tensor(name)
        yield name, tensor


def _read_weights(model: WorldModel, file: Path) -> None:
    """Fill a model with the tensors of a file.

    Raises:
        CheckpointError: other tensors than the model's, or numbers that are not finite.
    """
    state = model.state_dict()
    read, broken = set(), []
    try:
        for name, value in read_tensors(file):
            read.add(name)
            if name not in state or value.shape != state[name].shape:
                raise RuntimeError(f"{name} of shape {list(value.shape)}")
            if not torch.isfinite(value).all():
                broken.append(name)
            state[name].copy_(value)
    except (RuntimeError, SafetensorError) as error:
        raise _other_tensors(file, error) from error
    if missing := state.keys() - read:
        raise _other_tensors(file, f"no {min(missing)}")
    if broken:
        raise CheckpointError(
            f"{file}: expected finite weights, got NaN or infinity in {broken[0]} and {len(broken) - 1} more "
            "tensors; the training has failed: release an earlier checkpoint."
        )


def _other_tensors(file: Path, found: object) -> CheckpointError:
    return CheckpointError(
        f"{file}: expected the tensors of the configuration, got others ({found}); export the model again."
    )


def _read_frame_steps(folder: Path, record: Mapping[str, Any], config: ModelConfig) -> dict[str, int]:
    steps = dict(record.get("frame_steps", {}))
    missing = [robot.name for robot in config.embodiments if config.is_mixture and robot.name not in steps]
    if missing:
        raise CheckpointError(
            f"{folder / RECORD}: expected frame_steps of every robot, got none of {', '.join(missing)}; export the "
            "model again."
        )
    return steps


def _acts(record: Mapping[str, Any]) -> bool:
    """Return whether the model was finetuned; a record of gr2 0.1.0 only has statistics that are not the identity."""
    if "acts" in record:
        return bool(record["acts"])
    return any(std != 1 for row in record["statistics"]["action_std"] for std in row)


def _read_datasets(folder: Path, record: Mapping[str, Any]) -> dict[str, DatasetStatistics]:
    try:
        return read_datasets(record.get("datasets", {}))
    except DataError as error:
        raise CheckpointError(f"{folder / RECORD}: {error}") from error


def read_record(folder: Path) -> dict[str, Any]:
    """Read `config.json` of a release.

    Raises:
        CheckpointError: missing, damaged or of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"{path}: expected a release folder with {RECORD} and {WEIGHTS}, got no {RECORD}; give the "
            f"folder that "
            "training wrote."
        )
    refuse_lfs_pointer(path)
    try:
        record = json.loads(path.read_text())
        version = record["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected the record of a release, got unreadable JSON ({error}); copy it again."
        ) from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: expected format version {FORMAT_VERSION}, got {version}; use the gr2 version that "
            f"wrote it or "
            "export the model again."
        )
    missing = {"model", "statistics", "tokenizer", "text", "frame_step", "control_hz", "sha256", "provenance"} - set(
        record
    )
    if missing:
        raise CheckpointError(f"{path}: expected the values {sorted(missing)}, got none; copy it again.")
    return dict(record)
