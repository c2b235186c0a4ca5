"""What to fix in a dataset: one imperative sentence for each finding, with the command or option that fixes it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..readers.corpus_files import VIDEO_MISSING

BROKEN_SHARE = 0.01
"""Share of broken records from which on something is wrong with the copy, not with a file."""

LONG_CLIP_S = 60.0
"""[s]: the default of `--window-seconds` of `gr2 data shards`."""

SLOW_DECODING = 2.0
"""A codec that takes this many times as long as H.264 is worth encoding again."""

RATE_TOLERANCE = 0.01
"""Relative difference of frame rates that counts as none (29.97 and 30)."""

OTHER_LANGUAGE_SHARE = 0.01

_ENCODE = "ffmpeg -i IN -c:v libx264 -crf 18 -g 16"
_HDR = (
    "ffmpeg -i IN -vf zscale=t=linear:npl=100,tonemap=hable,zscale=p=bt709:t=bt709:m=bt709:r=tv,format=yuv420p "
    "-c:v libx264 -crf 18 -g 16"
)


def advise(summary: Mapping[str, Any]) -> list[str]:
    """Return what to fix, the gravest first; empty for a dataset that is ready.

    Args:
        summary: what `inspect_source` found.
    """
    lines: list[str] = []
    for part in (_damage, _leaks, _captions, _videos, _steps):
        lines += part(summary)
    return lines


def _damage(summary: Mapping[str, Any]) -> Iterator[str]:
    source, records = summary["source"], summary["records"]
    if summary["reader"] in ("video_shards", "token_shards"):
        if summary["problems"]:
            first = summary["problems"][0]["examples"][0]
            yield (
                "Copy the damaged shards again, or run the stage that wrote them again, with `--overwrite` where it "
                f"was finished ({sum(g['count'] for g in summary['problems'])} findings, the first: {first['detail']})."
            )
        return
    if summary["missing_videos"]:
        share = summary["missing_videos"] / records
        yield (
            f"Copy the files of {summary['missing_videos']} of {records} annotated entries ({share:.0%}) below "
            f"{source}; `gr2 data shards` leaves out what has none."
        )
    if summary["broken_share"] > BROKEN_SHARE:
        first = next((g["examples"][0] for g in summary["problems"] if g["reason"] != VIDEO_MISSING), None)
        yield (
            f"Copy or download the broken records again ({summary['broken']} found, "
            f"{summary['broken_share']:.1%} of those looked at"
            + (f", the first {first['source']}" if first else "")
            + "); `gr2 data shards` leaves them out and fails above `--max-dropped`."
        )


def _leaks(summary: Mapping[str, Any]) -> Iterator[str]:
    shared, repeated = summary["shared_between_splits"], summary["repeated"]
    if shared["records"]:
        yield (
            f"Remove {shared['records']} records with identical content from training or from validation "
            f"({' = '.join(shared['examples'][0])}): a validation loss on them means nothing."
        )
    if repeated["records"] and repeated["records"] > shared["records"] // 2:
        yield (
            f"Delete {repeated['records']} copies of other records ({' = '.join(repeated['examples'][0])}), or let "
            "`gr2 data curate` drop them (`--thresholds.duplicate-bits`)."
        )


def _captions(summary: Mapping[str, Any]) -> Iterator[str]:
    captions = summary["captions"]
    if not captions["captioned"]:
        if captions["empty"]:
            yield "Write captions with `gr2 data caption`: no record has any."
        return
    if captions["empty"]:
        total = captions["captioned"] + captions["empty"]
        yield (
            f"Write the captions that {captions['empty']} of {total} records lack ({captions['empty'] / total:.0%}) "
            "with `gr2 data caption`."
        )
    foreign = {k: n for k, n in captions["languages"].items() if k not in ("English", "unknown", "not looked at")}
    if sum(foreign.values()) > OTHER_LANGUAGE_SHARE * captions["captioned"]:
        named = ", ".join(f"{count} in {language}" for language, count in foreign.items())
        yield f"Translate the captions that are not English ({named}), or train a text tower on them: `gr2 text train`."


def _videos(summary: Mapping[str, Any]) -> Iterator[str]:
    rates = sorted(float(rate) for rate in summary["fps"])
    if rates and rates[-1] > rates[0] * (1 + RATE_TOLERANCE):
        yield _one_rate(rates)
    if summary["variable_rate"]:
        yield (
            f"Encode {summary['variable_rate']} videos of variable frame rate at a constant one: `{_ENCODE} -fps_mode "
            "cfr OUT.mp4`."
        )
    if summary["high_dynamic_range"]:
        yield (
            f"Encode {summary['high_dynamic_range']} videos of high dynamic range (PQ or HLG, as phones do) at a "
            f"standard one, else their images are pale: `{_HDR} OUT.mp4`."
        )
    for codec, cost in summary["decoding_cost"].items():
        if cost >= SLOW_DECODING:
            count = summary["codecs"][codec]
            yield f"Encode {count} videos again, {codec} takes {cost:g} times as long as H.264: `{_ENCODE} OUT.mp4`."
    if summary["counted"]:
        yield (
            f"Encode {summary['counted']} videos again whose packets have no times: every image of theirs is decoded "
            f"from the start of the file. `{_ENCODE} OUT.mp4`."
        )
    if summary["seconds"]["longest"] > LONG_CLIP_S and summary["reader"] not in ("video_shards", "token_shards"):
        yield (
            f"Choose how long clips (up to {summary['seconds']['longest']:.0f} s) are divided with `gr2 data shards "
            "--window-seconds`, or cut them at scene cuts with `gr2 data curate`."
        )
    dropped = summary["would_be_dropped"]
    if dropped:
        first = summary["dropped_examples"][0]
        named = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        yield (
            f"Look at the clips that `gr2 data shards` would drop ({named}; {first['source']}: {first['detail']}), or "
            "loosen `--filters`."
        )


def _one_rate(rates: Sequence[float]) -> str:
    """Return how to bring rates together; every m-th frame is kept, so some stay apart."""
    low = rates[0]
    left = sorted(rate / max(1, round(rate / low)) for rate in rates)
    sentence = (
        f"Bring the frame rates together ({low:g} to {rates[-1]:g} frames a second) with `gr2 data tokens "
        f"--target-fps {low:g}`"
    )
    if left[-1] > left[0] * (1 + RATE_TOLERANCE):
        sentence += f", which leaves {left[0]:.3g} to {left[-1]:.3g}; for one rate: `{_ENCODE} -r {low:g} OUT.mp4`"
    return f"{sentence}."


def _steps(summary: Mapping[str, Any]) -> Iterator[str]:
    for name in ("state", "action"):
        widths = summary["steps"][f"{name}_widths"]
        if len(widths) > 1:
            yield f"Divide the records by the width of their {name}s ({', '.join(widths)}) with a `--spec` for each."
    if len(summary["steps"]["control_hz"]) > 1:
        rates = ", ".join(summary["steps"]["control_hz"])
        yield f"Divide the episodes by their control rate ({rates} Hz) into a source each, or state it in a `--spec`."
    statistics = summary["steps"]["statistics"]
    if statistics is None:
        return
    if statistics.get("problem"):
        yield f"Record the states and actions again: {statistics['problem']}"
    for dataset in statistics["datasets"]:
        for warning in dataset["warnings"]:
            rows = dataset[warning.split(":")[0]] or {}
            if "sign flips" in warning and "qx" in rows.get("names", []):
                continue  # the model reads poses of this layout as matrices, in which q and -q are equal
            yield f"Fix {warning} (`gr2 data statistics {summary['source']}`)."
        for kind in ("states", "actions"):
            if dataset[kind] is not None:
                yield from _columns(kind, dataset[kind])


def _columns(kind: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """Gather dimensions with the same note: warnings are in capitals."""
    columns: dict[str, list[str]] = {}
    for name, notes in zip(rows["names"], rows["notes"], strict=True):
        for note in notes:
            loud = re.match(r"[A-Z]{3,}", note)
            if loud or (note == "constant" and "gripper, unchanged" not in notes):
                columns.setdefault(re.sub(r" \d+ times", "", note), []).append(name)
    for note, names in columns.items():
        if note == "constant":
            yield (
                f"Check {kind} {', '.join(names)}: constant in all records; leave what never moves out of `{kind}` in "
                "a `--spec`."
            )
        else:
            yield f"Check {kind} {', '.join(names)}: {note}; correct the data or their `--spec`."
