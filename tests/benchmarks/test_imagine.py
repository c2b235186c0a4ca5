"""Imagined frames: cached decoding equals uncached, memorized frames come back, `gr2 imagine` continues files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import fit, make_batch, make_context, make_model, small_config
from PIL import Image

from gr2.benchmarks.imagine.drawing import Strip, write_sheet, write_strips
from gr2.benchmarks.imagine.run import imagine as imagine_files
from gr2.benchmarks.imagine.start import read_start
from gr2.cli.main import main
from gr2.data_pipeline.video.reader import open_video, write_video
from gr2.errors import ConfigError, DataError, EnvironmentMissing
from gr2.gr_model.act.loading import Assembled, assemble
from gr2.gr_model.model.context import Targets
from gr2.gr_model.model.generation import FrameDecoder, imagine_frames, slide
from gr2.gr_model.model.objectives import read_targets
from gr2.gr_model.model.sampling import SamplingConfig

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
MODES = pytest.mark.parametrize("decoding", ["masked", "raster"])


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("targets", [1, 2])
def test_cached_parallel_decoding_equals_uncached(targets: int, ahead: bool) -> None:
    model = make_model(small_config(num_targets=targets))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    context = replace(context, target_states=batch["states"][:, 2:] if ahead else None)
    packed, valid = read_targets(model, batch, context, 2)
    hidden = valid[..., None] & (torch.rand(packed.shape) < 0.5)
    with torch.no_grad():
        everywhere = torch.ones(packed.shape[:3], dtype=torch.bool)
        cached = FrameDecoder(model, context).score(packed, hidden, everywhere).view(*packed.shape, -1)
        _, features = model.predict(context, Targets(packed=packed, masked=hidden), with_actions=False)
        expected = model.frame_logits(features, model.reference(context).expand_as(packed))
        torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("targets", [1, 2])
def test_cached_raster_decoding_equals_uncached(targets: int) -> None:
    model = make_model(small_config("raster", num_targets=targets))
    batch = make_batch(model.config)
    context = make_context(model, batch)
    packed, _ = read_targets(model, batch, context, 2)
    with torch.no_grad():
        decoder = FrameDecoder(model, context)
        cached = [decoder.next_positions(packed[:, :, i : i + 1], i)[:, :, 0] for i in range(packed.shape[2])]
        _, features = model.predict(context, Targets(packed=packed, masked=None), with_actions=False)
        expected = model.frame_logits(features, model.reference(context).expand_as(packed))
    torch.testing.assert_close(torch.stack(cached, dim=2), expected, atol=1e-5, rtol=1e-5)


@MODES
def test_a_memorized_frame_is_imagined(decoding: Any) -> None:
    config = small_config(decoding, max_context=1)
    batch = make_batch(config, size=4)
    model = fit(make_model(config), batch, steps=250).train()
    imagined = imagine_frames(model, make_context(model, batch), sampling=SamplingConfig(passes=4))
    right = [(imagined[name] == batch["codes"][name][:, 1:]).float().mean() for name in imagined]
    assert min(right) > 0.95, right
    assert model.training


@MODES
def test_roll_outs_are_reproducible_and_slide(decoding: Any) -> None:
    model = make_model(small_config(decoding, text_dropout=0.1))
    context = make_context(model, make_batch(model.config))
    sampling = SamplingConfig(temperature=1.0, choice_temperature=2.0, guidance=1.5, seed=3)
    first = imagine_frames(model, context, num_frames=3, sampling=sampling)
    again = imagine_frames(model, context, num_frames=3, sampling=sampling)
    other = imagine_frames(model, context, num_frames=3, sampling=SamplingConfig(temperature=1.0, seed=4))
    assert {name: codes.shape for name, codes in first.items()} == {
        "static": (3, 3, 24),
        "gripper": (3, 3, 16),
    }
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["static"], other["static"])
    assert all(codes.min() >= 0 and codes.max() < 20 for codes in first.values())


def test_imagined_frames_have_no_state() -> None:
    model = make_model(small_config())
    context = make_context(model, make_batch(model.config))
    frames = {name: codes[:, :1] + 0 for name, codes in context.codes.items()}
    moved = slide(context, frames, 2)
    assert moved.state_mask is not None
    assert moved.state_mask.tolist() == [[True, False]] * 3
    assert torch.equal(moved.codes["static"][:, 0], context.codes["static"][:, 1])


def test_imagined_frames_follow_the_models_own_trajectory() -> None:
    model = make_model(small_config(max_context=1))
    context = make_context(model, make_batch(model.config))
    assert context.states is not None
    frames = {name: codes[:, :1] + 0 for name, codes in context.codes.items()}
    moved = model.config.slots.after(context.states[:, -1], model.act(context), 2)[:, None]
    slid = slide(context, frames, 1, moved)
    assert slid.states is not None and slid.state_mask is not None and bool(slid.state_mask.all())
    assert torch.equal(slid.states, moved) and moved.shape == (3, 1, 16)
    with torch.no_grad():  # an untrained model copies; this one looks at the state
        model.copy_gate.bias.zero_()
        model.embed.state.weight.mul_(50)
    first = imagine_frames(model, context, frame_step=2)
    expected = imagine_frames(model, replace(context, target_states=moved))
    assert all(torch.equal(first[name], expected[name]) for name in first)
    with_states = imagine_frames(model, context, num_frames=3, frame_step=2)
    without = imagine_frames(model, context, num_frames=3)
    assert any(not torch.equal(with_states[name][:, :1], without[name][:, :1]) for name in without)
    assert any(not torch.equal(with_states[name][:, 1:], without[name][:, 1:]) for name in without)
    too_far = imagine_frames(model, context, num_frames=3, frame_step=model.config.chunk_length + 1)
    assert all(torch.equal(too_far[name], without[name]) for name in without)


def test_several_target_frames_follow_the_trajectory_step_by_step() -> None:
    model = make_model(small_config(num_targets=2))
    context = make_context(model, make_batch(model.config))
    assert context.states is not None
    with torch.no_grad():
        model.copy_gate.bias.zero_()
        model.embed.state.weight.mul_(50)
        chunk = model.act(context)
    ahead = torch.stack([model.config.slots.after(context.states[:, -1], chunk, steps) for steps in (2, 4)], dim=1)
    expected = imagine_frames(model, replace(context, target_states=ahead), num_frames=2)
    got = imagine_frames(model, context, num_frames=2, frame_step=2)
    assert all(torch.equal(got[name], expected[name]) for name in got)


def test_guidance_needs_text_dropout() -> None:
    model = make_model(small_config())
    with pytest.raises(ConfigError, match="text dropout"):
        imagine_frames(model, make_context(model, make_batch(model.config)), sampling=SamplingConfig(guidance=2.0))


@pytest.fixture(scope="module")
def shipped() -> Assembled:
    return assemble("pretrained")


def moving_clip(file: Path, *, frames: int, fps: float, side: int = 64) -> np.ndarray:
    """Write a video whose gray level gives the time: 2 levels a frame."""
    levels = (2 * np.arange(frames, dtype=np.uint8))[:, None, None, None]
    write_video(file, np.broadcast_to(levels, (frames, side, side, 3)).copy(), fps, crf=0)
    return levels[:, 0, 0, 0]


def read_frames(file: Path) -> np.ndarray:
    with open_video(file) as reader:
        return reader.get_batch(range(len(reader)))


def test_an_image_of_one_camera_goes_on_without_the_other(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 80, 3), np.uint8)).save(tmp_path / "start.png")
    done = imagine_files(
        image=tmp_path / "start.png", text="open the drawer", num_frames=5, decoding_steps=2, grid=True,
        out=tmp_path / "out",
    )  # fmt: skip
    assert done == {"cameras": ["static"], "start_frames": 1, "predicted_frames": 5}
    files = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert files == ["sheet.png", "static.mp4", "static_predicted.mp4"]
    assert read_frames(tmp_path / "out/static_predicted.mp4").shape == (6, 64, 64, 3)
    assert read_frames(tmp_path / "out/static.mp4").shape[::2] == (6, 256)
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.width > 6 * 98 and sheet.height == 8 + 2 * 17 + 98


def test_the_command_line_takes_a_clip_of_each_camera_and_shows_what_came(tmp_path: Path) -> None:
    for name in ("static", "gripper"):
        moving_clip(tmp_path / f"{name}.mp4", frames=12, fps=6)
    clips = f'{{"static": "{tmp_path}/static.mp4", "gripper": "{tmp_path}/gripper.mp4"}}'
    options = ["--text", "push the block", "--num-frames", "14", "--decoding-steps", "1", "--grid"]
    assert main(["imagine", "--clip", clips, *options, "--out", str(tmp_path / "out")]) == 0
    for name in ("static", "gripper"):
        frames = read_frames(tmp_path / f"out/{name}.mp4")
        top = frames.shape[1] - 256
        assert frames.shape == (15, top + top % 2 + 256, 512, 3) and top == 42
        real = frames[:, top:, 256:]
        np.testing.assert_allclose(real[:12].mean((1, 2, 3)), 2 * np.arange(12), atol=3)
        np.testing.assert_allclose(real[12:, :64].mean((1, 2, 3)), 128, atol=3)
        np.testing.assert_allclose(frames[0, top:, :256], frames[0, top:, 256:], atol=3)
        predicted = read_frames(tmp_path / f"out/{name}_predicted.mp4").repeat(4, 1).repeat(4, 2)
        assert predicted.shape == (15, 256, 256, 3)
        assert np.abs(predicted.astype(int) - frames[:, top:, :256]).mean() < 6
    with Image.open(tmp_path / "out/sheet.png") as sheet:
        assert sheet.height == 42 + 4 * 98


def strip(kind: Any, levels: list[int], side: int = 64) -> Strip:
    frames = np.array(levels, np.uint8)[:, None, None, None]
    return Strip(
        camera="static", kind=kind, frames=np.broadcast_to(frames, (len(levels), side, side, 3)).copy(), num_given=1
    )


def test_sheets_show_equal_steps_in_time_and_say_where_a_clip_ended(tmp_path: Path) -> None:
    levels = list(range(0, 250, 10))
    strips = [strip("predicted", levels), strip("real", levels[:7])]
    write_sheet(tmp_path / "sheet.png", strips, text="push the block", frame_s=0.2)
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("L"))
    left = pixels.shape[1] - 9 * 98
    upper, lower = (pixels[42 + 98 * row + 10, left + 10 :: 98] for row in (0, 1))
    assert upper.tolist() == levels[::3]
    assert lower.tolist() == [*levels[:7:3], *[128] * 6]
    words = [pixels[42 + 98 + 40 : 42 + 98 + 60, left + 98 * column : left + 98 * column + 96] for column in range(9)]
    assert [int(cell.max() - cell.min()) > 60 for cell in words] == [False] * 3 + [True] * 6


@pytest.mark.parametrize("side", [64, 255, 300])
def test_long_texts_fit_videos_of_any_image_size(tmp_path: Path, side: int) -> None:
    long = "pull the handle to open the drawer, then push the red block to the left until it falls"
    heights = []
    for text in ("", "push the block", long):
        write_strips(tmp_path / "video.mp4", [strip("predicted", [100, 200], side)], text=text, frame_s=0.5)
        frames = read_frames(tmp_path / "video.mp4")
        assert len(frames) == 2 and frames.shape[2] == 2 * round(side * max(1, round(256 / side)) / 2 + 0.1)
        heights.append(frames.shape[1])
        below = frames[:, -200:-10, 5:240].mean((1, 2, 3))
        np.testing.assert_allclose(below, [100, 200], atol=3)
        right_edge = frames[:, : frames.shape[1] - side * round(256 / side) - 2, -4:]
        assert right_edge.min() > 230, "the text leaves the image"
    assert heights[0] < heights[1] < heights[2]


def test_cuda_is_refused_where_there_is_none(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    Image.new("RGB", (8, 8)).save(tmp_path / "start.png")
    with pytest.raises(EnvironmentMissing, match="expected a CUDA device, found none"):
        imagine_files(image=tmp_path / "start.png", num_frames=1, device="cuda", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("fps", "stride"), [(30.0, 5), (12.0, 2), (6.0, 1), (25.0, 25 / 6)])
def test_clips_are_read_at_the_models_frame_rate(tmp_path: Path, shipped: Assembled, fps: float, stride: float) -> None:
    levels = moving_clip(tmp_path / "clip.mp4", frames=61, fps=fps)
    start = read_start(shipped, None, tmp_path / "clip.mp4", num_frames=7)
    got = np.concatenate([start.images["static"], start.real["static"]]).mean((1, 2, 3))
    assert start.frame_s == pytest.approx(1 / 6) and len(start.images["static"]) == 1
    np.testing.assert_allclose(got, levels[np.round(np.arange(8) * stride).astype(int)], atol=1.5)


@pytest.mark.parametrize(
    ("file", "frames"),
    [("bridge/videos/val/10/rgb.mp4", 47), ("web/eye_makeup_ucf.avi", 40), ("hands/cutting_loaf.gif", 24)],
)
def test_real_clips_start_roll_outs(shipped: Assembled, file: str, frames: int) -> None:
    if not (SAMPLES / file).is_file():
        pytest.skip("the real samples are not beside this checkout")
    start = read_start(shipped, None, SAMPLES / file, num_frames=1000)
    with open_video(SAMPLES / file) as reader:
        assert frames == int(reader.times[-1] * 6) + 1
    assert len(start.images["static"]) + len(start.real["static"]) == frames
    assert start.images["static"].shape == (1, 64, 64, 3)


def test_unusable_starts_are_refused_in_one_sentence(tmp_path: Path, shipped: Assembled) -> None:
    moving_clip(tmp_path / "clip.mp4", frames=3, fps=6)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "clip.mp4").read_bytes()[:200])
    for image, clip, error, message in (
        (tmp_path / "none.png", None, DataError, "no such file, expected an image"),
        (tmp_path / "text.png", None, DataError, "none or broken"),
        (tmp_path / "clip.mp4", None, DataError, "give it as --clip"),
        (None, tmp_path / "none.mp4", DataError, "no such file"),
        (None, tmp_path / "cut.mp4", DataError, "truncated or corrupt|cannot be used"),
        (None, {"wrist": tmp_path / "clip.mp4"}, ConfigError, r"cameras of \['static', 'gripper'\], got \['wrist'\]"),
        (None, {}, ConfigError, "expected cameras"),
        (tmp_path / "a.png", tmp_path / "clip.mp4", ConfigError, "either --image or --clip"),
    ):
        with pytest.raises(error, match=message):
            read_start(shipped, image, clip, num_frames=1)
    with pytest.raises(ConfigError, match="expected --image or --clip"):
        imagine_files(text="open the drawer", out=tmp_path / "out")
    with pytest.raises(ConfigError, match=r"at least one frame.* --num-frames 0"):
        imagine_files(clip=tmp_path / "clip.mp4", num_frames=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
