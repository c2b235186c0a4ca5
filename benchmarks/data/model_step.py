"""One training step of a size on the device at hand: how many clips a second the model takes from a loader."""

from __future__ import annotations

import time

import numpy as np
import torch

from ...gr_model.model.presets import Size, of_size
from ...layers import fast_bfloat16
from ..speed.measure import Setting
from ..speed.training import world_model_step

_COUNTED = 4


def model_rate(size: Size, batch_size: int) -> tuple[float, str]:
    """Time pretraining steps on random codes: clips a second (median of four), and the device."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    setting = Setting(device=device, bfloat16=fast_bfloat16(), rounds=_COUNTED)
    step = world_model_step(of_size(size), setting, batch_size)
    seconds = []
    for number in range(_COUNTED + 1):
        begin = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            seconds.append(time.perf_counter() - begin)
    return batch_size / float(np.median(seconds)), device.type
