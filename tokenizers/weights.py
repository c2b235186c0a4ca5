"""Load a frozen VQGAN: the shipped one, one of our own, or a published taming checkpoint."""

from __future__ import annotations

from dataclasses import asdict, fields
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import yaml

from ..errors import CheckpointError, ConfigError
from .published import LOADED, is_llamagen, llamagen_config, refuse_other
from .state_dicts import build_vqgan, network_tensors
from .vqgan import VQGAN, VQGANConfig, at_resolution
from .weight_files import load_weights, read_state_dict, save_weights

_PUBLISHED = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_ADDED = {"quantizer", "middle_attention"}
"""Fields of a configuration that files of 0.1.0 may lack."""

SHIPPED = ("small",)
"""Names of the tokenizers that come with the package."""


def load_vqgan(source: str | Path, *, config_file: Path | None = None, resolution: int | None = None) -> VQGAN:
    """Return a frozen VQGAN in evaluation mode.

    Args:
        source: "small" (shipped); a folder or `.safetensors` of `train_vqgan`; or a published `.ckpt`, `.pt`, `.bin`
            or `.safetensors` of taming, latent-diffusion (VQ), IBQ, or LlamaGen.
        config_file: yaml of a published checkpoint; by default `model.yaml` or the only yaml file beside it. LlamaGen's
            needs none.
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
            config, state, trained_psnr = _read_own(path)
    else:
        path = _weight_file(Path(source))
        own = path.name == "vqgan.safetensors" or path.with_suffix(".json").is_file()
        if path.suffix in _PUBLISHED and path.is_file() and not own:
            config, state = _read_published(path, config_file)
            trained_psnr = None
        else:
            config, state, trained_psnr = _read_own(path)
    model = build_vqgan(config if resolution is None else at_resolution(config, resolution), state, source)
    model.trained_psnr = trained_psnr
    return model


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


def _read_own(path: Path) -> tuple[VQGANConfig, dict[str, Any], float | None]:
    state, record = load_weights(path, "vqgan")
    stated: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.get("config", {}).items()}
    known = {f.name for f in fields(VQGANConfig)}
    if set(stated) | _ADDED != known:
        raise CheckpointError(
            f"{path.with_suffix('.json')}: expected the configuration fields {sorted(known)}, got "
            f"{sorted(stated)}; the file is of another version."
        )
    reached = record.get("metrics", {}).get("psnr")
    return VQGANConfig(**stated), state, None if reached is None else float(reached)


def _weight_file(path: Path) -> Path:
    """Return the weight file of a folder, or the file itself.

    Raises:
        CheckpointError: it is of a family that cannot be loaded.
    """
    beside = (path if path.is_dir() else path.parent) / "config.json"
    record = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    refuse_other(path, {}, f"{path.name} {record}" if path.exists() else "")
    if path.suffix in (".jit", ".msgpack"):
        kind = "TorchScript, as Cosmos tokenizers are published" if path.suffix == ".jit" else "Flax, as MaskGIT's is"
        raise CheckpointError(f"{path}: expected tensors by name, got {kind}; gr2 loads {LOADED}.")
    if not path.is_dir() or (path / "vqgan.safetensors").is_file():
        return path / "vqgan.safetensors" if path.is_dir() else path
    found = sorted(file for file in path.iterdir() if file.suffix in _PUBLISHED)
    return found[0] if len(found) == 1 else path / "vqgan.safetensors"


def _read_published(path: Path, config_file: Path | None) -> tuple[VQGANConfig, dict[str, Any]]:
    state = read_state_dict(path)
    tensors = network_tensors(state, path)
    if is_llamagen(state):
        return llamagen_config(state), tensors
    return read_taming_config(config_file or _yaml_beside(path)), tensors


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
    """Read the shape of a VQGAN from the yaml of taming, latent-diffusion or IBQ; its classes are names, never run.

    Raises:
        CheckpointError: if the file is missing or has no `model.params` of a VQGAN.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the yaml of a published VQGAN, got none; check the path.")
    try:
        model = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]
        params = model["params"] if "params" in model else model["init_args"]
        network, kind = params["ddconfig"], str(model.get("target", model.get("class_path", "")))
        refuse_other(path, {}, kind)
        if params.get("cosine_similarity") or params.get("l2_normalize"):
            raise ConfigError("cosine_similarity and l2_normalize are not supported")
        return VQGANConfig(
            quantizer="dot" if kind.endswith("ibqgan.IBQ") else "nearest",
            middle_attention=network.get("attn_type", "vanilla") != "none",
            resolution=network["resolution"],
            patch_size=1,
            channels=network["ch"],
            channel_mult=tuple(network["ch_mult"]),
            num_res_blocks=network["num_res_blocks"],
            attn_resolutions=tuple(network.get("attn_resolutions", ())),
            z_channels=network["z_channels"],
            embed_dim=params["embed_dim"],
            codebook_size=params["n_embed"],
        )
    except (yaml.YAMLError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: expected model.params with ddconfig, embed_dim and n_embed, got another layout "
            f"({error!r}); use the yaml that was published with the weights."
        ) from error
