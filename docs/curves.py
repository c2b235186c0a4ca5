"""Draw the held-out loss of pretraining runs over the sequences they have seen: `docs/curves.py OUT.svg RUN...`."""

from __future__ import annotations

import csv
import json
import shlex
import sys
from pathlib import Path

from gr2.benchmarks.report.charts import Series, line_chart

STYLE = """<style>
svg { --ink: #282c34; --ink-soft: #6a7080; --rule: #d8dbe2; --series-1: #2f6fdb; --series-2: #d9622b;
  --series-3: #2a9d6f; --series-4: #9b4dca; --series-quiet: #9aa0ad }
@media (prefers-color-scheme: dark) { svg { --ink: #e6e8ee; --ink-soft: #a0a6b4; --rule: #3a3f4b } }
</style>"""


def curve(run: Path, color: int) -> Series:
    """Read the validation losses of a run; sequences are counted from the command that its release keeps."""
    command = shlex.split(json.loads((run / "config.json").read_text())["provenance"]["command"])
    words = [word.replace("_", "-") for word in command]
    batch_size = int(command[words.index("--batch-size") + 1]) if "--batch-size" in words else 64
    with open(run / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["val/frame_loss"]]
    return Series(
        name=run.name,
        x=[int(row["step"]) * batch_size / 1000 for row in rows],
        y=[float(row["val/frame_loss"]) for row in rows],
        color=str(color),
        markers=True,
    )


def main() -> None:
    """Write the chart."""
    out, *runs = map(Path, sys.argv[1:])
    chart = line_chart(
        [curve(run, number) for number, run in enumerate(runs, start=1)],
        title="Held-out loss over the sequences seen",
        x_label="sequences [thousand]",
        y_label="loss of the next frame [nats a code]",
    )
    head, rest = chart.replace("font-family:inherit", "font-family:system-ui,sans-serif", 1).split(">", 1)
    out.write_text(f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{rest}\n')


main()
