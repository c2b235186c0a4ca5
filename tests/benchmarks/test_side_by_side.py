"""Trainings side by side: results in order, prints in files, failures as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gr2.benchmarks.side_by_side import how_many, side_by_side, threads
from gr2.errors import DataError


def stage(number: int) -> tuple[int, int]:
    """Print and return a number and the process."""
    if number < 0:
        raise DataError(f"stage: expected 0 or more, got {number}.")
    print("stage", number)
    return number, os.getpid()


def test_results_come_in_order_and_prints_go_to_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (how_many(2), threads(2), how_many(1), threads(1)) == (2, 1, 1, 0)
    numbers = [(n,) for n in range(4)]
    found = side_by_side(stage, numbers, list("abcd"), num_workers=2, logs=tmp_path / "logs")
    assert [number for number, _ in found] == [0, 1, 2, 3] and os.getpid() not in {process for _, process in found}
    assert "stage" not in capsys.readouterr().out
    assert [(tmp_path / "logs" / f"{name}.txt").read_text() for name in "ad"] == ["stage 0\n", "stage 3\n"]
    with pytest.raises(DataError, match="expected 0 or more"):
        side_by_side(stage, [(1,), (-1,)], ["a", "b"], num_workers=2, logs=tmp_path / "logs")
    assert side_by_side(stage, numbers[:1], ["a"], num_workers=2, logs=tmp_path) == [(0, os.getpid())]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert how_many(2) == 1 and threads(2) == 0
