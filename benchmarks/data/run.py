"""`gr2 benchmark data`: how fast shards become batches, beside webdataset and decord, and who waits for whom."""

from __future__ import annotations

import io
import math
import os
import platform
from contextlib import redirect_stdout
from dataclasses import asdict
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ...data_pipeline.curation.filters import FilterConfig
from ...data_pipeline.curation.ingest import write_video_shards
from ...data_pipeline.files import write_json
from ...data_pipeline.video.reader import Backend, is_video, open_video
from ...errors import DataError
from .damage import count_outcomes
from .samples import NUM_FRAMES, write_clips, write_videos
from .token_speed import TOKENS_A_CLIP, index_metrics, memory_over_epochs, open_loader, token_rates
from .video_speed import cost_table, decoder_rates, loader_rates, mean_seconds, open_clips, stage_costs

Size = Literal["tiny", "S", "B", "L", "XL"]


def benchmark(
    *,
    videos: Path | None = None,
    clips: int = 20_000,
    index: int = 1_000_000,
    rounds: int = 5,
    image_size: int = 256,
    model: Size | None = "tiny",
    batch_size: int = 64,
    damaged: int = 0,
    json: Path | None = None,
) -> int:
    """Measure loader and curation on this machine, one process and one thread for each metric.

    Args:
        videos: folder of videos of your own; without, videos of moving shapes are made.
        clips: clips in the token shards that are made.
        index: clips of the largest index that is opened.
        rounds: times everything is measured, in turn.
        image_size: images of video batches [px].
        model: size whose training step is measured beside the loader; none leaves it out.
        batch_size: clips a step of that model.
        damaged: small files with random bytes changed that our decoder and decord read; 0 leaves it out.
        json: file for the metrics.

    Raises:
        DataError: the folder holds no video that can be decoded.
    """
    import torch

    torch.set_num_threads(1)
    metrics: dict[str, Any] = {"machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"}
    with TemporaryDirectory(prefix="gr2-benchmark-") as place:
        folder = Path(place)
        metrics["tokens"] = _tokens(folder / "tokens", clips, rounds)
        metrics["index"] = _index(folder / "index", index)
        metrics["video"] = _video(folder, videos, rounds, image_size)
        if damaged:
            metrics["damaged"] = _damaged(folder, damaged)
    if model is not None:
        metrics["model"] = _model(model, batch_size, metrics["tokens"]["clips_a_second"])
    if json is not None:
        write_json(json, metrics)
    return 0


def _tokens(folder: Path, clips: int, rounds: int) -> dict[str, Any]:
    with redirect_stdout(io.StringIO()):
        size = write_clips(folder, clips)
    print(f"token shards: {clips:,} clips of {NUM_FRAMES} frames x 256 codes, {size / clips:,.0f} bytes a clip")
    rates = token_rates(folder, rounds)
    for name, rate in rates.items():
        print(f"  {name:<36}{rate.text('clips/s')}")
    ours = next(iter(rates.values())).median
    print(f"  one worker gives {ours * NUM_FRAMES:,.0f} frames/s, {ours * TOKENS_A_CLIP / 1e6:,.1f} M tokens/s")
    early, late = memory_over_epochs(open_loader(folder))
    print(f"  resident memory after 2 epochs {early:.1f} MB, after 20 {late:.1f} MB ({late / early - 1:+.2%})")
    state = len(dumps(open_loader(folder).state_dict()))
    print(f"  a resume point takes {state} bytes")
    return {
        "clips": clips,
        "bytes_a_clip": size / clips,
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        "clips_a_second": ours,
        "tokens_a_second": ours * TOKENS_A_CLIP,
        "memory_megabytes": [early, late],
    }


def _index(folder: Path, count: int) -> dict[str, float]:
    metrics = index_metrics(folder, count)
    print(
        f"index of {count:,} clips: {metrics['index_megabytes']:,.0f} MB, opened and ready in "
        f"{metrics['start_up_s']:.2f} s, {metrics['memory_megabytes']:,.0f} MB of memory, "
        f"{metrics['draws_a_second']:,.0f} draws/s"
    )
    factor = 50_000_000 / count
    print(
        f"  50,000,000 clips at that rate: {metrics['index_megabytes'] * factor / 1e3:,.1f} GB, "
        f"{metrics['start_up_s'] * factor:.1f} s, {metrics['memory_megabytes'] * factor / 1e3:,.2f} GB of memory"
    )
    return metrics


def _video(folder: Path, videos: Path | None, rounds: int, size: int) -> dict[str, Any]:
    if videos is None:
        videos = folder / "videos"
        write_videos(videos, 24)
    files = sorted(file for file in videos.rglob("*") if is_video(file))
    decodable = [file for file in files if _decodes(file, "auto")]
    compared = folder / "compared"
    compared.mkdir()
    for number, file in enumerate(file for file in decodable if _decodes(file, "decord")):
        (compared / f"{number:05d}{file.suffix}").symlink_to(file.resolve())
    both = sorted(compared.iterdir())
    if not both:
        raise DataError(f"{videos}: expected videos that decord can read, too, found none; name another folder.")
    keep_all = FilterConfig(min_frames=1, min_seconds=0, min_motion=0)
    with redirect_stdout(io.StringIO()):
        write_video_shards(source=str(compared), out=folder / "shards", filters=keep_all)
    print(f"videos: {len(files)}, {len(decodable)} decode, {len(both)} by decord, too; windows of 16 frames of those")
    rates = loader_rates(folder / "shards", both, size, rounds) | decoder_rates(both, rounds)
    for name, rate in rates.items():
        print(f"  {name:<36}{rate.text('frames/s')}")
    early, late = memory_over_epochs(open_clips(folder / "shards", size))
    print(f"  resident memory after 2 epochs {early:.1f} MB, after 20 {late:.1f} MB ({late / early - 1:+.2%})")
    costs, seconds = stage_costs(decodable), mean_seconds(decodable)
    print(f"curation of all that decode, {seconds:.1f} s a clip on average")
    print("\n".join(cost_table(costs)))
    return {
        "clips": len(decodable),
        "mean_clip_seconds": seconds,
        "rates": {name: asdict(rate) for name, rate in rates.items()},
        "memory_megabytes": [early, late],
        "seconds_a_clip": costs,
    }


def _damaged(folder: Path, files: int) -> dict[str, dict[str, int]]:
    print(f"{files:,} files with random bytes changed")
    found = {}
    for decoder in ("gr2", "decord"):
        outcomes = count_outcomes(decoder, folder, files)
        print(f"  {decoder:<36}{', '.join(f'{outcome} {count:,}' for outcome, count in outcomes.most_common())}")
        found[decoder] = dict(outcomes)
    return found


def _decodes(file: Path, backend: Backend) -> bool:
    try:
        with open_video(file, backend=backend) as reader:
            reader.get_batch([0, len(reader) - 1])
    except DataError:
        return False
    return True


def _model(size: Size, batch_size: int, loader_rate: float) -> dict[str, Any]:
    """Time training steps on the device at hand, and report whether loader or model is the slower one."""
    from .model_step import model_rate

    rate, device = model_rate(size, batch_size)
    waits = max(0.0, 1 - loader_rate / rate)
    slower = "model" if waits == 0 else "loader"
    print(
        f"model {size} on {device}: {rate:,.1f} clips/s; one loader worker gives {loader_rate:,.0f}, "
        f"{loader_rate / rate:,.1f} times that: the {slower} is the bottleneck, "
        f"{max(1, math.ceil(rate / loader_rate))} worker(s) feed it"
    )
    return {"size": size, "device": device, "clips_a_second": rate}
