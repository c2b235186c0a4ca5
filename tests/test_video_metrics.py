"""Laws of the video metrics, and SSIM against its definition written out window by window."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from gr2.benchmarks.video_metrics import (
    PSNR_CEILING_DB,
    compare_futures,
    gather_steps,
    masked_psnr,
    moving_mask,
    psnr,
    ssim,
    token_accuracy,
)
from gr2.gr_model.errors import ShapeError


def random_frames(count: int, *, height: int = 24, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def moving_square() -> tuple[np.ndarray, np.ndarray]:
    """Return a current frame `[h w 3]` and three future frames in which a square moves on."""
    frames = np.full((4, 32, 32, 3), 90, dtype=np.uint8)
    for index in range(4):
        frames[index, 8:16, 4 * index : 4 * index + 8] = 220
    return frames[0], frames[1:]


@pytest.mark.parametrize("offset", [1, 7, 100])
def test_psnr_of_a_constant_offset_is_known(offset: int) -> None:
    first = np.full((2, 16, 16, 3), 50, dtype=np.uint8)
    assert psnr(first, first + np.uint8(offset)) == pytest.approx([20 * math.log10(255 / offset)] * 2)


def test_psnr_is_symmetric_falls_with_noise_and_has_a_ceiling() -> None:
    clean = random_frames(1, seed=1) // 2 + 60
    noisy = [clean + random_frames(1, seed=2) // divisor for divisor in (32, 8, 4)]
    values = [psnr(clean, one)[0] for one in noisy]
    assert values == sorted(values, reverse=True)
    assert psnr(clean, noisy[0]) == pytest.approx(psnr(noisy[0], clean))
    assert psnr(clean, clean)[0] == PSNR_CEILING_DB
    assert psnr(np.zeros_like(clean), np.full_like(clean, 255))[0] == pytest.approx(0.0)


def test_ssim_equals_its_definition_window_by_window() -> None:
    first, second = random_frames(1, height=14, width=13), random_frames(1, height=14, width=13, seed=5)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(4):
        for column in range(3):
            for channel in range(3):
                x = first[0, row : row + 11, column : column + 11, channel].astype(float)
                y = second[0, row : row + 11, column : column + 11, channel].astype(float)
                mx, my = (window * x).sum(), (window * y).sum()
                vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
                cov = (window * (x - mx) * (y - my)).sum()
                luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
                values.append(luminance * (2 * cov + c2) / (vx + vy + c2))
    assert ssim(first, second)[0] == pytest.approx(np.mean(values), abs=1e-9)


def test_ssim_is_one_only_for_equal_frames_and_symmetric() -> None:
    first, second = random_frames(2), random_frames(2, seed=9)
    assert ssim(first, first) == pytest.approx([1.0, 1.0])
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert np.all(ssim(first, second) < 0.2)


def test_moving_pixels_are_those_that_the_future_changes() -> None:
    current, future = moving_square()
    mask = moving_mask(current, future)
    assert mask.sum(axis=(1, 2)).tolist() == [2 * 4 * 8, 2 * 8 * 8, 2 * 8 * 8]
    assert not moving_mask(current, np.repeat(current[None], 2, axis=0)).any()
    assert not moving_mask(current, future, threshold=130).any()


def test_moving_psnr_ignores_errors_elsewhere() -> None:
    current, future = moving_square()
    mask = moving_mask(current, future)
    damaged = np.where(mask[..., None], future, 0).astype(np.uint8)
    assert masked_psnr(damaged, future, mask) == pytest.approx([PSNR_CEILING_DB] * 3)
    assert masked_psnr(damaged, future, ~mask).max() < 15
    everywhere = np.ones_like(mask)
    assert masked_psnr(damaged, future, everywhere) == pytest.approx(psnr(damaged, future))
    assert np.isnan(masked_psnr(future, future, np.zeros_like(mask))).all()


def test_a_perfect_prediction_beats_copying_and_a_copy_equals_it() -> None:
    current, future = moving_square()
    codes = np.arange(12).reshape(3, 4)
    perfect = compare_futures(
        predicted=future,
        real=future,
        current=current,
        predicted_codes=codes,
        real_codes=codes,
        current_codes=codes[0],
    )
    assert [step.horizon for step in perfect] == [1, 2, 3]
    assert all(s.psnr > s.psnr_copy and s.ssim > s.ssim_copy for s in perfect)
    assert all(s.psnr_moving == PSNR_CEILING_DB and s.psnr_moving_copy < 10 for s in perfect)
    assert [(s.token_accuracy, s.token_accuracy_copy) for s in perfect] == [(1, 1), (1, 0), (1, 0)]
    for step in compare_futures(predicted=np.repeat(current[None], 3, axis=0), real=future, current=current):
        assert (step.psnr, step.psnr_moving, step.ssim) == (
            step.psnr_copy,
            step.psnr_moving_copy,
            step.ssim_copy,
        )
        assert math.isnan(step.token_accuracy)


def test_gathered_steps_are_valid_json_with_a_value_per_episode() -> None:
    current, future = moving_square()
    still = np.repeat(current[None], 3, axis=0)
    episodes = [compare_futures(predicted=future, real=real, current=current) for real in (future, still)]
    gathered = json.loads(json.dumps(gather_steps(episodes), allow_nan=False))
    assert gathered["episodes"] == 2 and [row["horizon"] for row in gathered["per_step"]] == [1, 2, 3]
    first = gathered["per_step"][0]
    assert first["psnr"] == [episodes[0][0].psnr, episodes[1][0].psnr]
    assert first["psnr_moving"] == [PSNR_CEILING_DB, None] and first["token_accuracy"] == [None, None]


def test_frames_and_codes_that_do_not_fit_are_refused() -> None:
    frames = random_frames(2)
    with pytest.raises(ShapeError, match="one shape"):
        psnr(frames, frames[:1])
    with pytest.raises(ShapeError, match="uint8"):
        psnr(frames.astype(np.float32), frames.astype(np.float32))
    with pytest.raises(ShapeError, match="11 x 11"):
        ssim(frames[:, :10], frames[:, :10])
    with pytest.raises(ShapeError, match="one mask per frame"):
        masked_psnr(frames, frames, np.ones((2, 3, 3), dtype=bool))
    with pytest.raises(ShapeError, match="code arrays"):
        token_accuracy(np.zeros((2, 3), int), np.zeros((2, 4), int))
    with pytest.raises(ShapeError, match="all or none"):
        compare_futures(predicted=frames, real=frames, current=frames[0], real_codes=np.zeros((2, 3), int))
