"""One training step of a size on the device at hand: how many clips a second the model takes from a loader."""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch

from ...gr_model import presets
from ...gr_model.layers import fast_bfloat16
from ...gr_model.objectives import training_losses
from ...gr_model.world_model import WorldModel

Size = Literal["tiny", "S", "B", "L", "XL"]

_COUNTED = 4


def model_rate(size: Size, batch_size: int) -> tuple[float, str]:
    """Time pretraining steps on random codes: clips a second (median of four), and the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    makers = {"S": presets.size_s, "B": presets.size_b, "L": presets.size_l, "XL": presets.size_xl}
    config = presets.tiny() if size == "tiny" else makers[size]()
    torch.manual_seed(0)
    model = WorldModel(config).to(device).train()
    model.set_texts(
        torch.randn(4, config.text_length, config.text_dim, device=device),
        torch.ones(4, config.text_length, dtype=torch.bool, device=device),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    frames = config.max_context + config.num_targets
    batch = {
        "codes": {
            camera.name: torch.randint(config.codebook_size, (batch_size, frames, camera.grid[0] * camera.grid[1])).to(
                device
            )
            for camera in config.cameras
        },
        "camera_mask": {
            camera.name: torch.ones(batch_size, dtype=torch.bool, device=device) for camera in config.cameras
        },
        "frame_mask": torch.ones(batch_size, frames, dtype=torch.bool, device=device),
        "text_id": torch.zeros(batch_size, dtype=torch.int64, device=device),
    }
    seconds = []
    for number in range(_COUNTED + 1):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_bfloat16()):
            loss = training_losses(model, batch, with_actions=False, with_frames=True)["frame_loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - begin)
    return batch_size / float(np.median(seconds)), device.type
