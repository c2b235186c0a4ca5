"""Load a frozen VQGAN: the shipped one, one of our own, or a published taming checkpoint."""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointError, ConfigError
from .state_dicts import build_vqgan, network_tensors
from .vqgan import VQGAN, VQGANConfig, at_resolution
from .weight_files import load_weights, read_state_dict, save_weights

SHIPPED = ("small",)
"""Names of the tokenizers that come with the package."""


def load_vqgan(source: str | Path, *, config_file: Path | None = None, resolution: int | None = None) -> VQGAN:
    """Return a frozen VQGAN in evaluation mode.

    Args:
        source: "small" (shipped); a folder or `.safetensors` of `train_vqgan`; or a published `.ckpt` or
            `.pt`.
        config_file: yaml of a published checkpoint; by default `model.yaml` or the only yaml file beside it.
        resolution: side of the images [pixels], where it is to differ from the side in training.

    Raises:
        CheckpointError: if weights are missing, damaged or of another kind of model.
    """
    if str(source) in SHIPPED:
        with as_file(files("gr2.tokenizers") / "weights" / "vqgan.safetensors") as path:
            if not path.is_file():
                raise CheckpointError(
                    f"Tokenizer '{source}': expected shipped weights {path.name}, got none in this "
                    "installation; install a release or train one with `gr2 tokenizer train`."
                )
            config, state = _read_own(path)
    else:
        path = Path(source)
        path = path / "vqgan.safetensors" if path.is_dir() else path
        if path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
            config, state = _read_published(path, config_file)
        else:
            config, state = _read_own(path)
    return build_vqgan(config if resolution is None else at_resolution(config, resolution), state, source)


def convert_vqgan(*, source: Path, out: Path, config_file: Path | None = None) -> None:
    """Convert a published taming checkpoint to `vqgan.safetensors` and `vqgan.json`, running nothing in it.

    Args:
        source: the `.ckpt` or `.pt` file.
        out: folder for the two files.
        config_file: its yaml; by default `model.yaml` or the only yaml file beside the checkpoint.
    """
    model = load_vqgan(source, config_file=config_file)
    record = {"kind": "vqgan", "config": asdict(model.config), "converted_from": source.name}
    save_weights(out / "vqgan.safetensors", model.state_dict(), record)


def _read_own(path: Path) -> tuple[VQGANConfig, dict[str, Any]]:
    state, record = load_weights(path, "vqgan")
    stated: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.get("config", {}).items()}
    known = {f.name for f in fields(VQGANConfig)}
    if set(stated) != known:
        raise CheckpointError(
            f"{path.with_suffix('.json')}: expected the configuration fields {sorted(known)}, got "
            f"{sorted(stated)}; the file is of another version."
        )
    return VQGANConfig(**stated), state


def _read_published(path: Path, config_file: Path | None) -> tuple[VQGANConfig, dict[str, Any]]:
    state = network_tensors(read_state_dict(path), path)
    return read_taming_config(config_file or _yaml_beside(path)), state


def _yaml_beside(path: Path) -> Path:
    if (path.parent / "model.yaml").is_file():
        return path.parent / "model.yaml"
    found = sorted([*path.parent.glob("*.yaml"), *path.parent.glob("*.yml")])
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: expected its yaml beside it, got {len(found)} yaml files; name the right one with config_file."
        )
    return found[0]


def read_taming_config(path: Path) -> VQGANConfig:
    """Read the shape of a VQGAN from taming's yaml; class names in it are ignored.

    Raises:
        CheckpointError: if the file is missing or has no `model.params` of a VQGAN.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the yaml of a published VQGAN, got none; check the path.")
    try:
        params = yaml.safe_load(path.read_text())["model"]["params"]
        network = params["ddconfig"]
        return VQGANConfig(
            resolution=network["resolution"],
            patch_size=1,
            channels=network["ch"],
            channel_mult=tuple(network["ch_mult"]),
            num_res_blocks=network["num_res_blocks"],
            attn_resolutions=tuple(network["attn_resolutions"]),
            z_channels=network["z_channels"],
            embed_dim=params["embed_dim"],
            codebook_size=params["n_embed"],
        )
    except (yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: expected model.params with ddconfig, embed_dim and n_embed, got another layout "
            f"({error!r}); use the yaml that was published with the weights."
        ) from error
