"""Video reading and writing: what is written comes back, turned images stand, broken files give the reason."""

from pathlib import Path

import numpy as np
import pytest

from gr2.contracts import Episode
from gr2.data_pipeline.store.episodes import list_episodes, read_episode, read_facts, write_episode
from gr2.data_pipeline.video.frames import resize_frames
from gr2.data_pipeline.video.reader import open_video, write_video
from gr2.errors import DataError, EnvironmentMissing

SAMPLES = Path(__file__).parents[2] / "../shared/real_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="real sample videos are not beside the checkout")


def moving_blocks(num_frames: int = 40, size: int = 64, seed: int = 0) -> np.ndarray:
    """Draw colored blocks of 3 to 5 pixels, some of which move: uint8 `[f h w 3]`."""
    rng = np.random.default_rng(seed)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    frames[:] = rng.integers(100, 200, 3)
    for block in range(14):
        row, column = rng.integers(0, size - 6, 2)
        side, color = rng.integers(3, 6), rng.integers(0, 255, 3)
        for t in range(num_frames):
            top = (row + t * (block % 3 == 0)) % (size - 6)
            frames[t, top : top + side, column : column + side] = color
    return frames


def mean_error(a: np.ndarray, b: np.ndarray) -> float:
    """Give the mean absolute difference [gray levels]."""
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_written_video_comes_back_within_one_gray_level(tmp_path: Path, backend: str) -> None:
    frames = moving_blocks()
    write_video(tmp_path / "a.mp4", frames, fps=7.5)
    with open_video(tmp_path / "a.mp4", backend=backend) as reader:
        assert reader.fps == pytest.approx(7.5)
        assert reader.shape == (40, 64, 64) and len(reader) == 40
        assert mean_error(reader.get_batch(range(40)), frames) < 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_a_video_is_a_path_a_string_or_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, np.full((3, 16, 16, 3), 90, np.uint8), fps=10)
    frames = []
    for source in (path, str(path), path.read_bytes()):
        with open_video(source) as reader:
            frames.append(reader.get_batch([0, 2]))
    assert all(np.array_equal(frames[0], other) for other in frames[1:])
    with pytest.raises(DataError, match="no such file"):
        open_video(str(tmp_path / "b.mp4"))


def test_halved_color_would_destroy_small_blocks(tmp_path: Path) -> None:
    frames = moving_blocks()
    write_video(tmp_path / "a.mp4", frames, fps=10, pixel_format="yuv420p")
    with open_video(tmp_path / "a.mp4") as reader:
        assert mean_error(reader.get_batch(range(40)), frames) > 1.5


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_any_order_of_indices_gives_the_frames_of_a_sequential_read(tmp_path: Path, backend: str) -> None:
    write_video(tmp_path / "a.mp4", moving_blocks(100), fps=10)
    with open_video(tmp_path / "a.mp4", backend=backend) as reader:
        everything = reader.get_batch(range(100))
    for wanted in ([99, 0, 50], [3, 3, 2], [17], [16, 15, 48], list(range(99, -1, -7))):
        with open_video((tmp_path / "a.mp4").read_bytes(), backend=backend) as reader:
            assert np.array_equal(reader.get_batch(wanted), everything[wanted]), wanted


@needs_samples
def test_av1_gif_and_avi_are_read_in_any_order() -> None:
    for name, shape in (("edge/av1_video.mkv", (125, 360, 640)), ("hands/cutting_loaf.gif", (40, 180, 320))):
        with open_video(SAMPLES / name) as reader:
            assert reader.backend == "pyav" and reader.shape == shape
            assert reader.get_batch([len(reader) - 1]).any()
    with open_video(SAMPLES / "web/eye_makeup_ucf.avi") as reader:
        everything = reader.get_batch(range(len(reader)))
        assert np.array_equal(reader.get_batch([163, 0, 82]), everything[[163, 0, 82]])
    with pytest.raises(DataError, match="corrupt"), open_video(SAMPLES / "edge/corrupted.mp4") as reader:
        reader.get_batch(range(len(reader)))


def test_rotation_is_applied_by_all_decoders(tmp_path: Path) -> None:
    frames = np.zeros((8, 32, 64, 3), np.uint8)
    frames[:, :16, :20] = (255, 0, 0)
    write_video(tmp_path / "a.mp4", frames, fps=8)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    one = 0x10000
    for turns, rows in (
        (3, [0, one, 0, -one, 0, 0]),
        (1, [0, -one, 0, one, 0, 0]),
        (2, [-one, 0, 0, 0, -one, 0]),
    ):
        for i, value in enumerate(rows):
            data[matrix + 4 * i : matrix + 4 * i + 4] = value.to_bytes(4, "big", signed=True)
        with open_video(bytes(data)) as reader:
            turned = reader.get_batch([0, 7])
        assert mean_error(turned[0], np.rot90(frames[0], turns)) < 2
        for backend in ("decord", "torchcodec"):
            try:
                reader = open_video(bytes(data), backend)
            except EnvironmentMissing:
                continue
            with reader:
                assert reader.shape == (8, *turned.shape[1:3]) and np.array_equal(reader.get_batch([0, 7]), turned)
        with open_video(bytes(data), height=24, width=16) as reader:
            small = reader.get_batch([0])
        assert small.shape == (1, 24, 16, 3) and mean_error(small[0].mean((0, 1)), turned[0].mean((0, 1))) < 3


def test_broken_files_say_why(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_blocks(), fps=10)
    whole = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(DataError, match="no such file"):
        open_video(tmp_path / "missing.mp4")
    with pytest.raises(DataError, match="empty"):
        open_video(b"")
    for cut in (len(whole) // 2, 200):
        with pytest.raises(DataError, match=r"truncated|no video stream"):
            open_video(whole[:cut])
    with open_video(whole) as reader, pytest.raises(DataError, match=r"expected an index in \[0, 40\)"):
        reader.get_batch([40])
    with pytest.raises(DataError, match="uint8"):
        write_video(tmp_path / "b.mp4", np.zeros((2, 8, 8, 3)), fps=1)
    assert not (tmp_path / "b.mp4").exists()


def test_resizing_averages_areas() -> None:
    frames = moving_blocks(2, 200)
    borders = np.linspace(0, 200, 65)
    pixels = np.arange(200)
    covered = np.minimum(borders[1:, None], pixels + 1) - np.maximum(borders[:-1, None], pixels)
    weights = np.maximum(covered, 0) * 64 / 200
    exact = np.einsum("yh,xw,fhwc->fyxc", weights, weights, frames, optimize=True)
    assert np.abs(resize_frames(frames, 64) - exact).mean() < 0.6
    assert resize_frames(frames, 200) is frames


def test_images_keep_their_aspect_ratio() -> None:
    frames = np.zeros((1, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = moving_blocks(1, 40)[..., :]
    assert np.array_equal(resize_frames(frames, 40), frames[:, :, 20:60])
    assert np.array_equal(resize_frames(frames.transpose(0, 2, 1, 3), 40), frames[:, :, 20:60].transpose(0, 2, 1, 3))
    padded = resize_frames(frames, 80, "pad")
    assert np.array_equal(padded[:, 20:60], frames) and not padded[:, :20].any() and not padded[:, 60:].any()
    half = resize_frames(frames, 40, "pad")
    assert half.shape == (1, 40, 40, 3) and half[:, 10:30].any() and not half[:, :10].any()
    squeezed = resize_frames(frames, 40, "stretch")
    assert squeezed.shape == (1, 40, 40, 3) and not np.array_equal(squeezed, resize_frames(frames, 40))


def test_square_images_are_the_same_for_every_fit() -> None:
    frames = moving_blocks(2, 50)
    found = [resize_frames(frames, size, fit) for size in (50, 32) for fit in ("crop", "pad", "stretch")]
    assert all(np.array_equal(one, found[0]) for one in found[:3])
    assert all(np.array_equal(one, found[3]) for one in found[3:])


@pytest.mark.parametrize("instruction", ["push the red block", ""])
def test_episode_comes_back(tmp_path: Path, instruction: str) -> None:
    rng = np.random.default_rng(1)
    episode = Episode(
        images={"static": moving_blocks(8), "gripper": moving_blocks(8, 32, 1)},
        states=rng.normal(size=(29, 16)).astype(np.float32),
        actions=rng.normal(size=(29, 8)).astype(np.float32),
        instruction=instruction,
        control_hz=20,
        frame_stride=4,
    )
    folder = write_episode(tmp_path, 42, episode, {"task": "push", "success": True})
    assert folder.name == "episode_000042" and list_episodes(tmp_path) == [folder]
    back = read_episode(folder)
    assert np.array_equal(back.states, episode.states) and np.array_equal(back.actions, episode.actions)
    assert (back.instruction, back.control_hz, back.frame_stride) == (instruction, 20, 4)
    assert all(mean_error(back.images[c], episode.images[c]) < 1.2 for c in ("static", "gripper"))
    assert read_facts(folder) == {"task": "push", "success": True}
    with pytest.raises(DataError, match="exists already"):
        write_episode(tmp_path, 42, episode, {})
    assert [path.name for path in tmp_path.iterdir()] == ["episode_000042"]


def test_episode_with_a_missing_image_is_refused(tmp_path: Path) -> None:
    episode = Episode(
        images={"static": moving_blocks(7)},
        states=np.zeros((29, 16), np.float32),
        actions=np.zeros((29, 8), np.float32),
        instruction="",
        control_hz=20,
        frame_stride=4,
    )
    with pytest.raises(DataError, match="expected 8 frames a camera"):
        write_episode(tmp_path, 0, episode, {})
    assert list(tmp_path.iterdir()) == []
