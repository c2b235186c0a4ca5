"""What the model is asked, which of its answers are used, and which caption of a window is the one to train on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

NO_ACTION = "none"
"""What the default prompt asks for where nobody does anything."""

PROMPT = (
    "These are frames of one short video, in order of time. In one sentence, say what the hands, or the arm of the "
    "robot, do: which objects they touch, how they move them, and where those end up. Write it as an instruction that "
    "begins with the verb, as in 'Pick up the red cup and put it on the shelf.' Name colors and sides where they tell "
    "objects apart. Do not mention the camera, the frames or the video, and do not guess what cannot be seen. If no "
    f"hand and no robot does anything, answer '{NO_ACTION}'."
)
"""Captions of actions and objects, which GR-2 re-captioned its videos for. Source: arXiv 2410.06158; words are ours."""

Keep = Literal["generated", "original", "both"]

_LONGEST_SPEECH = 500
_REFUSAL = re.compile(
    r"(i'?m |i am |we'?re |)(very |really |)(sorry\b|unable to\b|not able to\b)|i (cannot|can'?t|can not|won'?t) |"
    r"as an ai\b|unfortunately,? i\b|no (image|video|frame|image)s? (was|were|is|are|has|have)\b"
)


def original_captions(window: Mapping[str, Any], facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the captions that a window has; `facts["caption_kind"]` is the kind of the first one."""
    if "captions" in window:
        return [dict(one) for one in window["captions"]]
    kind = str(facts.get("caption_kind") or "original")
    return [{"text": window["caption"], "kind": kind}] if window["caption"] else []


def speech_hint(window: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return what the model reads of the speech in the window; empty where no speech recognizer listened."""
    heard = [one["text"] for one in original_captions(window, facts) if one["kind"] == "asr"]
    if not heard:
        return ""
    speech = " ".join(heard[0].replace('"', "'").split())[:_LONGEST_SPEECH]
    return (
        f'\nThe speaker said: "{speech}". People often speak earlier or later than they act, or of something else: '
        "take from it only the names of what the frames show."
    )


def clean_answer(text: str) -> str:
    """Return an answer as one line, without the quotes, stars and control characters around it."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(printable.split()).strip("\"'`*“” ")


def judge_answer(text: str, finish: str, max_words: int) -> tuple[str, str]:
    """Give the reason not to use a clean answer and what it was; empty for one to use.

    Args:
        text: the answer.
        finish: how it ended, see `Answer`.
        max_words: longest answer that is used.
    """
    words = len(text.split())
    if finish == "refused" or _REFUSAL.match(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")):
        return "refused", f"answered {text[:200]!r}"
    if finish == "length" or words > max_words:
        cut = ", cut at the longest answer" if finish == "length" else ""
        return "overlong", f"{words} words{cut}, expected at most {max_words}: {text[:200]!r}"
    if not re.search(r"\w", text):
        return "empty", "answered nothing"
    if text.lower().rstrip(".! ") == NO_ACTION:
        return "no_action", "the model sees nobody act"
    return "", ""


def choose_caption(captions: Sequence[Mapping[str, Any]], keep: Keep) -> str:
    """Choose the caption to train on, see `caption`; empty where there is none.

    Args:
        captions: of the window.
        keep: which one.
    """
    generated = next((one["text"] for one in reversed(captions) if one["kind"] == "generated"), "")
    original = next((one["text"] for one in captions if one["kind"] != "generated"), "")
    if keep == "both" and generated and original:
        return f"{original.rstrip('. ')}. {generated}"
    return original or generated if keep == "original" else generated or original
