"""Measures for curation, on real clips looked at by eye, on known changes of them, and on hostile input."""

import pickle
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from gr2.data_pipeline.curation.cuts import find_cuts, scenes
from gr2.data_pipeline.curation.hands import MediapipeHands, SkinMotionHands
from gr2.data_pipeline.curation.near_duplicates import FLAT, clip_hash, group_duplicates, hamming
from gr2.data_pipeline.curation.quality import measure_quality
from gr2.data_pipeline.video.reader import open_video
from gr2.data_pipeline.video.transcode import encode_frames
from gr2.errors import CheckpointError, ConfigError, DataError, EnvironmentMissing

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample videos are not beside the checkout")

WRESTLING, MAKE_UP = "web/armwrestling_k400.mp4", "web/eye_makeup_ucf.avi"
KNEADING, CUTTING = "hands/kneading_dough.gif", "hands/cutting_loaf.gif"
RT1_6, RT1_10 = "rt1/videos/val/6/rgb.mp4", "rt1/videos/val/10/rgb.mp4"
BRIDGE_10, BRIDGE_14 = "bridge/videos/val/10/rgb.mp4", "bridge/videos/val/14/rgb.mp4"
HUMANOID = "lerobot_v21_g1/videos/chunk-000/observation.images.cam_high/episode_000029.mp4"
TEST_PATTERN, CLOCK = "edge/av1_video.mkv", "edge/h264_10bits.mp4"
ONE_SHOT = (MAKE_UP, KNEADING, CUTTING, RT1_6, RT1_10, BRIDGE_10, BRIDGE_14, HUMANOID, TEST_PATTERN, CLOCK)
WITHOUT_TEXT = (WRESTLING, *ONE_SHOT[:-1])
ROBOTS = (RT1_6, RT1_10, BRIDGE_10, BRIDGE_14, HUMANOID)


@cache
def whole(name: str, short_side: int) -> np.ndarray:
    """Decode all frames of a sample, scaled: uint8 `[f h w 3]`, not to be written to."""
    with open_video(SAMPLES / name) as reader:
        frames = reader.get_batch(range(len(reader)))
    scale = short_side / min(frames.shape[1:3])
    size = round(frames.shape[2] * scale / 2) * 2, round(frames.shape[1] * scale / 2) * 2
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.HAMMING)) for f in frames])


def spread(frames: np.ndarray, count: int = 12) -> np.ndarray:
    """Choose frames as the probe does."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]


def probed(name: str, count: int = 12) -> np.ndarray:
    """Probe a sample at 160 px."""
    return spread(whole(name, 160), count)


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Draw smooth colored noise: uint8 `[h w 3]`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def pan(step: int, count: int = 40, image: np.ndarray | None = None) -> np.ndarray:
    """Move a window of 96 px over an image by `step` [px] a frame."""
    image = texture(72, 96 + step * count) if image is None else image
    return np.stack([image[:, i * step : i * step + 96] for i in range(count)])


def recoded(frames: np.ndarray, crf: int) -> np.ndarray:
    """Encode with H.264, colors at half size, and decode."""
    with open_video(encode_frames(iter(frames), 10, crf=crf, pixel_format="yuv420p")) as reader:
        return reader.get_batch(range(len(reader)))


# Cuts


@needs_samples
@pytest.mark.parametrize("short_side", [64, 72, 90])
def test_real_jumps_are_found_and_whip_pans_are_not(short_side: int) -> None:
    # Looked at frame by frame: one hand-held shot. At 229 the stream breaks (the lower half smears into stripes, from
    # 230 on the whole image), the broken image stands until 267, and at 268 the shot is back. 48, 187 and 208 are
    # blurred swings of the camera; at 206 it swings while frames 204 and 206 are shown twice.
    assert find_cuts(whole(WRESTLING, short_side)) == [229, 268]


@needs_samples
@pytest.mark.parametrize("name", ONE_SHOT)
def test_one_shot_has_no_cut(name: str) -> None:
    # Looked at: each is one shot. The robots were recorded at 3 Hz, so they jump; the dough fills the image.
    assert find_cuts(whole(name, 72)) == []


@needs_samples
def test_every_splice_of_two_real_shots_is_found_where_it_is() -> None:
    shots = {name: whole(name, 72)[:24, :72, :72] for name in (WRESTLING, *ONE_SHOT)}
    for before, first in shots.items():
        for after, second in shots.items():
            if before != after:
                assert find_cuts(np.concatenate([first, second])) == [len(first)], (before, after)


@needs_samples
@pytest.mark.parametrize("length", [1, 2, 3])
def test_flashes_and_dropped_images_are_no_cuts(length: int) -> None:
    for name in (MAKE_UP, KNEADING, RT1_10, HUMANOID):
        frames, middle = whole(name, 72), len(whole(name, 72)) // 2
        for change in (lambda part: np.minimum(part * 1.2 + 120, 255), lambda _: 255, lambda _: 0):
            flashing = frames.copy()
            flashing[middle : middle + length] = change(flashing[middle : middle + length].astype(float))
            assert find_cuts(flashing) == [], name


@pytest.mark.parametrize("step", [1, 5, 10, 25])
def test_pans_are_no_cuts(step: int) -> None:
    assert find_cuts(pan(step)) == []


@pytest.mark.parametrize("step", [1, 5, 10])
def test_a_cut_between_two_pans_is_found(step: int) -> None:
    other = pan(step, image=texture(72, 96 + 40 * step, 1))
    assert find_cuts(np.concatenate([pan(step), other])) == [40]


def test_quick_compilation_is_cut_at_each_border() -> None:
    shots = [pan(1, 6, texture(72, 128, seed)) for seed in range(10)]
    assert find_cuts(np.concatenate(shots)) == list(range(6, 60, 6))


def test_cuts_do_not_depend_on_the_chunks_of_a_long_video() -> None:
    long = np.concatenate(
        [pan(1, 255, texture(64, 360, 0)), pan(1, 258, texture(64, 360, 1)), pan(1, 3, texture(64, 360, 2))]
    )
    assert find_cuts(long) == [255, 513]


def test_flat_and_short_videos_have_no_cuts() -> None:
    rng = np.random.default_rng(0)
    for level in (0, 120, 250):
        noisy = rng.integers(level, level + 4, (30, 64, 80, 3)).astype(np.uint8)
        assert find_cuts(noisy) == []
    assert find_cuts(texture(64, 96)[None]) == []


def test_scenes_cover_what_is_long_enough() -> None:
    assert scenes([], 10) == [(0, 10)]
    assert scenes([4, 5, 9], 10) == [(0, 4), (4, 5), (5, 9), (9, 10)]
    assert scenes([4, 5, 9], 10, min_frames=4) == [(0, 4), (5, 9)]
    assert scenes([], 0) == []


# Quality


@needs_samples
def test_camera_motion_tells_cameras_from_hands() -> None:
    swinging = measure_quality(whole(WRESTLING, 160)[182:228:4])
    shaking = measure_quality(whole(WRESTLING, 160)[60:170:10])
    assert min(swinging.camera_motion, shaking.camera_motion) > 0.3
    assert min(swinging.camera_shift, shaking.camera_shift) > 0.01
    for name in (MAKE_UP, KNEADING, CUTTING, *ROBOTS):
        quality = measure_quality(probed(name))
        assert quality.camera_motion < 0.06 and quality.camera_shift == 0 and quality.motion > 1, name


@pytest.mark.parametrize("step", [2, 6, 12])
def test_a_pan_is_all_camera_and_of_the_right_length(step: int) -> None:
    quality = measure_quality(pan(step, 12))
    assert quality.camera_motion > 0.95
    assert quality.camera_shift == pytest.approx(step / np.hypot(72, 96), rel=0.05)


def test_a_thing_moving_before_a_standing_camera_is_no_camera_motion() -> None:
    frames = np.stack([texture(160, 240)] * 12)
    for i, frame in enumerate(frames):
        frame[60:110, 10 + 15 * i : 60 + 15 * i] = texture(56, 56, 1)[:50, :50]
    quality = measure_quality(frames)
    assert quality.motion > 3 and quality.camera_motion < 0.02 and quality.camera_shift == 0


@needs_samples
def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    from scipy.ndimage import gaussian_filter

    for name in (BRIDGE_14, RT1_6, CUTTING, MAKE_UP):
        frames = probed(name)
        blurred = [measure_quality(gaussian_filter(frames, (0, s, s, 0))).sharpness for s in (0, 0.7, 1.5, 3)]
        assert blurred[0] > 0.1 and blurred[2] < 0.02 and blurred == sorted(blurred, reverse=True), name
        dim = measure_quality((frames * 0.5 + 60).astype(np.uint8)).sharpness
        assert dim == pytest.approx(blurred[0], rel=0.15), name


def test_luma_tells_black_white_and_washed_out() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 256).astype(np.uint8)[None, None, :, None], (2, 64, 256, 3))
    for frames, mean, low, high in (
        (np.zeros((2, 64, 64, 3), np.uint8), 0, 0, 0),
        (np.full((2, 64, 64, 3), 255, np.uint8), 255, 255, 255),
        (ramp, 127.5, 2, 253),
        ((ramp * 0.1 + 150).astype(np.uint8), 162, 150, 175),
    ):
        quality = measure_quality(frames)
        assert (quality.luma_mean, quality.luma_low, quality.luma_high) == pytest.approx((mean, low, high), abs=1.5)


def captioned(frames: np.ndarray, lines: Sequence[str], size: int, outline: int, top: float) -> np.ndarray:
    """Write white lines of text, with a black outline, over each frame."""
    written = []
    for frame in frames:
        image = Image.fromarray(frame)
        for i, line in enumerate(lines):
            where = (frame.shape[1] / 2, frame.shape[0] * top + i * 1.3 * size)
            ImageDraw.Draw(image).text(
                where, line, (255, 255, 255), ImageFont.load_default(size), "mm", stroke_width=outline, stroke_fill=0
            )
        written.append(np.asarray(image))
    return np.stack(written)


@needs_samples
def test_text_overlay_tells_captions_from_real_clips() -> None:
    for name in WITHOUT_TEXT:
        assert measure_quality(probed(name)).text_overlay < 0.001, name
    for name in (WRESTLING, CUTTING, KNEADING, RT1_10, BRIDGE_14, HUMANOID):
        for size, outline in ((10, 1), (14, 1), (20, 2), (14, 0)):
            lines = ["mix the flour with water"] if outline else ["mix the flour"]
            clip = captioned(probed(name), lines, size, outline, 0.85)
            assert measure_quality(clip).text_overlay > 0.01, (name, size)
            assert measure_quality(recoded(clip, 28)).text_overlay > 0.005, (name, size)
    assert measure_quality(probed(CLOCK)).text_overlay > 0.01, "a running clock is written over it"


@pytest.mark.parametrize("ground", [0, 60, 120])
def test_title_card_is_text(ground: int) -> None:
    card = np.full((6, 160, 240, 3), ground, np.uint8)
    lines = ["HOW TO MAKE BREAD", "episode 12: kneading", "with two hands"]
    assert measure_quality(captioned(card, lines, 16, 0, 0.3)).text_overlay > 0.05
    assert measure_quality(captioned(card[:1], lines, 16, 0, 0.3)).text_overlay > 0.05


def test_quality_is_finite_floats_for_any_image() -> None:
    for shape in ((1, 3, 3, 3), (3, 161, 97, 3), (12, 200, 5, 3)):
        for frames in (np.full(shape, 255, np.uint8), np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)):
            quality = measure_quality(frames)
            values = [getattr(quality, name) for name in quality.__slots__]
            assert all(type(value) is float and np.isfinite(value) for value in values)


# Hands


@needs_samples
def test_moving_hands_score_above_robots() -> None:
    score = SkinMotionHands()
    hands = {name: score(probed(name, 14)) for name in (KNEADING, CUTTING, WRESTLING)}
    others = {name: score(probed(name, 14)) for name in (*ROBOTS, TEST_PATTERN, CLOCK)}
    assert min(hands.values()) > 0.5 > max(others.values())
    assert max(others[RT1_6], others[RT1_10], others[BRIDGE_14]) < 0.25
    assert max(others[TEST_PATTERN], others[CLOCK]) < 0.01
    # Over-exposed skin is missed: what the docstring owns up to.
    assert 0.25 < score(probed(MAKE_UP, 14)) < 0.5


@needs_samples
def test_hand_score_does_not_depend_on_the_probe() -> None:
    score = SkinMotionHands()
    for name in (KNEADING, CUTTING, RT1_6, BRIDGE_10):
        values = [score(probed(name, count)) for count in (12, 14, 16)] + [score(spread(whole(name, 240), 14))]
        assert max(values) - min(values) < 0.12, name


def skin_blob(where: Sequence[tuple[int, int]], ground: int = 200) -> np.ndarray:
    """Draw a skin-colored disc at (row, column) of each frame, on gray."""
    frames = np.full((len(where), 160, 240, 3), ground, np.uint8)
    rows, columns = np.mgrid[:160, :240]
    for frame, (row, column) in zip(frames, where, strict=True):
        frame[(rows - row) ** 2 + (columns - column) ** 2 < 25**2] = (190, 130, 100)
    return frames


def test_hands_must_be_skin_and_must_act() -> None:
    score = SkinMotionHands()
    places = [(80 + 40 * (i % 2), 60 + 60 * (i % 3)) for i in range(12)]
    assert score(skin_blob(places)) > 0.5
    assert score(skin_blob(places)[..., ::-1].copy()) == 0, "blue"
    assert score(skin_blob([(80, 60)] * 12)) == 0, "still"
    assert score(skin_blob(places)[:2]) == 0, "two frames show no lasting motion"
    warm = (skin_blob(places) * [1.0, 0.8, 0.6]).astype(np.uint8)
    assert score(warm) > 0.5, "under a warm lamp"
    gray_thing = skin_blob(places)
    gray_thing[(gray_thing == (190, 130, 100)).all(-1)] = 120
    assert score((gray_thing * [1.0, 0.8, 0.6]).astype(np.uint8)) == 0, "gray under a warm lamp looks like skin"
    wood = np.clip(texture(160, 240 + 20 * 12)[..., :1] * [0.30, 0.22, 0.17] + [90, 66, 51], 0, 255).astype(np.uint8)
    wood[:10] = 220
    assert score(np.stack([wood[:, 20 * i : 20 * i + 240] for i in range(12)])) < 0.1, "a camera panning over wood"


def test_mediapipe_is_asked_for_by_name_and_only_with_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"hand_landmarker\.task"):
        MediapipeHands(tmp_path / "absent.task")
    model = tmp_path / "hand_landmarker.task"
    model.write_bytes(b"no model")
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(EnvironmentMissing, match="pip install mediapipe"):
        MediapipeHands(model)


def test_mediapipe_score_is_the_mean_of_the_surest_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace as Named

    seen: list[np.ndarray] = []

    def detect(image: np.ndarray) -> Named:
        seen.append(image)
        return Named(handedness=[[Named(score=0.25)], [Named(score=0.75)]] if image[0, 0, 0] else [])

    def create(options: Named) -> Named:
        assert options.base_options.model_asset_path == str(model)
        return Named(detect=detect)

    vision = Named(HandLandmarkerOptions=Named, HandLandmarker=Named(create_from_options=create))
    tasks = Named(vision=vision, BaseOptions=Named)
    fake = Named(tasks=tasks, Image=lambda image_format, data: data, ImageFormat=Named(SRGB=1))
    monkeypatch.setitem(sys.modules, "mediapipe", fake)
    model = tmp_path / "hand_landmarker.task"
    model.write_bytes(b"a model")
    frames = np.zeros((4, 32, 32, 3), np.uint8)
    frames[:2] = 9
    detector = MediapipeHands(model)
    assert detector(frames) == pytest.approx(0.375) and len(seen) == 4
    assert pickle.loads(pickle.dumps(detector)).model == model


# Near-duplicates


@needs_samples
@pytest.mark.parametrize("name", [name for name in (WRESTLING, *ONE_SHOT) if name != TEST_PATTERN])
def test_same_video_keeps_its_hash(name: str) -> None:
    frames = whole(name, 160)
    frames = frames[np.linspace(0, len(frames) - 1, 8).round().astype(int)]
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize((128, 96))) for frame in frames])
    brighter = np.clip(frames * 1.05 + 8, 0, 255).astype(np.uint8)
    versions = [frames, recoded(frames, 35), smaller, recoded(smaller, 35), brighter]
    hashes = np.stack([clip_hash(version) for version in versions])
    assert group_duplicates(hashes).tolist() == [-1, 0, 0, 0, 0], hamming(hashes[0], hashes)


@needs_samples
def test_different_clips_are_kept_even_of_one_steady_shot() -> None:
    hashes = [clip_hash(whole(name, 160)) for name in (WRESTLING, *ONE_SHOT)]
    assert min(hamming(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) > 200
    for name in (*ROBOTS, CUTTING, KNEADING, MAKE_UP):
        frames, half = whole(name, 160), len(whole(name, 160)) // 2
        hashes += [clip_hash(frames[:half]), clip_hash(frames[half:])]
    assert (group_duplicates(np.stack(hashes)) == -1).all()


def test_flat_clips_are_no_duplicates() -> None:
    rng = np.random.default_rng(0)
    black = rng.integers(0, 5, (8, 72, 96, 3), dtype=np.uint8)
    real = pan(6, 8)
    mostly_black = np.concatenate([black[:5], real[:3]])
    from_black = np.concatenate([black[:2], real[:6]])
    assert (clip_hash(black) == FLAT).all() and (clip_hash(black + 240) == FLAT).all()
    assert (clip_hash(real) != FLAT).all()
    clips = [black, black, mostly_black, mostly_black, real, from_black, from_black, real]
    assert group_duplicates(np.stack([clip_hash(clip) for clip in clips])).tolist() == [-1, -1, -1, -1, -1, -1, 5, 4]


def flipped(rng: np.random.Generator, row: np.ndarray, count: int) -> np.ndarray:
    """Flip `count` bits of uint64 `[m]`."""
    out = row.copy()
    for bit in rng.choice(64 * len(row), count, replace=False).tolist():
        out[bit // 64] ^= np.uint64(1 << (bit % 64))
    return out


def first_kept_within(hashes: np.ndarray, max_distance: int) -> list[int]:
    """Group by comparing each clip with every one kept: the definition."""
    original, kept = [], []
    for i, row in enumerate(hashes):
        near = [
            j for j in kept if hamming(hashes[j], row) <= max_distance and ((hashes[j] == FLAT) == (row == FLAT)).all()
        ]
        original.append(near[0] if near else -1)
        if not near and 2 * (row == FLAT).sum() <= len(row):
            kept.append(i)
    return original


@pytest.mark.parametrize(("num_hashes", "max_distance"), [(8, 20), (1, 5), (4, 31), (3, 0)])
def test_groups_are_those_of_comparing_all_pairs(num_hashes: int, max_distance: int) -> None:
    rng = np.random.default_rng(num_hashes)
    bases = rng.integers(1, 2**64, (20, num_hashes), dtype=np.uint64)
    hashes = np.stack(
        [flipped(rng, bases[rng.integers(20)], rng.integers(0, 2 * max_distance + 2)) for _ in range(700)]
    )
    hashes[rng.random(hashes.shape) < 0.05] = FLAT
    got = group_duplicates(hashes, max_distance)
    assert got.tolist() == first_kept_within(hashes, max_distance)
    assert (got >= 0).sum() > 100 and (got == -1).sum() > 100


def test_chains_of_small_steps_do_not_join_their_ends() -> None:
    chain = np.full((4, 8), 0xFFFF, np.uint64)
    for step in range(1, 4):
        chain[step:, step] ^= np.uint64(0x7FFF << 20)
    assert hamming(chain[0], chain).tolist() == [0, 15, 30, 45]
    assert group_duplicates(chain, 20).tolist() == [-1, 0, -1, 2]


def test_planted_duplicates_of_100_000_are_all_found() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(1, 2**64, (100_000, 8), dtype=np.uint64)
    originals, copies = rng.choice(50_000, 500, replace=False), 50_000 + rng.choice(50_000, 500, replace=False)
    for original, copy in zip(originals, copies, strict=True):
        hashes[copy] = flipped(rng, hashes[original], 20)
    found = group_duplicates(hashes)
    assert (found[copies] == originals).all() and (found >= 0).sum() == 500


def test_many_copies_of_one_clip_take_no_pairwise_time() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(1, 2**64, 8, dtype=np.uint64)
    hashes = np.stack([flipped(rng, base, 4) for _ in range(20_000)])
    hashes[0] = base
    assert (group_duplicates(hashes) == np.r_[-1, np.zeros(19_999, int)]).all()
    assert group_duplicates(hashes[:0]).shape == (0,)


# Hostile input


NOT_RGB = [np.zeros(shape, np.uint8) for shape in ((4, 32, 32), (4, 32, 32, 4), (0, 32, 32, 3), (4, 0, 32, 3))]
NOT_BYTES = [np.zeros((4, 32, 32, 3), np.float32), np.full((4, 32, 32, 3), np.nan), [[1, 2]]]


@pytest.mark.parametrize("frames", [*NOT_RGB, *NOT_BYTES])
def test_what_is_no_video_is_one_sentence(frames: np.ndarray) -> None:
    for measure in (find_cuts, measure_quality, SkinMotionHands(), clip_hash):
        with pytest.raises(DataError, match="expected uint8"):
            measure(frames)


def test_bad_hashes_and_distances_are_one_sentence() -> None:
    good = np.ones((3, 8), np.uint64)
    for bad in (good[0], good.astype(np.int64), good[:, :0]):
        with pytest.raises(DataError, match="expected uint64"):
            group_duplicates(bad)
    for distance in (-1, 32):
        with pytest.raises(ConfigError, match="0 to 31"):
            group_duplicates(good, distance)
