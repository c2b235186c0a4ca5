"""Put a released model and its frozen encoders together, as a policy too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...contracts import Array, Chunking, Observation
from ...data_pipeline.statistics.check import state_contradiction
from ...data_pipeline.video.frames import resize_frames, stated_fit
from ...embodiment import Embodiment
from ...errors import CheckpointError, ConfigError, ShapeError
from ...fingerprints import same_encoder
from ...tokenizers.text import TextEncoder
from ...tokenizers.text_weights import load_text_encoder
from ...tokenizers.vqgan import VQGAN
from ...tokenizers.weights import load_vqgan
from ..model.context import Context
from ..model.release import Release, load_release, release_folder
from .policy import EncodeImages, EncodeText, GR2Policy


@dataclass(frozen=True, kw_only=True)
class Assembled:
    """A model with the encoders it was trained with."""

    release: Release
    vqgan: VQGAN
    text: TextEncoder

    def resize(self, frames: Array) -> Array:
        """Make uint8 frames `[f h w 3]` the squares that the image tokenizer takes, as in training."""
        return resize_frames(frames, self.vqgan.config.resolution, stated_fit(self.release.provenance))

    def to(self, device: str) -> Assembled:
        """Move the model and its image tokenizer to a device; texts are encoded once, where they are."""
        self.release.model.to(device)
        self.vqgan.to(device)
        return self


def text_encoder_of(folder: Path, provenance: Mapping[str, Any], fingerprint: str) -> TextEncoder:
    """Load the text encoder of a release by what its record states."""
    return load_text_encoder(_place_of("text", folder, provenance), fingerprint=fingerprint)


def _place_of(kind: str, folder: Path, provenance: Mapping[str, Any]) -> str:
    """Return where an encoder lies: in the release, or where it came from."""
    name = str(provenance.get(f"{kind}_source", "small"))
    return str(folder / name) if name == kind else name


def assemble(source: str | Path) -> Assembled:
    """Load a release, its image tokenizer and its text encoder, and check that they belong together.

    Raises:
        CheckpointError: something is missing, damaged or does not belong.
    """
    folder = release_folder(source)
    release = load_release(folder)
    places = {kind: _place_of(kind, folder, release.provenance) for kind in ("tokenizer", "text")}
    vqgan, text = load_vqgan(places["tokenizer"]), text_encoder_of(folder, release.provenance, release.text)
    for kind, got, wanted in (
        ("tokenizer", vqgan.fingerprint(), release.tokenizer),
        ("text", text.fingerprint, release.text),
    ):
        if not same_encoder(got, wanted):
            raise CheckpointError(
                f"{folder}: expected the {kind} encoder {wanted[:12]}, found {got[:12]} at {places[kind]}; "
                "put back the one that the model was trained with."
            )
    return Assembled(release=release, vqgan=vqgan, text=text)


def load_world_model(source: str | Path) -> Assembled:
    """Load a released model with its frozen encoders: `release.model`, `vqgan`, `text`.

    Args:
        source: "pretrained", a folder that `gr2 pretrain` or `gr2 finetune` wrote, or `user/name` on the Hugging Face
            Hub, with `@revision` for a branch, tag or commit.
    """
    return assemble(source)


def load_policy(
    source: str | Path,
    *,
    executed_steps: int = 5,
    chunking: Chunking = "independent",
    latency: float | None = 0.0,
    embodiment: str | Embodiment | None = None,
) -> GR2Policy:
    """Load a released model as a policy.

    Args:
        source: "pretrained", a folder that `gr2 finetune` wrote, or `user/name` on the Hugging Face Hub, with
            `@revision` for a branch, tag or commit.
        executed_steps: control steps of each chunk carried out before the next call.
        chunking: how a chunk relates to the running one.
        latency: how long after its observation a chunk becomes available [s]; of a model at two speeds, a thought, and
            None thinks in a thread.
        embodiment: the robot to act for, where the model serves several: its name, or one that it must fit.

    Raises:
        ConfigError: the model does not know the robot, or knows several and none is named.
    """
    parts = assemble(source)
    return policy_of(parts, executed_steps=executed_steps, chunking=chunking, latency=latency, embodiment=embodiment)


class ReleasedPolicy(GR2Policy):
    """A policy that refuses states unlike all that its model was trained on: in [mm], degrees, of another gripper.

    image_size: side [px] that images of any size are resized to, None where the encoder does not resize.
    """

    image_size: int | None = None

    def __init__(
        self,
        release: Release,
        *,
        encode_images: EncodeImages,
        encode_text: EncodeText,
        executed_steps: int = 5,
        chunking: Chunking = "independent",
        latency: float | None = 0.0,
        embodiment: str | Embodiment | None = None,
    ) -> None:
        if not release.model.acts:
            raise ConfigError(
                "policy: expected a finetuned model, got one that was pretrained on frames alone and never saw an "
                "action; finetune it (`gr2 finetune --init FOLDER`), or `gr2 imagine` with it."
            )
        super().__init__(
            release.model,
            encode_images=encode_images,
            encode_text=encode_text,
            control_hz=release.clocks_of(release.model.config.place_of(embodiment))[1],
            executed_steps=executed_steps,
            chunking=chunking,
            latency=latency,
            embodiment=embodiment,
            frame_step=release.clocks_of(release.model.config.place_of(embodiment))[0],
        )
        self.datasets = release.datasets

    def remember(self, observation: Observation, codes: dict[str, Array]) -> Context:
        """Append a frame to the history and return what the model sees.

        Raises:
            ShapeError: the state contradicts the statistics that the release keeps of its data.
        """
        state = observation.state_vector()
        reason = state_contradiction(self.datasets, state, self.coding.read_columns)
        if reason:
            raise ShapeError(
                f"observation: expected a state like those the policy was trained on, got {reason}; give [m], [rad] "
                "and openings from 0 to 1 in the robot base frame, or finetune on episodes of this robot."
            )
        return super().remember(observation, codes)


def policy_of(
    parts: Assembled,
    *,
    executed_steps: int,
    chunking: Chunking = "independent",
    latency: float | None = 0.0,
    embodiment: str | Embodiment | None = None,
) -> GR2Policy:
    """Make a policy with a history of its own over a loaded model; images of any size are resized as in training."""

    def encode_images(frames: Array) -> Array:
        return parts.vqgan.encode_frames(parts.resize(frames))

    policy = ReleasedPolicy(
        parts.release,
        encode_images=encode_images,
        encode_text=parts.text.encode,
        executed_steps=executed_steps,
        chunking=chunking,
        latency=latency,
        embodiment=embodiment,
    )
    policy.image_size = parts.vqgan.config.resolution
    return policy
