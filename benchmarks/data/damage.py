"""What decoders do with damaged files: frames, an error, or the end of the process."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...contracts import Array
from .samples import moving_shapes

FORMATS = (("mp4", "libx264"), ("webm", "libvpx-vp9"), ("mp4", "mpeg4"), ("matroska", "libx264"))
"""Container and codec, as FFmpeg names them."""

_LONGEST_S = 60.0
"""A file that takes longer [s] hangs."""

_READ = """
import sys
from pathlib import Path
from gr2.benchmarks.data.damage import read_damaged
read_damaged(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
"""


def count_outcomes(decoder: str, folder: Path, files: int) -> Counter[str]:
    """Read `files` damaged files, spread over the formats; count `frames`, `error`, `process ended` and `hung`.

    Args:
        decoder: `gr2` (`open_video`) or `decord`, by itself.
        folder: where the undamaged files are written.
        files: number of them; the same ones for each decoder.
    """
    outcomes: Counter[str] = Counter()
    for number, (container, codec) in enumerate(FORMATS):
        path = folder / f"{number}.bin"
        path.write_bytes(_encode(container, codec, moving_shapes(30, 48, 64, number)))
        share = files // len(FORMATS)
        outcomes.update(_outcomes(decoder, path, number * share, (number + 1) * share))
    return outcomes


def damaged(whole: bytes, seed: int) -> bytes:
    """Change one, two or eight random bytes."""
    chance, data = random.Random(seed), bytearray(whole)
    for _ in range(chance.choice([1, 1, 2, 8])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def read_damaged(decoder: str, path: Path, first: int, last: int) -> None:
    """Read the files of some seeds, and print a line for each as soon as it is read."""
    whole = path.read_bytes()
    read = _read_by_decord if decoder == "decord" else _read_by_gr2
    for seed in range(first, last):
        try:
            read(damaged(whole, seed))
            outcome = "frames"
        except Exception:
            # each decoder has errors of its own; what counts is that the process lives on
            outcome = "error"
        print(outcome, flush=True)


def _outcomes(decoder: str, path: Path, first: int, last: int) -> Iterator[str]:
    """Yield what became of each file; a process that ends is resumed behind the file that ended it."""
    while first < last:
        command = [sys.executable, "-c", _READ, decoder, str(path), str(first), str(last)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        hung = threading.Timer(_LONGEST_S, process.kill)
        hung.start()
        for line in process.stdout:
            yield line.strip()
            first += 1
            hung.cancel()
            hung = threading.Timer(_LONGEST_S, process.kill)
            hung.start()
        process.wait()
        if first < last:
            yield "process ended" if hung.is_alive() else "hung"
            first += 1
        hung.cancel()


def _read_by_gr2(data: bytes) -> None:
    from ...data_pipeline.video.reader import open_video

    with open_video(data) as reader:
        reader.get_batch([0, len(reader) // 2, len(reader) - 1, *range(min(len(reader), 40))])


def _read_by_decord(data: bytes) -> None:
    from ...data_pipeline.video.decord_decoder import load_decord

    reader: Any = load_decord().VideoReader(io.BytesIO(data), num_threads=1)
    reader.get_batch([0, len(reader) // 2, len(reader) - 1, *range(min(len(reader), 40))]).asnumpy()


def _encode(container: str, codec: str, frames: Array) -> bytes:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for pixels in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())
    return buffer.getvalue()
