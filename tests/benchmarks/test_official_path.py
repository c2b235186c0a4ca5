"""The official path: its plan, and the very commands of the plan on a few frames of CALVIN's data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from safetensors.torch import save_file

from gr2.benchmarks.doctor import doctor
from gr2.benchmarks.plan import PlanScale, describe_plan, official_plan
from gr2.errors import ConfigError
from gr2.tokenizers.vqgan import VQGAN, f16_16384

CALVIN = Path(__file__).resolve().parents[3] / "shared" / "calvin"


def test_the_plan_states_what_each_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(plan=True, gpu="H100") == 0
    text = capsys.readouterr().out
    assert "656 GB" in text and "--head.kind flow --size B" in text and "h on one H100" in text
    slow, fast = (official_plan(gpu=name) for name in ("A100", "H100"))
    assert sum(step.gpu_hours for step in slow) > 3 * sum(step.gpu_hours for step in fast)
    assert [step.disk for step in slow] == [step.disk for step in fast] and slow[4].memory > 10
    assert describe_plan(slow, "A100").count("gr2 ") == 5
    with pytest.raises(ConfigError, match="A100 or H100"):
        official_plan(gpu="abacus")


def write_published_vqgan(folder: Path) -> Path:
    """Write random weights of the published f16 VQGAN as taming publishes them."""
    folder.mkdir()
    config = f16_16384()
    network = {
        "double_z": False, "z_channels": config.z_channels, "resolution": config.resolution, "in_channels": 3,
        "out_ch": 3, "ch": config.channels, "ch_mult": list(config.channel_mult),
        "num_res_blocks": config.num_res_blocks, "attn_resolutions": list(config.attn_resolutions), "dropout": 0.0,
    }  # fmt: skip
    params = {"embed_dim": config.embed_dim, "n_embed": config.codebook_size, "ddconfig": network}
    model = {"target": "taming.models.vqgan.VQModel", "params": params}
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model}))
    torch.save({"state_dict": VQGAN(config).state_dict()}, folder / "last.ckpt")
    return folder / "last.ckpt"


def write_published_clip(folder: Path) -> Path:
    """Write random weights of CLIP ViT-B/32 as open_clip publishes them."""
    folder.mkdir()
    settings = open_clip.get_model_config("ViT-B-32")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    weights = open_clip.create_model("ViT-B-32").state_dict()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.nightly
@pytest.mark.skipif(not CALVIN.is_dir(), reason="needs a clone of CALVIN with a few frames of its data")
def test_every_command_of_the_plan_runs(tmp_path: Path) -> None:
    clone = tmp_path / "calvin"
    (clone / "dataset").mkdir(parents=True)
    for name in ("calvin_env", "calvin_models"):
        (clone / name).symlink_to(CALVIN / name)
    (clone / "dataset" / "task_ABCD_D").symlink_to(CALVIN / "mini_dataset")
    torch.manual_seed(0)
    scale = PlanScale(
        pretrain_steps=1, finetune_steps=1, batch_size=2, sequences=1, num_workers=2, device="cpu", target_fps=1
    )
    steps = official_plan(
        calvin=str(clone), out=str(tmp_path / "out"), tokenizer=str(write_published_vqgan(tmp_path / "vqgan")),
        text=str(write_published_clip(tmp_path / "clip")), scale=scale,
    )  # fmt: skip
    commands = [step.command for step in steps if step.command[0] == "gr2"]
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run([sys.executable, "-m", "gr2", *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
    results = json.loads((tmp_path / "out/calvin/results.json").read_text())
    assert results["assets"] == "CALVIN's" and results["controls"].keys() == {"wbc", "calvin"}
    assert all(control["scores"]["sequences"]["number"] == 1 for control in results["controls"].values())
