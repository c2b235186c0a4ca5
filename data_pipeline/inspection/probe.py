"""Open a few clips of a dataset: size, rate, codec, and whether their images can be decoded."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...contracts import Array
from ...errors import DataError
from ..curation.filters import FilterConfig, VideoFacts, first_fault, mean_frame_difference
from ..readers.lerobot_video import EpisodeSpan
from ..readers.record import FrameArray, ImageBytes, Record, Video, VideoBytes, VideoSpan, load_image
from ..video.index import Source, index_video, open_container, video_stream
from ..video.reader import open_video
from ..video.transcode import encode_frames
from .own_shards import StoredCodes

_PROBED_FRAMES = 3
"""Frames decoded of each clip: the first, the middle, the last."""

_TIMED_FRAMES = 32

_HDR_TRANSFERS = (16, 18)
"""Transfer functions of ITU-T H.273 that FFmpeg calls smpte2084 (PQ) and arib-std-b67 (HLG)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFindings:
    """What one video is like.

    facts: as the filters see it.
    codec, pixel_format, container: as FFmpeg names them; what is no video is described.
    is_constant_rate: the frames follow each other at one rate.
    is_high_dynamic_range: its colors are coded by PQ or HLG, which decoding leaves as they are.
    is_counted: its packets have no times, so that it is decoded from its start for every frame.
    digest: SHA-256 of the pixels of an array, empty for everything else.
    """

    facts: VideoFacts
    codec: str
    pixel_format: str = ""
    container: str = ""
    is_constant_rate: bool = True
    is_high_dynamic_range: bool = False
    is_counted: bool = False
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbedRecord:
    """What probing one record shows.

    source: the record's; videos: camera -> findings, for those that could be opened.
    broken: why it cannot be used, empty where it can.
    dropped: the filter of `gr2 data shards` that would leave it out, empty where none would; detail: its metrics.
    """

    source: str
    videos: Mapping[str, VideoFindings]
    broken: str = ""
    dropped: str = ""
    detail: str = ""


def probe_record(record: Record, config: FilterConfig) -> ProbedRecord:
    """Probe all videos of a record; what is broken is a finding, never an error."""
    videos: dict[str, VideoFindings] = {}
    for camera, video in record.videos.items():
        try:
            videos[camera] = probe(video)
        except DataError as error:
            return ProbedRecord(source=record.source, videos=videos, broken=f"{camera}: {error}")
    facts = [findings.facts for findings in videos.values()]
    if facts:
        reason, detail = first_fault(record, facts, config)
        if detail:
            return ProbedRecord(source=record.source, videos=videos, dropped=reason, detail=detail)
    return ProbedRecord(source=record.source, videos=videos)


def probe(video: Video) -> VideoFindings:
    """Open one video of any kind and decode a few frames of it.

    Raises:
        DataError: it is missing or broken.
    """
    if isinstance(video, VideoBytes):
        return _probe_file(video.data)
    if isinstance(video, Path):
        return _probe_file(video)
    if isinstance(video, EpisodeSpan):
        return _probe_span(video.span)
    if isinstance(video, VideoSpan):
        return _probe_span(video)
    if isinstance(video, StoredCodes):
        return VideoFindings(facts=video.facts(), codec="codes")
    if isinstance(video, ImageBytes):
        return _probe_images(video)
    if isinstance(video, FrameArray):
        pixels = video.read()
        facts = _facts(pixels[_spread(len(pixels))], len(pixels), video.fps, "numpy")
        return VideoFindings(facts=facts, codec="array", digest=hashlib.sha256(pixels.tobytes()).hexdigest())
    return _probe_file(video.encode().data)


def _spread(count: int) -> list[int]:
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(_PROBED_FRAMES, count)).round())]


def _facts(frames: Array, count: int, fps: float, backend: str) -> VideoFacts:
    height, width = (int(side) for side in frames.shape[1:3])
    motion = mean_frame_difference(frames)
    return VideoFacts(frames=count, fps=fps, height=height, width=width, backend=backend, motion=motion)


def _probe_file(source: Source) -> VideoFindings:
    with open_video(source) as reader:
        frames = reader.get_batch(_spread(len(reader)))
        facts = _facts(frames, len(reader), reader.fps, reader.backend)
    with open_container(source) as container:
        stream = video_stream(container)
        pixels, codec = str(stream.codec_context.pix_fmt or "unknown"), _codec_of(stream)
        hdr = _is_hdr(stream)
        index = index_video(source, container, stream)
    return VideoFindings(
        facts=facts,
        codec=codec,
        pixel_format=pixels,
        container=index.container,
        is_constant_rate=index.is_constant_rate,
        is_high_dynamic_range=hdr,
        is_counted=index.stamps is None,
    )


def _codec_of(stream: Any) -> str:
    """Name the codec, not the decoder that FFmpeg chose for it: `av1`, not `libdav1d`."""
    return str(stream.codec_context.codec.canonical_name)


def _is_hdr(stream: Any) -> bool:
    return getattr(stream.codec_context, "color_trc", None) in _HDR_TRANSFERS


def _probe_span(span: VideoSpan) -> VideoFindings:
    """Decode the first frame of a span; the rest of a file that may be hours long is left alone."""
    import av

    where = f"{span.file}: {span.start:.2f} to {span.stop:.2f} s"
    try:
        with open_container(span.file) as container:
            stream = video_stream(container)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            first = float((stream.start_time or 0) * stream.time_base)
            container.seek(int(max(span.start, first) / stream.time_base), stream=stream, backward=True)
            shown = (f for f in container.decode(stream) if f.time is not None and f.time >= span.start - 1e-3)
            frame: Any = next(shown, None)
            if frame is None or frame.time >= span.stop:
                raise DataError(f"{where}: the video shows no frame there; correct the times.")
            if not rate:
                raise DataError(f"{where}: the video states no frame rate; encode it again.")
            turned = round(frame.rotation / 90) % 2
            height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
            codec, pixels = _codec_of(stream), str(stream.codec_context.pix_fmt or "unknown")
            name, hdr = str(container.format.name), _is_hdr(stream)
    except (OSError, av.FFmpegError) as error:
        raise DataError(f"{where}: the video is missing, truncated or corrupt ({error}); copy it again.") from error
    count = max(round((span.stop - span.start) * rate), 1)
    # one decoded frame shows nothing of motion: it is taken to move
    facts = VideoFacts(frames=count, fps=rate, height=height, width=width, backend="pyav", motion=255.0)
    return VideoFindings(facts=facts, codec=codec, pixel_format=pixels, container=name, is_high_dynamic_range=hdr)


def _probe_images(video: ImageBytes) -> VideoFindings:
    if not video.images:
        raise DataError(f"{video.source}: expected images, found none; leave it out.")
    some = []
    kinds, modes = set(), set()
    for number in _spread(len(video.images)):
        try:
            image = load_image(video.images[number])
        except DataError as error:
            raise DataError(f"{video.source}: image {number}: {error}") from error
        kinds.add(str(image.format).lower())
        modes.add(image.mode)
        some.append(np.asarray(image.convert("RGB")))
    if len({frame.shape for frame in some}) > 1:
        shapes = sorted({frame.shape for frame in some})
        raise DataError(f"{video.source}: expected images of one size, got {shapes}; leave it out.")
    facts = _facts(np.stack(some), len(video.images), video.fps, "pillow")
    return VideoFindings(facts=facts, codec="+".join(sorted(kinds)), pixel_format="+".join(sorted(modes)))


def cost_of_decoding(video: Path | VideoBytes) -> float:
    """Measure how many times as long decoding a video takes as decoding the same frames in H.264 on this machine.

    Raises:
        DataError: the video is broken.
    """
    source = video if isinstance(video, Path) else video.data
    with open_video(source) as reader:
        wanted = range(min(_TIMED_FRAMES, len(reader)))
        # the usual pixel format needs even sides
        frames = reader.get_batch(wanted)[:, : reader.shape[1] // 2 * 2, : reader.shape[2] // 2 * 2]
        fps = reader.fps
    if 0 in frames.shape:
        return 1.0
    usual = encode_frames(iter(frames), fps, crf=18, pixel_format="yuv420p")
    return _seconds_to_decode(source, wanted) / max(_seconds_to_decode(usual, wanted), 1e-6)


def _seconds_to_decode(source: Source, wanted: Sequence[int]) -> float:
    times = []
    for _ in range(2):
        with open_video(source) as reader:
            start = time.process_time()
            reader.get_batch(wanted)
            times.append(time.process_time() - start)
    return min(times)
