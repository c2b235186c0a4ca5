"""The loss curve of `tiny` is the one that `golden/tiny_loss.txt` keeps; `make golden` rewrites the file.

Run as a program, this file trains, prints how the new curve differs from the kept one, and keeps the new one.
"""

from __future__ import annotations

import csv
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gr2.gr_model.model import presets
from gr2.gr_model.model.texts import TextTable
from gr2.gr_model.model.world_model import WorldModel
from gr2.gr_model.train.loop import train
from gr2.gr_model.train.module import TrainingModule, evaluate
from gr2.gr_model.train.recipe import TrainingConfig

GOLDEN = Path(__file__).parent / "golden" / "tiny_loss.txt"
HEADER = """\
# Training loss [nats a code] of each step of `tiny`: one camera, frames alone, float32, one thread.
# tests/test_golden_curve.py trains it again and compares; `make golden` rewrites this file.
# step loss
"""

STEPS, BATCH = 120, 16
FIRST, FIRST_TOLERANCE = 20, 1e-4
LAST, LAST_TOLERANCE = 20, 0.01
"""Relative, of each of the first steps and of the mean of the last.

Processors add up in different orders: with AVX2 in place of AVX-512, all 120 steps agree in five digits.
"""

DIRECTIONS = {"left": (0, 1), "right": (0, -1), "up": (1, 0), "down": (-1, 0)}
"""Word of the caption -> rows and columns by which the pattern of the next frame lies further on."""

PERIOD, SIDE = 4, 8
NOISE = 0.05
"""Share of random codes, so that the loss has a floor above 0, for relative differences to mean something."""

BLIND_LOSS = math.log(len(DIRECTIONS))
"""Least loss [nats a code] without the caption, even of codes without noise: each direction gives another code at every
place. Without the image it is ln 16, one for each of the equally likely shifts of the pattern."""


@dataclass(frozen=True)
class Patterns:
    """Images of 8 x 8 codes, a pattern of 4 x 4 different codes again and again, that move by one code a frame."""

    palette: np.ndarray

    def frame(self, shift: np.ndarray) -> np.ndarray:
        """Draw the pattern at a shift (rows, columns): codes `[64]`."""
        rows, columns = np.indices((SIDE, SIDE))
        return self.palette[(rows + shift[0]) % PERIOD, (columns + shift[1]) % PERIOD].ravel()

    def batch(self, size: int, seed: int) -> dict[str, Any]:
        """Draw pairs of frames with captions."""
        random = np.random.RandomState(seed)  # its stream never changes, that of newer generators may (NEP 19)
        text_ids, shifts = random.randint(len(DIRECTIONS), size=size), random.randint(PERIOD, size=(size, 2))
        moves = np.array(list(DIRECTIONS.values()))[text_ids]
        codes = np.stack([[self.frame(s), self.frame(s + m)] for s, m in zip(shifts, moves, strict=True)])
        noisy = random.random_sample(codes.shape) < NOISE
        codes = np.where(noisy, random.randint(512, size=codes.shape), codes)
        return {"codes": {"static": torch.as_tensor(codes)}, "text_id": torch.as_tensor(text_ids)}


class PatternLoader:
    """Endless batches of moving patterns, resumable."""

    def __init__(self, patterns: Patterns) -> None:
        self.patterns, self.position = patterns, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            self.position += 1
            yield self.patterns.batch(BATCH, seed=self.position)

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A trained model, the loss of each of its steps, and batches that it was not trained on."""

    model: WorldModel
    losses: np.ndarray
    held_out: dict[str, Any]

    def judge(self, **changed: Any) -> float:
        """Measure the loss [nats a code] on held-out images, all codes hidden, with something changed."""
        return evaluate(self.model, [self.held_out | changed], with_actions=False)["frame_loss"]


def train_curve(out: Path) -> Curve:
    """Train `tiny` on moving patterns."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    random = np.random.RandomState(0)
    patterns = Patterns(random.permutation(512)[: PERIOD**2].reshape(PERIOD, PERIOD))
    codebook = torch.as_tensor(random.standard_normal((512, 16)), dtype=torch.float32)
    words = {word: random.standard_normal(128) for word in ("the", "pattern", "moves", *DIRECTIONS)}
    texts = np.stack([[words[word] for word in ("the", "pattern", "moves", last)] for last in DIRECTIONS])
    torch.manual_seed(0)
    model = WorldModel(presets.tiny(cameras=("static",)), codebook=codebook)
    mask = torch.ones(texts.shape[:2], dtype=torch.bool)
    model.set_texts(TextTable(torch.as_tensor(texts, dtype=torch.float32), mask))
    settings = TrainingConfig(with_actions=False, precision="32", learning_rate=3e-3, warmup=10)
    module = TrainingModule(model, settings, steps=STEPS)
    train(module=module, loader=PatternLoader(patterns), validation=[], out=out, batch_size=BATCH, log_every=1)
    torch.set_num_threads(threads)
    with (out / "metrics.csv").open(newline="") as file:
        losses = np.array([float(row["train/loss"]) for row in csv.DictReader(file)])
    return Curve(model=model, losses=losses, held_out=patterns.batch(64, seed=10**6))


def read_golden() -> np.ndarray:
    """Read the kept losses, step by step."""
    rows = np.loadtxt(GOLDEN)
    assert rows[:, 0].tolist() == list(range(1, len(rows) + 1))
    return rows[:, 1]


def differences(kept: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Return the largest relative difference of the first steps, and that of the mean of the last."""
    first = np.abs(losses[:FIRST] / kept[:FIRST] - 1).max()
    return float(first), float(abs(losses[-LAST:].mean() / kept[-LAST:].mean() - 1))


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    return train_curve(tmp_path_factory.mktemp("golden"))


def test_the_loss_curve_is_the_golden_one(curve: Curve) -> None:
    kept = read_golden()
    assert len(kept) == len(curve.losses) == STEPS
    first, last = differences(kept, curve.losses)
    advice = "the computation changed; if it was meant to, say so in the commit and run `make golden`"
    assert first < FIRST_TOLERANCE, f"the first {FIRST} steps differ by {first:.1e}: {advice}"
    assert last < LAST_TOLERANCE, f"the last {LAST} steps differ by {last:.1%}: {advice}"


def test_the_model_reads_caption_and_image(curve: Curve) -> None:
    codes, text_ids = curve.held_out["codes"]["static"], curve.held_out["text_id"]
    assert curve.judge() < 0.9 * BLIND_LOSS
    assert curve.judge(text_id=(text_ids + 1) % len(DIRECTIONS)) > BLIND_LOSS
    elsewhere = torch.stack((codes[:, 0].roll(1, dims=0), codes[:, 1]), dim=1)
    assert curve.judge(codes={"static": elsewhere}) > BLIND_LOSS


def test_a_changed_computation_would_be_noticed() -> None:
    kept = read_golden()
    assert differences(kept, kept) == (0.0, 0.0)
    assert differences(kept, kept * (1 + 2 * FIRST_TOLERANCE))[0] > FIRST_TOLERANCE
    later = kept + 0.03 * (np.arange(STEPS) >= FIRST)
    assert differences(kept, later)[0] == 0 and differences(kept, later)[1] > LAST_TOLERANCE


def rewrite() -> None:
    """Train, print how the curve differs from the kept one, and keep the new one."""
    with tempfile.TemporaryDirectory() as folder:
        losses = train_curve(Path(folder)).losses
    if GOLDEN.is_file() and len(read_golden()) == STEPS:
        first, last = differences(read_golden(), losses)
        print(f"largest relative difference of the first {FIRST} steps: {first:.1e} (tolerance {FIRST_TOLERANCE})")
        print(f"difference of the mean of the last {LAST} steps: {last:.2%} (tolerance {LAST_TOLERANCE:.0%})")
        for step in np.flatnonzero(losses != read_golden())[:10]:
            print(f"step {step + 1}: {read_golden()[step]:.6g} -> {losses[step]:.6g}")
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(HEADER + "".join(f"{i} {loss:.6g}\n" for i, loss in enumerate(losses, start=1)))
    print(f"wrote {GOLDEN}: loss {losses[0]:.6g} -> {losses[-1]:.6g} in {STEPS} steps")


if __name__ == "__main__":
    rewrite()
