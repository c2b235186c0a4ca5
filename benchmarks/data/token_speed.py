"""Token shards: the loader beside webdataset on the same tars, memory over epochs, and an index of any size."""

from __future__ import annotations

import gc
import os
import time
from itertools import islice
from pathlib import Path

import numpy as np

from ...data_pipeline.loading.loader import BatchLoader
from ...data_pipeline.loading.token_store import TokenStore
from ...data_pipeline.loading.token_windows import TokenWindows
from ...data_pipeline.store.columns import write_columns
from ...data_pipeline.store.shards import list_shards
from ...data_pipeline.store.stages import Tally, begin_stage, finish_stage
from ..metrics.rounds import Rate, compare_rates
from .samples import CODEBOOK_SIZE, GRID, NUM_FRAMES

TOKENS_A_CLIP = NUM_FRAMES * GRID[0] * GRID[1]


def open_loader(folder: Path, batch_size: int = 64) -> BatchLoader:
    """Open a loader that gives every clip once an epoch, whole."""
    store = TokenStore.open([folder], ["static"])
    # the anchor is the first frame, all others are targets: one window for each clip
    windows = TokenWindows(store, num_frames=NUM_FRAMES, frame_step=1, chunk_length=1, context=1)
    windows.counts = np.minimum(windows.counts, 1)
    return BatchLoader(windows, batch_size=batch_size, seed=0)


def token_rates(folder: Path, rounds: int) -> dict[str, Rate]:
    """Read all clips with our loader and with webdataset, in turn; rates are clips a second."""
    import webdataset

    tars = [str(shard) for shard in list_shards(folder)]

    def ours() -> int:
        loader = open_loader(folder)
        return sum(len(batch["text_id"]) for batch in islice(loader, len(loader)))

    def raw() -> int:
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False))

    def decoded() -> int:
        return sum(1 for _ in webdataset.WebDataset(tars, shardshuffle=False).decode())

    works = {"gr2, batches of tensors, shuffled": ours, "webdataset, bytes": raw, "webdataset, arrays": decoded}
    return compare_rates(works, rounds, "webdataset, bytes")


def memory_over_epochs(loader: BatchLoader, epochs: tuple[int, int] = (2, 20)) -> tuple[float, float]:
    """Return resident memory [MB] after each number of epochs of one loader."""
    batches = iter(loader)
    found = []
    done = 0
    for epoch in epochs:
        for _ in islice(batches, (epoch - done) * len(loader)):
            pass
        done = epoch
        found.append(resident_megabytes())
    return found[0], found[1]


def resident_megabytes() -> float:
    """Return the resident memory of this process [MB]."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_index(folder: Path, count: int, clips_a_shard: int = 35_000) -> int:
    """Write the columns of `count` clips that do not exist; return their bytes."""
    begin_stage(folder, "token_shards", {}, overwrite=True)
    rng = np.random.default_rng(0)
    numbers = np.arange(count)
    caption = b"a hand picks up the red block and puts it into the drawer"
    columns: dict[str, np.ndarray] = {
        "shard": (numbers // clips_a_shard).astype(np.int32),
        **{name: np.full(count, value, np.int32) for name, value in (("frames", NUM_FRAMES), ("stride", 1))},
        **{name: np.zeros(count, np.int32) for name in ("steps", "state_dim", "action_dim")},
        "text_id": numbers.astype(np.int32),
        "video": rng.integers(0, 2**63, count, dtype=np.uint64),
        "codes_static": (numbers % clips_a_shard) * 7168 + 640,
        **{name: np.full(count, -1, np.int64) for name in ("states", "actions")},
        "sentence_bytes": np.frombuffer(caption * count, np.uint8),
        "sentence_ends": (numbers + 1) * len(caption),
    }
    names = write_columns(folder, columns)
    shards = [f"shard-{number:06d}.tar" for number in range(-(-count // clips_a_shard))]
    facts = {"codebook_size": CODEBOOK_SIZE, "grid": list(GRID), "image_size": 256}
    result = {"shards": shards, "tokenizer": facts, "num_texts": count, "columns": names}
    finish_stage(folder, "token_shards", {}, Tally(), result)
    return sum(file.stat().st_size for file in (folder / "columns").iterdir())


def index_metrics(folder: Path, count: int) -> dict[str, float]:
    """Measure an index of `count` clips: bytes, start-up [s], memory of the loader [MB], draws a second."""
    size = write_index(folder, count)
    before = resident_megabytes()
    begin = time.perf_counter()
    loader = open_loader(folder)
    start_up = time.perf_counter() - begin
    memory = resident_megabytes() - before
    begin = time.perf_counter()
    drawn = 0
    for batch in range(0, min(len(loader), 2000), 32):
        positions = np.arange(batch * 64, (batch + 32) * 64)
        drawn += len(loader.order.windows(0, positions)[0])
    return {
        "clips": count,
        "index_megabytes": size / 1e6,
        "start_up_s": start_up,
        "memory_megabytes": memory,
        "draws_a_second": drawn / (time.perf_counter() - begin),
    }
