"""Releases of gr2 as LeRobot checkpoints, and back: `python -m lerobot_policy_gr2.convert SOURCE OUT`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from gr2.data_pipeline.video.frames import stated_fit
from gr2.errors import ConfigError, DataError, Gr2Error
from gr2.gr_model.act.loading import assemble
from gr2.gr_model.model.release import save_release
from gr2.tokenizers.text import TextConfig
from gr2.tokenizers.weight_files import save_weights

from .configuration_gr2 import GR2Config
from .modeling_gr2 import GR2Policy
from .networks import described
from .processor_gr2 import make_gr2_pre_post_processors


def checkpoint_of_release(source: str, out: Path, *, device: str = "cpu") -> None:
    """Write a finetuned release as a LeRobot checkpoint, which lerobot-eval reads as `--policy.path`.

    Args:
        source: "pretrained", the folder of a release, or `user/name` on the Hugging Face Hub.
        out: folder of the checkpoint; missing or empty.

    Raises:
        ConfigError: a release that never acted, or that acts for several robots.
    """
    _expect_empty(out)
    parts = assemble(source)
    model, robots = parts.release.model, parts.release.model.config.embodiments
    if not model.acts or len(robots) > 1:
        got = f"one of {len(robots)} robots" if len(robots) > 1 else "one that was pretrained on video alone"
        raise ConfigError(f"{source}: expected a model finetuned for one robot, got {got}; finetune it first.")
    robot, side = robots[0], parts.vqgan.config.resolution
    cameras = [camera.name for camera in model.config.cameras]
    config = GR2Config(
        release=source,
        device=device,
        push_to_hub=False,
        cameras={f"{OBS_IMAGES}.{name}": name for name in cameras},
        image_fit=stated_fit(parts.release.provenance),
        text=str(parts.release.provenance.get("text_source", "small")),
        input_features={
            OBS_STATE: PolicyFeature(type=FeatureType.STATE, shape=(robot.state_dim,)),
            **{f"{OBS_IMAGES}.{n}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, side, side)) for n in cameras},
        },
        output_features={ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(robot.action_dim,))},
    )
    policy = GR2Policy(config, networks=described(config, model, parts.vqgan, parts.text))
    policy.save_pretrained(out)
    for pipeline in make_gr2_pre_post_processors(config):
        pipeline.save_pretrained(out)


def release_of_checkpoint(source: Path, out: Path) -> None:
    """Write a LeRobot checkpoint as a release of gr2, with its encoders, for `gr2 rollout`, `serve` and others.

    Args:
        source: the folder `pretrained_model` of a checkpoint.
        out: folder of the release; missing or empty.
    """
    _expect_empty(out)
    policy = GR2Policy.from_pretrained(source)
    config, vqgan, text = policy.config, policy.image_tokenizer, policy.text_encoder
    provenance = {"steps": int(policy.steps), "image_fit": config.image_fit, "tokenizer_source": "tokenizer"}
    save_weights(
        out / "tokenizer" / "vqgan.safetensors", vqgan.state_dict(), {"kind": "vqgan", "config": asdict(vqgan.config)}
    )
    if text.vocabulary is None:
        provenance["text_source"] = config.text_encoder["source"]
    else:
        provenance["text_source"] = "text"
        shape = {name: value for name, value in config.text_encoder.items() if name != "rows"}
        tensors = {**text.tower.state_dict(), "token_ids": policy.token_ids}
        save_weights(
            out / "text" / "text.safetensors", tensors, {"kind": "text", "config": asdict(TextConfig(**shape))}
        )
    assert config.frame_step is not None
    save_release(
        out,
        policy.model,
        tokenizer=config.tokenizer_fingerprint,
        text=config.text_fingerprint,
        frame_step=config.frame_step,
        control_hz=policy.model.config.embodiments[0].control_hz,
        provenance=provenance | {"command": f"lerobot-train --policy.type=gr2 ({source})"},
    )


def _expect_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: expected a folder that is empty or does not exist, got another; choose another.")


def main() -> None:
    """Convert in the direction that the source asks for."""
    parser = argparse.ArgumentParser(prog="lerobot_policy_gr2.convert", description=__doc__)
    parser.add_argument("source", help="a gr2 release, or the folder pretrained_model of a LeRobot checkpoint")
    parser.add_argument("out", type=Path, help="folder to write; missing or empty")
    given = parser.parse_args()
    try:
        if (Path(given.source) / "policy_preprocessor.json").is_file():
            release_of_checkpoint(Path(given.source), given.out)
        else:
            checkpoint_of_release(given.source, given.out)
    except Gr2Error as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
