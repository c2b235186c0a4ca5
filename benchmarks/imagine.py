"""Predicted beside real: the model imagines futures of test episodes, the expert and the policy act them out."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from ..data_pipeline.files import write_bytes, write_json
from ..data_pipeline.frames import resize_frames
from ..data_pipeline.video import is_video, open_video, write_video
from ..gr_model.contracts import Array
from ..gr_model.errors import ConfigError, DataError
from .calvin.episodes import run_task, start_state, task_start
from .control import make_control
from .playtable.cameras import CameraConfig
from .playtable.environment import CAMERAS, CONTROL_HZ, PlayTable
from .playtable.expert_motion import ExpertStyle
from .playtable.experts import act
from .playtable.instructions import sentences
from .playtable.tasks import TASKS
from .video_metrics import StepMetrics, compare_futures, gather_steps

if TYPE_CHECKING:
    from ..gr_model.policy_loading import Assembled
    from ..gr_model.sampling import SamplingConfig

_SHOWN = (
    "open_drawer",
    "move_slider_left",
    "turn_on_lightbulb",
    "lift_red_block_table",
    "push_blue_block_right",
    "turn_off_led",
    "close_drawer",
    "lift_pink_block_table",
)
_MAX_STEPS = 120

_COLUMNS = 12
"""Pictures in a row of a sheet at most."""

_FRAMES_AT_ONCE = 32
"""Frames of a clip that are held before they are resized."""


@dataclass(frozen=True, kw_only=True)
class TestEpisode:
    """What really happened: pictures of the expert every `stride` control steps, camera -> uint8 `[f h w 3]`.

    states: the robot's states at the pictures `[f 16]`.
    """

    task: str
    instruction: str
    images: dict[str, Array]
    states: Array
    scene_obs: Array


def act_out(env: PlayTable, task: str, *, seed: int, index: int, stride: int) -> TestEpisode | None:
    """Let the scripted expert act a task from a random start, undisturbed; None where it fails."""
    scene_obs = task_start(env, task, seed, index)
    start, images = env.world_state(), {name: [env.draw(name)] for name in CAMERAS}
    states = [env.observe("", images=False).state_vector()]
    for step in range(1, _MAX_STEPS + 1):
        env.step_pose(*act(task, env.world_state(), env.spec_scene, ExpertStyle()))
        if step % stride == 0:
            for name, frames in images.items():
                frames.append(env.draw(name))
            states.append(env.observe("", images=False).state_vector())
        if TASKS[task].done(start, env.world_state()):
            stacked = {name: np.stack(frames) for name, frames in images.items()}
            return TestEpisode(
                task=task, instruction=sentences(task)[0], images=stacked, states=np.stack(states), scene_obs=scene_obs
            )
    return None


def test_episodes(env: PlayTable, tasks: list[str], *, seed: int, stride: int) -> list[TestEpisode]:
    """Act out tasks, one start each; failures of the expert are left out."""
    numbered = [(task, tasks[:i].count(task)) for i, task in enumerate(tasks)]
    acted = (act_out(env, t, seed=seed, index=n, stride=stride) for t, n in tqdm(numbered, desc="real", unit="episode"))
    return [episode for episode in acted if episode is not None and len(episode.images["static"]) > 2]


def imagine(
    *,
    policy: str = "pretrained",
    out: Path = Path("runs/imagine"),
    image: Path | dict[str, Path] | None = None,
    clip: Path | dict[str, Path] | None = None,
    text: str = "",
    num_frames: int = 24,
    grid: bool = False,
    scene_name: str = "D",
    episodes: int = 8,
    metric_episodes: int = 34,
    horizon: int = 4,
    decoding_steps: int = 16,
    temperature: float = 0.8,
    choice_temperature: float = 8.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    executed_steps: int = 5,
    image_px: int = 64,
    frame_stride: int = 5,
    seed: int = 300,
) -> dict[str, Any]:
    """Imagine the future of a picture or clip of yours, or of test episodes in the simulator; write videos and figures.

    Args:
        policy: "pretrained" (shipped) or a folder with a released model.
        out: folder for the videos; for test episodes also `episodes.json` and `metrics.json`.
        image: picture to start from, of the model's first camera, or {camera: picture}; other cameras are masked out.
        clip: video (or {camera: video}) whose first frames are the start; the others are shown beside the predicted.
        text: sentence that says what happens after `image` or the start of `clip`; empty for none.
        num_frames: frames to predict after them, any number.
        grid: also write `sheet.png`, a row of pictures for each camera.
        scene_name: scene of the test episodes.
        episodes: episodes shown as videos: predicted, real, and the policy's own roll-out.
        metric_episodes: episodes from which the figures are measured.
        horizon: predicted frames for the figures.
        decoding_steps: passes that make one frame of a video.
        temperature: of the codes of the videos; the figures are those of the likeliest codes.
        choice_temperature: 0 draws the codes the model is surest of first, a large number draws them in any order.
        top_k: draw only the k likeliest codes; 0 for all.
        top_p: draw only the likeliest codes that hold this share of the probability.
        guidance: above 1, follow the sentence more than the model by itself does (trained with text dropout).
        executed_steps: control steps of each chunk in the policy's roll-out.
        image_px: picture side in the simulator [px].
        frame_stride: control steps from frame to frame in the simulator.
        seed: seed of starts and sampling.
    """
    import torch

    from ..gr_model.policy_loading import assemble, load_imagination, load_policy
    from ..gr_model.sampling import SamplingConfig

    torch.set_num_threads(min(2, torch.get_num_threads()))
    drawn = SamplingConfig(
        passes=decoding_steps, temperature=temperature, choice_temperature=choice_temperature, top_k=top_k,
        top_p=top_p, guidance=guidance, seed=seed,
    )  # fmt: skip
    if image is not None or clip is not None:
        start = read_start(assemble(policy), image, clip, num_frames)
        return _continue_start(out, start, text, num_frames, drawn, grid)
    if text or grid:
        raise ConfigError("imagine: expected --image or --clip with --text and --grid, got neither; name a file.")
    shown, measured, rollouts = _real_episodes(
        load_policy(policy), scene_name, episodes, metric_episodes, executed_steps, image_px, frame_stride, seed
    )
    dream, likeliest = load_imagination(policy, sampling=drawn), load_imagination(policy)
    out.mkdir(parents=True, exist_ok=True)
    rows = _write_videos(out, dream, shown, rollouts, CONTROL_HZ / frame_stride)
    metrics = _measure(likeliest, measured, horizon)
    write_json(out / "episodes.json", rows)
    write_json(out / "metrics.json", metrics)
    return {"episodes": len(rows), "metric_episodes": len(measured)}


def _real_episodes(
    actor: Any,
    scene_name: str,
    episodes: int,
    metric_episodes: int,
    executed_steps: int,
    image_px: int,
    stride: int,
    seed: int,
) -> tuple[list[TestEpisode], list[TestEpisode], list[tuple[dict[str, Array], bool]]]:
    """Act out episodes to show and episodes to measure; let the policy act from the starts of those to show."""
    camera = CameraConfig(static_px=image_px, gripper_px=image_px)
    env = PlayTable(scene_name, camera=camera, render_mode=None)
    try:
        names = list(TASKS)
        measured = test_episodes(env, [names[i % len(names)] for i in range(metric_episodes)], seed=seed, stride=stride)
        shown = test_episodes(env, [_SHOWN[i % len(_SHOWN)] for i in range(episodes)], seed=seed + 1, stride=stride)
        rollouts = [_own_rollout(env, actor, e, executed_steps, stride) for e in shown]
    finally:
        env.close()
    return shown, measured, rollouts


@dataclass(frozen=True, kw_only=True)
class Start:
    """Pictures to go on from, at the model's frame rate and size, camera -> uint8 `[f h w 3]`.

    parts: the model with its encoders.
    real: what came after the pictures; no frames for a single picture.
    frame_s: time from frame to frame [s].
    """

    parts: Assembled
    images: dict[str, Array]
    real: dict[str, Array]
    frame_s: float


def read_start(
    parts: Assembled,
    image: Path | Mapping[str, Path] | None,
    clip: Path | Mapping[str, Path] | None,
    num_frames: int,
) -> Start:
    """Read the start of a roll-out from a picture or a clip (or one for each camera), resized for the model.

    A clip is read at the model's frame rate: its first `max_context` frames are the start, `num_frames` more are real.

    Raises:
        ConfigError: picture and clip together, neither, or a camera that the model does not know.
        DataError: a file that is missing or broken.
    """
    if (image is None) == (clip is None):
        raise ConfigError("imagine: expected either --image or --clip, got both or neither; name one of them.")
    config = parts.release.model.config
    cameras = [camera.name for camera in config.cameras]
    source = image if clip is None else clip
    files = dict(source) if isinstance(source, Mapping) else {cameras[0]: Path(str(source))}
    unknown = sorted(set(files) - set(cameras))
    if unknown or not files:
        raise ConfigError(f"imagine: expected cameras of {cameras}, got {unknown}; name them as the model does.")
    frame_s = parts.release.frame_step / parts.release.control_hz
    h, side = config.max_context, parts.vqgan.config.resolution
    if clip is None:
        frames = {name: resize_frames(_read_picture(file), side) for name, file in files.items()}
    else:
        frames = {name: _read_clip(file, frame_s, h + num_frames, side) for name, file in files.items()}
    shortest = min(map(len, frames.values()))
    return Start(
        parts=parts,
        images={name: values[: min(h, shortest)] for name, values in frames.items()},
        real={name: values[h:shortest] for name, values in frames.items()},
        frame_s=frame_s,
    )


def _read_picture(file: Path) -> Array:
    if is_video(file):
        raise DataError(f"{file}: expected a picture to start from, got a video; give it as --clip.")
    try:
        with Image.open(file) as picture:
            return np.asarray(picture.convert("RGB"))[None]
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file, expected a picture; check the path.") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{file}: expected a picture, got a file that is none or broken ({error}); save it again."
        ) from error


def _read_clip(file: Path, frame_s: float, most: int, side: int) -> Array:
    """Read the frames of a video that lie nearest to every `frame_s` [s], at most `most`, resized."""
    with open_video(file) as reader:
        times = reader.times
        wanted = np.arange(0.0, times[-1] + 1e-6, frame_s)[:most]
        nearest = np.searchsorted((times[1:] + times[:-1]) / 2, wanted)
        blocks = [nearest[i : i + _FRAMES_AT_ONCE] for i in range(0, len(nearest), _FRAMES_AT_ONCE)]
        return np.concatenate([resize_frames(reader.get_batch(block), side) for block in blocks])


def _continue_start(
    out: Path, start: Start, text: str, num_frames: int, sampling: SamplingConfig, grid: bool
) -> dict[str, Any]:
    """Predict frames after a start and write a video of each camera, what really came beside it."""
    import torch

    from ..gr_model.context import Context
    from ..gr_model.generation import stream_frames

    parts = start.parts
    features, mask = parts.text.encode([text])
    length = max(1, int(mask.any(0).nonzero()[0].max(initial=0)) + 1)
    context = Context(
        codes={name: torch.as_tensor(parts.vqgan.encode_frames(f)).long()[None] for name, f in start.images.items()},
        text=torch.as_tensor(features[:, :length]).float(),
        text_mask=torch.as_tensor(mask[:, :length]) & bool(text),
    )
    stream = stream_frames(parts.release.model, context, num_frames=num_frames, sampling=sampling)
    codes = list(tqdm(stream, desc="imagine", unit="frame", total=num_frames))
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Array] = {}
    for name, first in start.images.items():
        frames = parts.vqgan.decode_frames(torch.cat([frame[name] for frame in codes]).numpy())
        rows[f"{name}, predicted"] = predicted = np.concatenate([first, frames])
        video = predicted
        if len(start.real[name]):
            rows[f"{name}, real"] = real = _as_long(np.concatenate([first, start.real[name]]), len(predicted))
            video = np.concatenate([predicted, real], axis=2)
        write_video(out / f"{name}.mp4", video, 1 / start.frame_s, pixel_format="yuv420p")
    if grid:
        write_grid(out / "sheet.png", rows, text, start.frame_s)
    return {"cameras": list(start.images), "start_frames": len(first), "predicted_frames": len(codes)}


def _as_long(frames: Array, length: int) -> Array:
    """Cut frames to a length, or fill up with grey where the clip has ended."""
    grey = np.full((max(0, length - len(frames)), *frames.shape[1:]), 128, np.uint8)
    return np.concatenate([frames[:length], grey])


def write_grid(path: Path, rows: Mapping[str, Array], title: str, frame_s: float) -> None:
    """Draw pictures of each row, uint8 `[f h w 3]`, evenly spaced in time, its name on the left and the time above."""
    length = min(map(len, rows.values()))
    shown = np.unique(np.linspace(0, length - 1, min(_COLUMNS, length)).round().astype(int))
    left, top, side = 130, 44, 96
    sheet = Image.new("RGB", (left + len(shown) * (side + 2), top + len(rows) * (side + 2)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((4, 4), title, fill="black", font=font)
    for line, (name, frames) in enumerate(rows.items()):
        y = top + line * (side + 2)
        pen.text((4, y + side // 2 - 8), name, fill="black", font=font)
        for column, index in enumerate(shown):
            x = left + column * (side + 2)
            if line == 0:
                pen.text((x + 2, 25), f"{index * frame_s:.2f} s", fill="black", font=font)
            sheet.paste(Image.fromarray(frames[index]).resize((side, side), Image.Resampling.LANCZOS), (x, y))
    data = io.BytesIO()
    sheet.save(data, format="PNG")
    write_bytes(path, data.getvalue())


def _write_videos(
    out: Path, dream: Any, shown: list[TestEpisode], rollouts: list[tuple[dict[str, Array], bool]], fps: float
) -> list[dict[str, Any]]:
    """Write predicted, real and acted videos of each episode and camera; return the rows of `episodes.json`."""
    rows = []
    for number, (episode, (rollout, success)) in enumerate(zip(shown, rollouts, strict=True)):
        first = {name: frames[:1] for name, frames in episode.images.items()}
        predicted = dream(first, [episode.instruction], len(episode.images["static"]) - 1, episode.states[:1])
        for name in CAMERAS:
            frames = np.concatenate([first[name], predicted.images[name][0]])
            row: dict[str, Any] = {
                "instruction": episode.instruction,
                "task": episode.task,
                "camera": name,
                "success": success,
            }
            for kind, video in (
                ("predicted", frames),
                ("real", episode.images[name]),
                ("rollout", rollout[name]),
            ):
                row[kind] = f"{number:02d}_{name}_{kind}.mp4"
                write_video(out / str(row[kind]), video, fps)
            rows.append(row)
    return rows


def _own_rollout(
    env: PlayTable, actor: Any, episode: TestEpisode, executed_steps: int, stride: int
) -> tuple[dict[str, Array], bool]:
    """Let the policy act from the same start; return its pictures and whether it succeeded."""
    start_state(env, episode.scene_obs)
    control = make_control("wbc", env)
    control.reset()
    images: dict[str, list[Array]] = {name: [] for name in CAMERAS}

    def watch(world: PlayTable, step: int) -> None:
        if step % stride == 0:
            for name, frames in images.items():
                frames.append(world.draw(name))

    result = run_task(
        env, actor, control, episode.task, executed_steps=executed_steps, max_steps=_MAX_STEPS, watch=watch
    )
    return {name: np.stack(frames) for name, frames in images.items()}, result.success


def _measure(dream: Any, episodes: list[TestEpisode], horizon: int) -> dict[str, Any]:
    """Compare roll-outs from every frame that has `horizon` frames after it with what really came.

    Starts and cameras of one episode are averaged first: episodes are independent, neighbouring frames are not.
    """
    starts = [(e, i) for e, ep in enumerate(episodes) for i in range(len(ep.images["static"]) - horizon)]
    compared: dict[int, list[list[StepMetrics]]] = {}
    for begin in tqdm(range(0, len(starts), 64), desc="imagine", unit="batch"):
        batch = starts[begin : begin + 64]
        first = {name: np.stack([episodes[e].images[name][i] for e, i in batch]) for name in CAMERAS}
        states = np.stack([episodes[e].states[i] for e, i in batch])
        predicted = dream(first, [episodes[e].instruction for e, _ in batch], horizon, states)
        for row, (e, i) in enumerate(batch):
            for name in CAMERAS:
                window = episodes[e].images[name][i : i + 1 + horizon]
                codes = dream.encode(window)
                steps = compare_futures(
                    predicted=predicted.images[name][row],
                    real=window[1:],
                    current=window[0],
                    predicted_codes=predicted.codes[name][row],
                    real_codes=codes[1:],
                    current_codes=codes[0],
                )
                compared.setdefault(e, []).append(steps)
    return gather_steps([_average(rows) for rows in compared.values()])


def _average(rows: list[list[StepMetrics]]) -> list[StepMetrics]:
    """Average comparisons step by step; what is undefined (no pixel moved) is left out."""
    averaged = []
    for steps in zip(*rows, strict=True):
        values = {}
        for field in fields(StepMetrics):
            column = np.array([getattr(step, field.name) for step in steps], float)
            finite = column[np.isfinite(column)]
            values[field.name] = float(finite.mean()) if len(finite) else float("nan")
        values["horizon"] = steps[0].horizon
        averaged.append(StepMetrics(**values))  # type: ignore[arg-type]
    return averaged
