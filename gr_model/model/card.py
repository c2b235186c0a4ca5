"""The model card of a release: `README.md` with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CARD = "README.md"

_METADATA = """---
library_name: gr2
pipeline_tag: robotics
tags:
- gr2
- robotics
- world-model
- vision-language-action
---
"""


def model_card(record: Mapping[str, Any], results: Mapping[str, Any] | None = None, name: str = "FOLDER") -> str:
    """Write the card of a release: what it is, how it is used, what it was trained on, what was measured, its limits.

    Args:
        record: `config.json` of the release.
        results: `results.json` of `gr2 benchmark calvin`, where there is one.
        name: what the release is loaded by.
    """
    acts = record.get("acts", True)
    kind = "policy and world model" if acts else "world model, pretrained on video"
    parts = [f"{_METADATA}# A gr2 {kind}\n", *_model(record, acts), *_use(acts, name), *_training(record)]
    return "\n".join([*parts, *_measured(results, acts), *_limits(acts)]) + "\n"


def _model(record: Mapping[str, Any], acts: bool) -> list[str]:
    model = record["model"]
    size = f"{model['depth']} layers of {model['width']}"
    lines = [
        f"A GPT ({size}) over frozen text and image tokens that predicts future frames"
        + (f" and, through a head of kind {model['head']['kind']}, trajectories." if acts else "."),
        "",
        f"- Cameras: {', '.join(camera['name'] for camera in model['cameras'])}",
    ]
    for robot in model.get("embodiments", []) if acts else []:
        state = ", ".join(f"{s['name']} ({s['width']})" for s in robot["state"])
        action = ", ".join(f"{s['name']} ({s['width']})" for s in robot["action"])
        lines.append(f"- Robot {robot['name']}, {robot['control_hz']:g} Hz: state {state}; action {action}")
    return [*lines, f"- Chunk: {model['chunk_length']} steps", ""] if acts else [*lines, ""]


def _use(acts: bool, name: str) -> list[str]:
    call = "gr2.load_policy" if acts else "gr2.load_world_model"
    then = ".act(observation)" if acts else ""
    return ["## Use", "", "```python", "import gr2", "", f'{call}("{name}"){then}', "```", ""]


def _training(record: Mapping[str, Any]) -> list[str]:
    provenance = record["provenance"]
    facts = [f"`{provenance['command']}`"] if "command" in provenance else []
    facts += [f"{word} {provenance[word]}" for word in ("steps", "seed") if word in provenance]
    lines = ["## Training", "", "- " + "; ".join(facts)] if facts else ["## Training", ""]
    lines.append(f"- Image tokenizer {record['tokenizer'][:12]}, text encoder {record['text'][:12]} (fingerprints)")
    count = len(record.get("datasets", {}))
    lines += [f"- Statistics of {count} dataset{'s' * (count != 1)} are in `config.json`"] if count else []
    return [*lines, ""]


def _measured(results: Mapping[str, Any] | None, acts: bool) -> list[str]:
    if not acts:
        return []
    if results is None:
        return ["## Results", "", "None are attached (`gr2 push --results` attaches them).", ""]
    lines = ["## Results", "", "| control | measured | result, 95 % interval |", "|---|---|---|"]
    for control, found in results["controls"].items():
        for kind, score in found["scores"].items():
            low, high = score["interval_95"]
            what = f"average length of {score['number']} {kind}"
            lines.append(f"| {control} | {what} | {score['average_length']:.2f} [{low:.2f}, {high:.2f}] |")
        tasks: Sequence[Mapping[str, int]] = list(found["tasks"].values())
        if tasks:
            done, total = sum(t["success"] for t in tasks), sum(t["total"] for t in tasks)
            lines.append(f"| {control} | success from single starts of {len(tasks)} tasks | {done} of {total} |")
    keys = ("assets", "renderer", "instructions", "scene", "max_steps")
    where = "; ".join(f"{key} {results[key]}" for key in keys if key in results)
    return [*lines, "", f"`gr2 benchmark calvin`: {where}.", ""]


def _limits(acts: bool) -> list[str]:
    use = "research on the robots and tasks it was trained on" if acts else "research on video prediction"
    lines = [f"Intended use: {use}. It knows nothing beyond its training data; predicted frames are guesses."]
    if acts:
        lines.append(
            "Trajectories are not checked for collisions or limits by the model; `gr2.WholeBodyController` does that "
            "before a robot moves."
        )
    return ["## Use and limits", "", *lines]
