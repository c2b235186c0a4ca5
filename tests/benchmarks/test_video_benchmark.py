"""`gr2 benchmark video`: clips and pixels that belong together, losses, shuffles, laws, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import fit, make_batch, make_model, make_texts, small_config

from gr2.benchmarks.metrics.frames import PSNR_CEILING_DB
from gr2.benchmarks.video.clips import VideoClips, choose_clips, frames_between, mean_frames, open_store
from gr2.benchmarks.video.compare import CLIP_FEATURES, FRAME_FEATURES, Measures, compare
from gr2.benchmarks.video.frechet import estimate_frechet
from gr2.benchmarks.video.likelihood import clip_losses, codes_per_frame, other_group, shuffle_controls
from gr2.benchmarks.video.originals import original_frames
from gr2.benchmarks.video.predictions import sampled_codes, set_captions
from gr2.benchmarks.video.run import benchmark
from gr2.benchmarks.video.scores import summarize
from gr2.benchmarks.video.tables import steps_ahead
from gr2.cli.main import main
from gr2.data_pipeline.curation.filters import FilterConfig
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.video.reader import write_video
from gr2.errors import CheckpointError, ConfigError, DataError
from gr2.gr_model.act.loading import Assembled, assemble
from gr2.gr_model.model.normalization import measure_statistics
from gr2.gr_model.model.objectives import evaluation_metrics
from gr2.gr_model.model.sampling import SamplingConfig
from gr2.gr_model.model.texts import TextTable
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.tokenizer_stages import tokens

KEEP_ALL = FilterConfig(min_frames=1, min_seconds=0, min_motion=0)
NUM_VIDEOS = 8


def moving_square(number: int, num_frames: int = 24) -> np.ndarray:
    """Draw a square that moves over a ground of its own color: uint8 `[f 64 64 3]`."""
    frames = np.full((num_frames, 64, 64, 3), 30 + 15 * number, np.uint8)
    for index in range(num_frames):
        left, top = (2 * index + 5 * number) % 48, 4 * number % 48
        frames[index, top : top + 16, left : left + 16] = (250, 20 * number, 90)
    return frames


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write video shards of two windows a video, tokens of them, and shards of other videos with the same names."""
    root = tmp_path_factory.mktemp("video")
    for number in range(NUM_VIDEOS):
        write_video(root / f"videos/{number:02d}.mp4", moving_square(number, 48), fps=12)
        write_video(root / f"others/{number:02d}.mp4", 255 - moving_square(number, 48), fps=12)
    for name, out in (("videos", "shards"), ("others", "other_shards")):
        write_video_shards(source=str(root / name), out=root / out, filters=KEEP_ALL, window_seconds=2)
    tokens(shards=str(root / "shards"), out=root / "tokens")
    tokens(shards=str(root / "shards"), out=root / "slow_tokens", target_fps=6)
    return root


@pytest.fixture(scope="module")
def parts() -> Assembled:
    return assemble("pretrained")


def clips_of(root: Path, parts: Assembled, **changes: Any) -> tuple[Any, VideoClips]:
    store = open_store([str(root / changes.pop("name", "tokens"))], parts.release)
    options = {"num_clips": 6, "context": 1, "num_frames": 3, "frame_step": 5, "held_out": 0.0, "seed": 0}
    return store, choose_clips(store, **(options | changes))


def test_clips_are_windows_of_different_videos_inside_their_episode(corpus: Path, parts: Assembled) -> None:
    store, clips = clips_of(corpus, parts, context=2, num_clips=100)
    assert len(store) == 2 * NUM_VIDEOS and len(clips) == NUM_VIDEOS
    assert len(set(store.column("video")[clips.episodes].tolist())) == NUM_VIDEOS
    assert clips.anchors.min() >= 5 and np.all(clips.anchors + 15 < store.num_frames[clips.episodes])
    for clip in range(len(clips)):
        places = clips.anchors[clip] + 5 * np.arange(-1, 4)
        codes, _ = store.read_codes("static", clips.episodes[clip : clip + 1], places[None])
        assert np.array_equal(clips.codes("static")[clip], codes[0])
    assert bool(clips.batch["frame_mask"].all()) and not clips.present["gripper"].any()
    assert np.array_equal(clips_of(corpus, parts, context=2, num_clips=100)[1].anchors, clips.anchors)
    assert not np.array_equal(clips_of(corpus, parts, context=2, num_clips=100, seed=1)[1].anchors, clips.anchors)
    assert frames_between(store, parts.release) == 5


def test_too_few_clips_and_frames_that_do_not_exist_are_refused(corpus: Path, parts: Assembled) -> None:
    with pytest.raises(DataError, match="shorten --num-frames"):
        clips_of(corpus, parts, num_frames=5)
    with pytest.raises(DataError, match="--held-out 0"):
        clips_of(corpus, parts, held_out=1e-9)
    with pytest.raises(ConfigError, match="num_frames"):
        clips_of(corpus, parts, num_frames=0)
    store, _ = clips_of(corpus, parts, name="slow_tokens", frame_step=2)
    with pytest.raises(ConfigError, match="--frame-step"):
        frames_between(store, parts.release)
    with pytest.raises(DataError, match="encode the shards with"):
        open_store([str(corpus / "tokens")], replace(parts.release, tokenizer="0" * 64))


def test_the_mean_frame_is_that_of_the_other_videos(corpus: Path, parts: Assembled) -> None:
    store, _ = clips_of(corpus, parts)
    videos = store.column("video")
    kept = videos[3]
    means = mean_frames(store, parts.vqgan, without=videos[videos != kept].tolist(), held_out=0.0, seed=0)
    assert set(means) == {"static"} and means["static"].shape == (64, 64, 3)
    episodes = np.flatnonzero(videos == kept)
    codes, _ = store.read_codes("static", episodes, np.tile(np.arange(24), (len(episodes), 1)))
    frames = parts.vqgan.decode_frames(codes.reshape(-1, codes.shape[-1]).astype(np.int64)).astype(float)
    assert np.all(means["static"] >= frames.min(axis=0) - 1) and np.all(means["static"] <= frames.max(axis=0) + 1)
    with pytest.raises(DataError, match="--train-tokens"):
        mean_frames(store, parts.vqgan, without=videos.tolist(), held_out=0.0, seed=0)


@pytest.mark.parametrize(("name", "skip"), [("tokens", 1), ("slow_tokens", 2)])
def test_original_pixels_are_those_of_the_window(corpus: Path, parts: Assembled, name: str, skip: int) -> None:
    store, clips = clips_of(corpus, parts, name=name, frame_step=3, num_clips=NUM_VIDEOS)
    pixels = original_frames(str(corpus / "shards"), store, clips, parts.vqgan)
    seen = set()
    for clip, episode in enumerate(clips.episodes.tolist()):
        number, second = divmod(episode, 2)
        places = 24 * second + skip * (clips.anchors[clip] + 3 * np.arange(4))
        wanted = moving_square(number, 48)[places].astype(int)
        assert np.abs(pixels["static"][clip].astype(int) - wanted).mean() < 4
        seen.add(second)
    assert seen == {0, 1}, "windows of both halves are drawn"


def test_shards_of_other_videos_are_refused(corpus: Path, parts: Assembled) -> None:
    store, clips = clips_of(corpus, parts)
    with pytest.raises(DataError, match="name those"):
        original_frames(str(corpus / "other_shards"), store, clips, parts.vqgan)


def test_a_perfect_prediction_a_copy_and_a_mean_frame_score_as_they_must(corpus: Path, parts: Assembled) -> None:
    store, clips = clips_of(corpus, parts)
    means = mean_frames(store, parts.vqgan, without=[], held_out=0.0, seed=0)
    codes = clips.codes("static")
    truth, copy = codes[:, None, 1:], np.repeat(codes[:, None, :1], 3, axis=2)
    pixels = original_frames(str(corpus / "shards"), store, clips, parts.vqgan)
    both = np.concatenate((copy, truth), axis=1)
    found = {
        name: compare(parts, clips, {"static": predicted}, means, pixels, Measures(protocol=protocol))
        for name, predicted, protocol in (
            ("true", truth, "single"),
            ("copy", copy, "single"),
            ("both", both, "best_of_n"),
        )
    }
    rows = {
        (name, metric): summarize(predictors, metric, "best_of_n" if name == "both" else "single")
        for name, comparison in found.items()
        for reference in ("codes", "reconstruction")
        for metric, predictors in comparison.scores(reference, "single").items()
    }
    assert rows["true", "token_accuracy"][0].model.low == 1 and rows["true", "psnr"][0].model.low == PSNR_CEILING_DB
    assert all(row.minus_copy.excludes_zero() for row in rows["true", "psnr_moving"])
    for metric in ("psnr", "psnr_moving", "psnr_still", "ssim", "token_accuracy"):
        assert all((row.minus_copy.low, row.minus_copy.high) == (0, 0) for row in rows["copy", metric])
        assert [r.model for r in rows["both", metric]] == [r.model for r in rows["true", metric]]
    features = found["true"].feature_sets("reconstruction", FRAME_FEATURES)["static"]
    distances = {name: estimate_frechet(features["real"], f).value for name, f in features.items()}
    assert distances["model"] == pytest.approx(0, abs=1e-9)
    assert 1e-6 < distances["copy"] < distances["mean"]
    original = found["true"].scores("original", "single")["psnr"]
    assert np.array_equal(original["model"].future, original["tokenizer"].future)
    assert original["model"].context is None
    assert found["both"].scores("original", "best_of_n")["psnr"]["model"].context.shape == (6, 1)
    assert found["both"].scores("reconstruction", "best_of_n")["psnr"]["model"].context is None


class AverageColor(torch.nn.Module):
    """Stand in for I3D: the mean color of the first and of the last frame."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        return videos[:, :, [0, -1]].mean(dim=(3, 4)).flatten(1) * self.weight


@pytest.mark.parametrize(("protocol", "length"), [("single", 9), ("best_of_n", 10)])
def test_video_features_see_the_context_in_best_of_n_alone(
    corpus: Path, parts: Assembled, protocol: Any, length: int
) -> None:
    store, clips = clips_of(corpus, parts, num_clips=2, num_frames=9, frame_step=1)
    means = mean_frames(store, parts.vqgan, without=[], held_out=0.0, seed=0)
    codes = clips.codes("static")

    def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.abs(first.astype(float) - second).mean(axis=(1, 2, 3))

    measures = Measures(protocol=protocol, lpips=distance, i3d=AverageColor())  # type: ignore[arg-type]
    found = compare(parts, clips, {"static": codes[:, None, 1:]}, means, None, measures)
    sets = found.feature_sets("reconstruction", CLIP_FEATURES)["static"]
    seen = parts.vqgan.decode_frames(codes[0])[-length:]
    first, last = (seen[i].mean(axis=(0, 1)) / 127.5 - 1 for i in (0, -1))
    colors = np.stack((first, last), axis=1).flatten()
    np.testing.assert_allclose(sets["real"][0, 0], colors, atol=1e-4)
    np.testing.assert_allclose(sets["model"], sets["real"])
    mean_starts = means["static"] if protocol == "single" else seen[0]
    np.testing.assert_allclose(sets["mean"][0, 0, ::2], mean_starts.mean(axis=(0, 1)) / 127.5 - 1, atol=1e-4)
    lpips = summarize(found.scores("reconstruction", protocol)["lpips"], "lpips", protocol)
    assert lpips[0].model.value == 0 and lpips[0].minus_copy.high < 0


def test_samples_do_not_depend_on_the_batch(corpus: Path, parts: Assembled) -> None:
    _, clips = clips_of(corpus, parts, num_clips=4, num_frames=2)
    set_captions(parts, clips)
    drawn = SamplingConfig(temperature=1.0, top_k=100, seed=3)
    whole = sampled_codes(parts, clips, sampling=drawn, samples=2, batch_size=4)["static"]
    pieces = sampled_codes(parts, clips, sampling=drawn, samples=2, batch_size=3)["static"]
    assert whole.shape == (4, 2, 2, 256) and (whole == pieces).mean() > 0.999
    assert not np.array_equal(whole[:, 0], whole[:, 1])


def clips_from(batch: dict[str, Any], context: int, captions: int = 4) -> VideoClips:
    size, frames = batch["frame_mask"].shape
    return VideoClips(
        batch=batch, captions=tuple(f"caption {i}" for i in range(captions)), episodes=np.arange(size),
        anchors=np.zeros(size, int), context=context, num_frames=frames - context, frame_step=1,
    )  # fmt: skip


def acting(model: WorldModel, batch: dict[str, Any]) -> WorldModel:
    model.set_statistics(
        measure_statistics(batch["states"][:, 0].numpy(), batch["actions"].numpy(), batch["action_mask"].numpy())
    )
    return model


@pytest.mark.parametrize("decoding", ["masked", "raster"])
@pytest.mark.parametrize("acts", [False, True])
def test_losses_of_clips_average_to_the_figure_of_training(decoding: Any, acts: bool) -> None:
    config = small_config(decoding)
    batch = make_batch(config, size=7)
    model = acting(make_model(config), batch) if acts else make_model(config)
    shown = batch if acts else {k: v for k, v in batch.items() if k not in ("states", "state_mask")}
    expected = float(evaluation_metrics(model, shown, with_actions=False, with_frames=True)["frame_loss"])
    losses = clip_losses(model, clips_from(batch, config.max_context), batch_size=3)
    assert losses.shape == (7, 1) and losses.mean() == pytest.approx(expected, rel=1e-5)
    assert codes_per_frame(clips_from(batch, 2)).tolist() == [40.0] * 7


def test_every_frame_is_scored_after_the_real_frames_before_it() -> None:
    config = small_config(max_context=2)
    model, batch = make_model(config), make_batch(config, size=3, targets=4)
    losses = clip_losses(model, clips_from(batch, 2))
    for step in range(4):
        piece = {**batch, "codes": {c: v[:, step : step + 3] for c, v in batch["codes"].items()}}
        piece["frame_mask"] = batch["frame_mask"][:, step : step + 3]
        np.testing.assert_allclose(clip_losses(model, clips_from(piece, 2))[:, 0], losses[:, step], rtol=1e-5)


def test_a_pass_that_reaches_beyond_the_clip_scores_what_is_there() -> None:
    config = small_config(num_targets=2)
    model, batch = make_model(config), make_batch(config, size=3, targets=4)
    shorter = {**batch, "codes": {c: v[:, :5] for c, v in batch["codes"].items()}}
    shorter["frame_mask"] = batch["frame_mask"][:, :5]
    whole, cut = clip_losses(model, clips_from(batch, 2)), clip_losses(model, clips_from(shorter, 2))
    assert cut.shape == (3, 3)
    np.testing.assert_allclose(cut, whole[:, :3], rtol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2, 1), (5, 5), (4, 1, 1, 1, 1), (2, 2, 2, 2), (1,) * 9])
def test_a_shuffle_gives_everybody_something_else_where_that_is_possible(sizes: tuple[int, ...]) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    for seed in range(20):
        other = other_group(groups, np.random.default_rng(seed))
        assert sorted(other.tolist()) == list(range(len(groups)))
        assert np.all(groups[other] != groups)


def test_a_shuffle_moves_as_many_as_it_can_beside_a_majority() -> None:
    groups = np.array([0] * 7 + [1, 2])
    other = other_group(groups, np.random.default_rng(0))
    assert int((groups[other] != groups).sum()) == 4


def spoken_batch(config: Any, size: int) -> dict[str, Any]:
    """Make clips whose next frame is one of four images, the one that the caption names; contexts are alike."""
    batch = make_batch(config, size=size)
    for camera, codes in batch["codes"].items():
        images = torch.randint(config.codebook_size, (4, codes.shape[-1]), generator=torch.Generator().manual_seed(7))
        codes[:] = 3
        batch["codes"][camera][:, 1] = images[batch["text_id"]]
    return batch


def trained(batch: dict[str, Any], *, text: bool) -> WorldModel:
    config = small_config(max_context=1, text_dropout=0.0 if text else 1.0)
    return fit(make_model(config), batch, steps=120)


def test_shuffled_captions_cost_a_model_that_reads_them() -> None:
    batch = spoken_batch(small_config(max_context=1), 12)
    control = shuffle_controls(trained(batch, text=True), clips_from(batch, 1))[0]
    assert control.shown == "captions" and control.gap.count == 12
    assert control.gap.low > 0.5 and control.gap.value > control.loss.value


def test_shuffled_captions_cost_nothing_where_the_text_says_nothing() -> None:
    """A model that sees no text loses exactly 0; one that is moved by it, at random, loses 0 within the interval."""
    batch = make_batch(small_config(max_context=1), size=24)
    model = make_model(small_config(max_context=1))
    moved = shuffle_controls(model, clips_from(batch, 1))[0].gap
    assert moved.low < 0 < moved.high and moved.high - moved.low > 1e-4
    features, mask = make_texts(model.config)
    model.set_texts(TextTable(torch.zeros_like(features), torch.ones_like(mask)))  # all captions are alike to it
    blind = shuffle_controls(model, clips_from(batch, 1))[0].gap
    assert blind.low <= 0 <= blind.high and abs(blind.value) < 1e-6


def test_one_caption_cannot_be_shuffled_and_the_report_says_so() -> None:
    batch = make_batch(small_config(), size=4)
    batch["text_id"] = torch.zeros(4, dtype=torch.long)
    control = shuffle_controls(make_model(small_config()), clips_from(batch, 2))[0]
    assert control.gap is None and "fewer than two clips differ" in control.reason


def test_states_and_actions_are_shuffled_for_a_model_that_acts() -> None:
    config = small_config(max_context=1)
    batch = make_batch(config, size=16)
    model = acting(make_model(config), batch)
    batch["states"][:, 0], batch["text_id"] = batch["states"][0, 0], torch.zeros(16, dtype=torch.long)
    for codes in batch["codes"].values():  # the next frame shows where the robot will be, and nothing else shows it
        codes[:, 0] = 3
        codes[:, 1] = (batch["states"][:, 1, :1] > 0).long() * 5
    fit(model, batch, steps=80)
    controls = {c.shown: c for c in shuffle_controls(model, clips_from(batch, 1))}
    assert set(controls) == {"captions", "states", "actions"}
    assert controls["actions"].gap.low > 0.1 and controls["captions"].gap is None
    assert abs(controls["states"].gap.value) < 1e-6, "all states of the context are alike"
    assert [c.shown for c in shuffle_controls(make_model(config), clips_from(batch, 1))] == ["captions"]


def test_a_claim_ends_at_the_first_step_that_is_not_certain() -> None:
    def row(*gaps: tuple[float, float] | None) -> dict[str, Any]:
        names = ("minus_copy", "minus_mean")
        return {n: None if g is None else {"low": g[0], "high": g[1]} for n, g in zip(names, gaps, strict=True)}

    sure, unsure, worse = row((1, 2), (0.1, 3)), row((1, 2), (-0.1, 3)), row((-2, -1), (-3, -0.1))
    assert steps_ahead([sure, sure, unsure, sure], "psnr") == 2
    assert steps_ahead([sure, sure], "psnr") == 2 and steps_ahead([row((1, 2), None)], "psnr") == 0
    assert steps_ahead([worse, sure], "psnr") == 0 and steps_ahead([worse, sure], "lpips") == 1


def test_the_command_prints_a_table_and_writes_json(corpus: Path, tmp_path: Path, capsys: Any) -> None:
    options = [
        "--policy=pretrained",
        f"--tokens={corpus / 'tokens'}",
        "--held-out=0",
        "--num-clips=6",
        "--num-frames=2",
    ]
    options += [f"--shards={corpus / 'shards'}", f"--json={tmp_path / 'a.json'}"]
    assert main(["benchmark", "video", *options]) == 0
    printed = capsys.readouterr().out
    for words in (
        "6 clips of as many videos",
        "model - copy",
        "perplexity",
        "captions",
        "too few",
        "still: the others",
        "beaten: up to where",
    ):
        assert words in printed
    report = json.loads((tmp_path / "a.json").read_text())
    assert {m["reference"] for m in report["metrics"]} == {"codes", "reconstruction", "original"}
    psnr = next(m for m in report["metrics"] if (m["reference"], m["metric"]) == ("original", "psnr"))
    assert [row["horizon"] for row in psnr["rows"]] == [0, 1, 2]
    assert psnr["rows"][0]["tokenizer"]["value"] > psnr["rows"][0]["model"]["value"]
    nats = report["likelihood"]["nats_per_token"]["value"]
    assert report["likelihood"]["perplexity"]["value"] == pytest.approx(np.exp(nats))
    assert report["likelihood"]["nats_per_frame"]["value"] == pytest.approx(256 * nats)
    assert report["sample"]["cameras"] == {"static": 6, "gripper": 0} and report["versions"]["torch"]
    assert report["controls"][0]["reason"], "the videos have no captions"
    assert report["frechet"][0]["too_few"] and report["policy_fingerprint"]


def test_best_of_n_is_named_and_repeatable(corpus: Path, tmp_path: Path) -> None:
    def run(name: str, samples: int) -> dict[str, Any]:
        benchmark(
            policy="pretrained", tokens=[str(corpus / "tokens")], held_out=0, num_clips=4, num_frames=1,
            protocol="best_of_n", samples=samples, json=tmp_path / name,
        )  # fmt: skip
        return json.loads((tmp_path / name).read_text())

    two, again = run("a.json", 2), run("b.json", 2)
    assert two["protocol"]["samples"] == 2 and two["protocol"]["sampling"]["top_k"] == 100
    assert two["metrics"] == again["metrics"] and "iVideoGPT" in two["protocol"]["what"]
    assert all(row["rows"][0]["model"]["count"] == 4 for row in two["metrics"] if "still" not in row["metric"])


def test_options_that_contradict_each_other_are_refused_before_any_work(corpus: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"policy": "pretrained", "tokens": str(corpus / "tokens"), "held_out": 0, "num_frames": 2}
    with pytest.raises(ConfigError, match="--protocol best_of_n"):
        benchmark(**given, samples=4)
    with pytest.raises(ConfigError, match="raise --num-frames"):
        benchmark(**given, fvd=tmp_path / "i3d.pt")
    with pytest.raises(CheckpointError, match="vgg16"):
        benchmark(**given, lpips=tmp_path)
    with pytest.raises(CheckpointError, match="expected a weight file"):
        benchmark(**(given | {"num_frames": 9}), fvd=tmp_path / "i3d.pt")
