"""Small models and random batches shared by the tests of the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from gr2.cvae_head import kinds
from gr2.gr_model.model.config import CameraSpec, Decoding, ModelConfig
from gr2.gr_model.model.context import Context
from gr2.gr_model.model.objectives import read_context, training_losses
from gr2.gr_model.model.texts import TextTable
from gr2.gr_model.model.world_model import WorldModel

CAMERAS = ("static", "gripper")


def small_config(decoding: Decoding = "masked", **changes: Any) -> ModelConfig:
    """Two layers of 32, two cameras of different grids, packing 2."""
    config = ModelConfig(
        width=32,
        depth=2,
        heads=2,
        cameras=(CameraSpec(name="static", grid=(4, 6)), CameraSpec(name="gripper", grid=(4, 4))),
        codebook_size=20,
        codebook_dim=8,
        token_packing=2,
        head_dim=16,
        text_dim=12,
        text_length=6,
        max_context=2,
        chunk_length=5,
        token_dropout=0.0,
        decoding=decoding,
        head=kinds.small(),
    )
    return replace(config, **changes)


def make_model(config: ModelConfig, seed: int = 0) -> WorldModel:
    """A model in evaluation mode with large attention weights, so that leaks would show."""
    torch.manual_seed(seed)
    model = WorldModel(config, codebook=torch.randn(config.codebook_size, config.codebook_dim))
    for block in model.gpt.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.3)  # type: ignore[union-attr,arg-type]
    model.set_texts(TextTable(*make_texts(config)))
    return model.eval()


def make_texts(config: ModelConfig, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of texts of different lengths."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(count, config.text_length, config.text_dim, generator=generator)
    lengths = torch.arange(count) % (config.text_length - 2) + 2
    return features, torch.arange(config.text_length) < lengths[:, None]


def make_batch(config: ModelConfig, size: int = 3, seed: int = 0, targets: int | None = None) -> dict[str, Any]:
    """A loader batch of random content with everything present."""
    g = torch.Generator().manual_seed(seed)
    frames = config.max_context + (config.num_targets if targets is None else targets)
    k = config.chunk_length

    def poses(*shape: int) -> torch.Tensor:
        values = torch.randn(*shape, generator=g)
        values[..., 3:7] = torch.nn.functional.normalize(values[..., 3:7], dim=-1)
        return values

    actions = poses(size, k, 8)
    actions[..., 7] = (actions[..., 7] > 0).float()
    return {
        "codes": {
            camera.name: torch.randint(
                config.codebook_size, (size, frames, camera.grid[0] * camera.grid[1]), generator=g
            )
            for camera in config.cameras
        },
        "camera_mask": {camera.name: torch.ones(size, dtype=torch.bool) for camera in config.cameras},
        "frame_mask": torch.ones(size, frames, dtype=torch.bool),
        "states": poses(size, frames, 16),
        "state_mask": torch.ones(size, frames, dtype=torch.bool),
        "actions": actions,
        "action_mask": torch.ones(size, k, dtype=torch.bool),
        "text_id": torch.arange(size) % 4,
    }


def fit(model: WorldModel, batch: dict[str, Any], steps: int) -> WorldModel:
    """Train a model, its attention drawn small again, to predict the frames of one batch."""
    for block in model.gpt.blocks:
        torch.nn.init.normal_(block.attention.qkv.weight, std=0.02)  # type: ignore[union-attr,arg-type]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        training_losses(model, batch, with_actions=False, with_frames=True)["frame_loss"].backward()
        optimizer.step()
    return model.eval()


def make_context(model: WorldModel, batch: dict[str, Any]) -> Context:
    """The context of a batch."""
    return read_context(model, batch)[0]


class RandomLoader:
    """Endless random batches, resumable."""

    def __init__(self, config: ModelConfig, size: int = 4) -> None:
        self.config, self.size, self.position = config, size, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self.position += 1
            yield make_batch(self.config, self.size, seed=self.position)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
