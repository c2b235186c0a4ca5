"""Laws of the video metrics, each against its definition written out slowly: SSIM, Frechet, LPIPS, I3D's padding."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from gr2.benchmarks.metrics.frames import (
    PSNR_CEILING_DB,
    compare_futures,
    gather_steps,
    masked_psnr,
    moving_mask,
    psnr,
    ssim,
    token_accuracy,
)
from gr2.benchmarks.metrics.statistics import bootstrap_mean, paired_difference
from gr2.benchmarks.video.frechet import estimate_frechet, frechet_distance, half_distance
from gr2.benchmarks.video.i3d import I3D, LEAST_FRAMES, Unit, load_i3d, video_features
from gr2.benchmarks.video.perceptual import FrameDistance
from gr2.benchmarks.video.scores import ClipScores, chosen_samples, context_scores, frame_scores, summarize
from gr2.errors import CheckpointError, ConfigError, ShapeError
from gr2.tokenizers.losses import _vgg16_features


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


def test_psnr_equals_its_definition_pixel_by_pixel() -> None:
    first, second = random_frames(2, height=5, width=4), random_frames(2, height=5, width=4, seed=3)
    mask = np.random.default_rng(0).random((2, 5, 4)) < 0.5
    for frame in range(2):
        every, masked = [], []
        for row in range(5):
            for column in range(4):
                for channel in range(3):
                    error = (
                        float(first[frame, row, column, channel]) - float(second[frame, row, column, channel])
                    ) ** 2
                    every.append(error)
                    if mask[frame, row, column]:
                        masked.append(error)
        assert psnr(first, second)[frame] == pytest.approx(-10 * math.log10(np.mean(every) / 255**2))
        assert masked_psnr(first, second, mask)[frame] == pytest.approx(-10 * math.log10(np.mean(masked) / 255**2))


def test_errors_of_moving_and_still_pixels_add_up_to_all() -> None:
    current, future = moving_square()
    guess = random_frames(3, height=32, width=32, seed=4)
    scores = frame_scores(guess, future, current)
    share = moving_mask(current, future).mean(axis=(1, 2))
    error = {name: 10 ** (-scores[name] / 10) for name in ("psnr", "psnr_moving", "psnr_still")}
    np.testing.assert_allclose(error["psnr"], share * error["psnr_moving"] + (1 - share) * error["psnr_still"])


def test_identical_and_constant_frames_have_known_scores() -> None:
    current, future = moving_square()
    assert frame_scores(future, future, current)["psnr"].tolist() == [PSNR_CEILING_DB] * 3
    assert context_scores(future, future)["ssim"] == pytest.approx([1.0] * 3)
    dark, light = np.full((1, 16, 16, 3), 40, np.uint8), np.full((1, 16, 16, 3), 90, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(dark, light)[0] == pytest.approx((2 * 40 * 90 + c1) / (40**2 + 90**2 + c1))
    still = frame_scores(light, dark, dark[0])
    assert math.isnan(still["psnr_moving"][0]) and still["psnr_still"][0] == pytest.approx(20 * math.log10(255 / 50))


def scipy_frechet(first: np.ndarray, second: np.ndarray) -> float:
    c1, c2 = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    return float(np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real))


@pytest.mark.parametrize(("first", "second"), [(40, 60), (200, 12), (9, 8)])
def test_frechet_distance_equals_the_formula_with_a_matrix_root(first: int, second: int) -> None:
    rng = np.random.default_rng(first)
    mixing = rng.normal(size=(6, 6))
    a, b = rng.normal(size=(first, 6)) @ mixing, 0.3 + 2 * rng.normal(size=(second, 6))
    assert frechet_distance(a, b) == pytest.approx(scipy_frechet(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))
    assert frechet_distance(a[rng.permutation(first)], b) == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_of_one_number_has_a_closed_form() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(2, 3, (50, 1)), rng.normal(-1, 0.5, (30, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_equal_shifted_constant_and_few_samples() -> None:
    a = np.random.default_rng(2).normal(size=(20, 5))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 2) == pytest.approx(5 * 4)
    assert frechet_distance(a, np.ones_like(a)) == pytest.approx(
        np.sum((a.mean(0) - 1) ** 2) + np.trace(np.cov(a, rowvar=False))
    )
    few = np.random.default_rng(3).normal(size=(3, 50))  # covariances of rank two
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(few, -few) > 0
    for bad in (a[:1], a[:, :4], np.where(a > 1, np.nan, a)):
        with pytest.raises(ShapeError, match="Frechet"):
            frechet_distance(a, bad)


def test_frechet_estimates_hold_clips_together_and_subtract_on_equal_draws() -> None:
    real = np.random.default_rng(4).normal(size=(24, 4, 3))
    same, far = estimate_frechet(real, real), estimate_frechet(real, real + 1)
    assert same.interval().low == 0 and same.value == pytest.approx(0, abs=1e-9)
    assert far.interval().low > 1 and far.value == pytest.approx(3) and far.interval().count == 24
    gap = far.minus(same)
    assert gap.excludes_zero() and gap.value == pytest.approx(far.value - same.value)
    assert far.minus(far).low == far.minus(far).high == 0
    assert np.array_equal(estimate_frechet(real, real + 1).draws, far.draws)
    assert 0 < half_distance(real) < 1 and math.isnan(half_distance(real[:3]))
    with pytest.raises(ShapeError, match="same clips"):
        estimate_frechet(real, real[1:])


def test_best_of_n_chooses_for_each_metric_and_one_sample_takes_the_first() -> None:
    rng = np.random.default_rng(5)
    scores = ClipScores(future=rng.normal(size=(10, 7, 3)))
    means = scores.future.mean(axis=2)
    assert chosen_samples(scores, "psnr", "single").tolist() == [0] * 10
    assert chosen_samples(scores, "psnr", "best_of_n").tolist() == [int(np.argmax(row)) for row in means]
    assert chosen_samples(scores, "lpips", "best_of_n").tolist() == [int(np.argmin(row)) for row in means]
    gaps = ClipScores(future=np.where(rng.random((10, 7, 3)) < 0.3, np.nan, scores.future))
    best = chosen_samples(gaps, "psnr", "best_of_n")
    assert np.all(gaps.by_clip()[np.arange(10), best] == np.nanmax(gaps.by_clip(), axis=1))


def test_context_frames_enter_the_mean_over_a_clip_as_they_do_in_ivideogpt() -> None:
    scores = ClipScores(future=np.array([[[1.0, 2.0], [5.0, 6.0]]]), context=np.array([[9.0, 12.0]]))
    assert scores.by_clip().tolist() == [[(9 + 12 + 1 + 2) / 4, (9 + 12 + 5 + 6) / 4]]


@pytest.mark.parametrize("protocol", ["single", "best_of_n"])
def test_rows_pair_the_model_with_the_baselines_on_the_clips_that_both_have(protocol) -> None:
    rng = np.random.default_rng(6)
    model, copy, mean = (rng.normal(size=(12, s, 2)) for s in (3, 1, 1))
    model[0], copy[1, 0, 1] = np.nan, np.nan
    predictors = {"model": ClipScores(future=model), "copy": ClipScores(future=copy), "mean": ClipScores(future=mean)}
    whole, first, second = summarize(predictors, "psnr", protocol)
    choice = 0 * np.arange(12) if protocol == "single" else np.where(np.isnan(model), -9, model).mean(2).argmax(1)
    chosen = model[np.arange(12), choice]
    assert whole.model == bootstrap_mean(chosen[1:].mean(axis=1))
    assert (first.horizon, second.horizon, second.model.count, second.minus_copy.count) == (1, 2, 11, 10)
    assert first.minus_mean == paired_difference(chosen[1:, 0], mean[1:, 0, 0])
    assert whole.minus_copy.value == pytest.approx(whole.model.value - np.nanmean(copy[1:], axis=2).mean())
    nothing = {name: ClipScores(future=np.full((3, 1, 2), np.nan)) for name in predictors}
    assert summarize(nothing, "psnr", protocol)[0].model is None


@pytest.fixture(scope="module")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random weights with the names of torchvision's VGG16 and of LPIPS's heads."""
    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    torch.save({f"features.{k}": v for k, v in _vgg16_features().state_dict().items()}, folder / "vgg16.pth")
    widths = (64, 128, 256, 512, 512)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1) for i, w in enumerate(widths)}, folder / "vgg.pth")
    return folder


def test_lpips_equals_its_definition_layer_by_layer(lpips_weights: Path) -> None:
    first, second = random_frames(2, height=32, width=32), random_frames(2, height=32, width=32, seed=8)
    measured = FrameDistance(lpips_weights, device=torch.device("cpu"))(first, second)
    network = _vgg16_features()
    network.load_state_dict({k[9:]: v for k, v in torch.load(lpips_weights / "vgg16.pth").items()})
    heads = torch.load(lpips_weights / "vgg.pth")
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    for frame in range(2):
        layers = []
        for image in (first[frame], second[frame]):
            x = torch.tensor((image / 127.5 - 1 - shift) / scale).permute(2, 0, 1)[None].float()
            taps = []
            for number, layer in enumerate(network):
                x = layer(x)
                if number in (3, 8, 15, 22, 29):
                    taps.append(x[0].detach().double().numpy())
            layers.append(taps)
        expected = 0.0
        for i, (a, b) in enumerate(zip(*layers, strict=True)):
            a, b = (v / np.sqrt((v**2).sum(axis=0, keepdims=True)).clip(1e-8) for v in (a, b))
            weights = heads[f"lin{i}.model.1.weight"].numpy()[0]
            expected += (weights * (a - b) ** 2).sum(axis=0).mean()
        assert measured[frame] == pytest.approx(expected, rel=1e-4)


def test_lpips_is_zero_for_equal_frames_and_refuses_half_the_weights(lpips_weights: Path, tmp_path: Path) -> None:
    frames = random_frames(1, height=32, width=32)
    distance = FrameDistance(lpips_weights, device=torch.device("cpu"))
    assert distance(frames, frames) == pytest.approx([0.0], abs=1e-6)
    (tmp_path / "vgg16.pth").write_bytes((lpips_weights / "vgg16.pth").read_bytes())
    with pytest.raises(CheckpointError, match="put both there"):
        FrameDistance(tmp_path, device=torch.device("cpu"))
    torch.save({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match="five LPIPS heads"):
        FrameDistance(tmp_path, device=torch.device("cpu"))
    with pytest.raises(CheckpointError, match="expected a folder"):
        FrameDistance(tmp_path / "missing", device=torch.device("cpu"))


def test_i3d_pads_as_tensorflow_does() -> None:
    """A window of three ones counts what is not padding: the odd zero lies behind."""
    unit = Unit(1, 1, 3, 2).eval()
    torch.nn.init.ones_(unit.conv3d.weight)
    for size, counts in ((4, [3, 2]), (5, [2, 3, 2]), (8, [3, 3, 3, 2])):
        with torch.no_grad():
            got = unit(torch.ones(1, 1, size, 1, 1)).flatten() * math.sqrt(1 + 1e-3)
        assert got.tolist() == pytest.approx(counts, rel=1e-5)


def test_i3d_reads_a_state_dict_and_nothing_else(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = I3D()
    assert sum(p.numel() for p in model.parameters()) == 12_697_264
    torch.save(model.state_dict(), tmp_path / "i3d.pt")
    loaded = load_i3d(tmp_path / "i3d.pt")
    videos = random_frames(2 * LEAST_FRAMES, height=16, width=16).reshape(2, LEAST_FRAMES, 16, 16, 3)
    features = video_features(loaded, videos)
    assert features.shape == (2, 400) and np.isfinite(features).all()
    np.testing.assert_allclose(video_features(loaded, videos[1:]), features[1:], atol=1e-4)
    with pytest.raises(ConfigError, match="at least 9 frames"):
        video_features(loaded, videos[:, 1:])
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "program.pt")
    torch.save({"logits.conv3d.weight": torch.zeros(10, 1024, 1, 1, 1)}, tmp_path / "other.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "i3d.pt").read_bytes()[:1000])
    for name in ("program.pt", "other.pt", "cut.pt", "missing.pt"):
        with pytest.raises(CheckpointError):
            load_i3d(tmp_path / name)
