"""Agreement of imagined and executed motion: distances, pixels, and how well it ranks successes above failures."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.benchmarks.imagine.agreement import Execution, measure_agreement, ranking
from gr2.benchmarks.imagine.imagination import ImaginedFutures
from gr2.benchmarks.imagine.run import imagine
from gr2.benchmarks.playtable.cameras import CameraConfig, static_pixels
from gr2.benchmarks.playtable.environment import PlayTable
from gr2.errors import DataError
from gr2.gr_model.model.generation import imagine_frames


def test_static_pixels_are_where_the_camera_draws() -> None:
    camera = CameraConfig(static_px=128, gripper_px=64)
    with contextlib.closing(PlayTable("D", camera=camera, render_mode=None)) as env:
        env.reset()
        image = env.draw("static").astype(int)
        position = env.world_state().blocks["red"][0]
        red = (image[..., 0] > 120) & (image[..., 1] < 60) & (image[..., 2] < 60)
        rows, columns = red.nonzero()
        assert len(rows) > 5
        center = np.array([columns.mean() + 0.5, rows.mean() + 0.5])
        assert np.linalg.norm(static_pixels(np.array(position), px=128) - center) < 2


def test_ranking_counts_pairs() -> None:
    scores, success = np.arange(10.0), np.array([False] * 4 + [True, False] + [True] * 4)
    assert ranking(scores, success)[0] == pytest.approx(24 / 25)  # of 25 pairs one is the wrong way round
    assert ranking(np.zeros(10), success)[0] == 0.5
    assert ranking(scores, scores > 5) is None  # four successes are too few
    assert ranking(np.arange(40.0), np.arange(40) > 19) == (1.0, 1.0, 1.0)


class _Dream:
    """Imagines the tool 1 cm beside where it is commanded to go, and black images."""

    def futures(self, first: Any, texts: list[str], num_frames: int, states: np.ndarray) -> ImaginedFutures:
        path = np.stack([states + np.array([0.05 * (i + 1), 0.01, *[0.0] * 14]) for i in range(num_frames)], axis=1)
        return ImaginedFutures(
            codes={}, images={"static": np.zeros((len(texts), num_frames, 8, 8, 3), np.uint8)}, states=path
        )


def test_the_path_is_compared_with_what_was_done_a_lag_later() -> None:
    moved = np.zeros((29, 16))
    moved[:, 0] = 0.01 * np.maximum(np.arange(29) - 3, 0)  # three control steps behind the command
    images = np.zeros((5, 8, 8, 3), np.uint8)
    images[1:, 2, 2] = 200
    views = {"static": images, "gripper": images}
    runs = [Execution(instruction="go", states=moved, images=views, stride=5, success=done) for done in (True, False)]
    found = measure_agreement(_Dream(), runs)  # type: ignore[arg-type]
    assert found["lag_s"] == pytest.approx(3 / 30)
    assert found["path_mm"] == pytest.approx((10, 10, 10)) and found["still_path_mm"] == pytest.approx((125, 125, 125))
    assert found["closer_mm"] == pytest.approx((115, 115, 115))
    assert 0 < found["path_px"][0] < found["still_path_px"][0]
    assert found["moving_psnr"][0] == found["moving_psnr_copy"][0]
    assert found["auc"] is None and found["episodes"] == 2 and found["success"] == 0.5
    short = [replace(one, images={name: frames[:1] for name, frames in views.items()}) for one in runs]
    with pytest.raises(DataError, match="two frames"):
        measure_agreement(_Dream(), short)  # type: ignore[arg-type]


def test_imagining_reports_the_states_it_leads_to() -> None:
    model = make_model(small_config())
    context = make_context(model, make_batch(model.config))
    path: list[torch.Tensor] = []
    imagine_frames(model, context, num_frames=3, frame_step=1, follow=path.append)
    assert len(path) == 3 and path[0].shape == (len(context.text), 1, context.states.shape[-1])
    imagine_frames(model, context, num_frames=2, frame_step=0, follow=path.append)
    assert len(path) == 3  # without a trajectory there are none


@pytest.mark.nightly
def test_the_command_writes_agreement(tmp_path: Path) -> None:
    imagine(out=tmp_path, episodes=1, metric_episodes=1, agreement_starts=1, decoding_steps=2)
    found = json.loads((tmp_path / "agreement.json").read_text())
    assert found["episodes"] == 17 and found["closer_mm"][0] > 0
