"""Loading image tokenizers: our own files, published ones, and hostile ones."""

from __future__ import annotations

import json
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from gr2.errors import CheckpointError
from gr2.tokenizers.vqgan import VQGAN, VQGANConfig
from gr2.tokenizers.weight_files import read_state_dict, save_weights, write_atomically
from gr2.tokenizers.weights import convert_vqgan, load_vqgan, read_taming_config

torch.set_num_threads(1)

PUBLISHED = VQGANConfig(
    resolution=32,
    patch_size=1,
    channels=32,
    channel_mult=(1, 2),
    attn_resolutions=(16,),
    z_channels=24,
    embed_dim=24,
    codebook_size=40,
)


def write_yaml(path: Path) -> None:
    """Write a configuration as taming publishes them."""
    network = {
        "double_z": False, "z_channels": 24, "resolution": 32, "in_channels": 3, "out_ch": 3,
        "ch": 32,        "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
    }  # fmt: skip
    params = {"embed_dim": 24, "n_embed": 40, "ddconfig": network, "lossconfig": {"target": "os.system"}}
    model = {"base_learning_rate": 4.5e-6, "target": "taming.models.vqgan.VQModel", "params": params}
    path.write_text(yaml.safe_dump({"model": model}))


@pytest.fixture
def reference() -> VQGAN:
    torch.manual_seed(0)
    return VQGAN(PUBLISHED).eval()


def lightning_2020(model: VQGAN, payload: object) -> dict[str, object]:
    """Return a checkpoint laid out as PyTorch Lightning 1.0 did, with `payload` among the callbacks."""
    state = OrderedDict(model.state_dict())
    state["loss.discriminator.main.0.weight"] = torch.randn(4, 3, 4, 4)
    return {
        "epoch": 3,
        "global_step": np.int64(12),
        "state_dict": state,
        "callbacks": {"ModelCheckpoint": payload},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": np.float64(1e-4)}]}],
    }


def assert_same_codes(loaded: VQGAN, reference: VQGAN) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert np.array_equal(loaded.encode_frames(frames), reference.encode_frames(frames))
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_published_checkpoint_with_foreign_classes(tmp_path: Path, reference: VQGAN) -> None:
    module = types.ModuleType("pytorch_lightning_of_2020")
    foreign = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = foreign  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        state = foreign()
        state.best = torch.zeros(2)
        torch.save(lightning_2020(reference, state), tmp_path / "last.ckpt")
    finally:
        del sys.modules[module.__name__]
    write_yaml(tmp_path / "model.yaml")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert_same_codes(load_vqgan(tmp_path / "last.ckpt"), reference)


class Hostile:
    """Runs a command when a careless reader unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_hostile_checkpoint_runs_nothing(tmp_path: Path, reference: VQGAN) -> None:
    trace = tmp_path / "executed"
    torch.save(lightning_2020(reference, Hostile(f"touch {trace}")), tmp_path / "last.ckpt")
    write_yaml(tmp_path / "model.yaml")
    assert_same_codes(load_vqgan(tmp_path / "last.ckpt"), reference)
    assert not trace.exists()
    torch.load(tmp_path / "last.ckpt", weights_only=False)  # the trap is real
    assert trace.exists()


def test_hostile_zip_and_legacy_files_are_refused_or_inert(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / "old.pt"
    torch.save({"w": torch.ones(2), "x": Hostile(f"touch {trace}")}, path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(read_state_dict(path), {"w": torch.ones(2)})
    path.write_bytes(pickle.dumps(Hostile(f"touch {trace}")))
    with pytest.raises(CheckpointError):
        read_state_dict(path)
    assert not trace.exists()


def test_convert_then_load(tmp_path: Path, reference: VQGAN) -> None:
    torch.save(lightning_2020(reference, None), tmp_path / "last.ckpt")
    write_yaml(tmp_path / "published.yaml")
    convert_vqgan(source=tmp_path / "last.ckpt", out=tmp_path / "ours")
    assert_same_codes(load_vqgan(tmp_path / "ours"), reference)
    assert_same_codes(load_vqgan(tmp_path / "ours" / "vqgan.safetensors"), reference)
    assert load_vqgan(tmp_path / "ours", resolution=64).grid == (32, 32)


def test_taming_yaml_is_read_and_its_classes_ignored(tmp_path: Path) -> None:
    write_yaml(tmp_path / "model.yaml")
    assert read_taming_config(tmp_path / "model.yaml") == PUBLISHED
    (tmp_path / "model.yaml").write_text("model: !!python/object/apply:os.system ['true']")
    with pytest.raises(CheckpointError, match="another layout"):
        read_taming_config(tmp_path / "model.yaml")


def test_errors_say_which_file_and_why(tmp_path: Path, reference: VQGAN) -> None:
    with pytest.raises(CheckpointError, match="got none"):
        load_vqgan(tmp_path)
    save_file({"quantize.embed.weight": torch.ones(2, 2)}, tmp_path / "gumbel.safetensors")
    torch.save({"state_dict": {"quantize.embed.weight": torch.ones(2, 2)}}, tmp_path / "gumbel.ckpt")
    with pytest.raises(CheckpointError, match="Gumbel"):
        load_vqgan(tmp_path / "gumbel.ckpt")
    torch.save(lightning_2020(reference, None), tmp_path / "last.ckpt")
    with pytest.raises(CheckpointError, match="0 yaml files"):
        load_vqgan(tmp_path / "last.ckpt")
    (tmp_path / "torn.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_vqgan(tmp_path / "torn.ckpt")


def test_changed_or_foreign_files_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "vqgan.safetensors", {"a": torch.ones(1)}, {"kind": "text"})
    with pytest.raises(CheckpointError, match="expected weights of a vqgan"):
        load_vqgan(tmp_path)
    save_weights(tmp_path / "vqgan.safetensors", {"a": torch.ones(1)}, {"kind": "vqgan"})
    save_file({"a": torch.zeros(1)}, tmp_path / "vqgan.safetensors")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_vqgan(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "vqgan.safetensors"
    save_weights(path, {"a": torch.ones(1)}, {"kind": "vqgan"})
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_weights(path, {"a": "no tensor"}, {"kind": "vqgan"})  # type: ignore[dict-item]
    with pytest.raises(OSError, match="disk"):
        write_atomically(path, _fill_disk)
    assert path.read_bytes() == before
    assert json.loads(path.with_suffix(".json").read_text())["kind"] == "vqgan"
    assert not list(tmp_path.glob(".*"))


def _fill_disk(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError("disk is full")


def test_files_are_readable_by_whom_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {"kind": "made"})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}
