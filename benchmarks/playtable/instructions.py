"""Sentences for each task, in our own words. The first of each list is used in evaluation, the others in training."""

from __future__ import annotations

import numpy as np

_FIXED = {
    "open_drawer": ("open the drawer", "pull the drawer open", "slide the drawer out", "pull out the drawer"),
    "close_drawer": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer back in",
        "push the drawer closed",
    ),
    "move_slider_left": (
        "move the sliding door to the left",
        "slide the door left",
        "push the door to the left side",
        "shift the sliding door left",
    ),
    "move_slider_right": (
        "move the sliding door to the right",
        "slide the door right",
        "push the door to the right side",
        "shift the sliding door right",
    ),
    "turn_on_lightbulb": (
        "turn on the yellow light bulb",
        "push the switch up",
        "use the switch to turn on the bulb",
        "switch the light bulb on",
    ),
    "turn_off_lightbulb": (
        "turn off the yellow light bulb",
        "push the switch down",
        "use the switch to turn off the bulb",
        "switch the light bulb off",
    ),
    "turn_on_led": (
        "turn on the green led",
        "press the button to light the led",
        "press the button so the green light goes on",
        "make the led light up",
    ),
    "turn_off_led": (
        "turn off the green led",
        "press the button to put out the led",
        "press the button so the green light goes off",
        "make the led go dark",
    ),
}
_BLOCK = {
    "push_left": (
        "push the {} block to the left",
        "slide the {} block left",
        "shove the {} block towards the left",
        "move the {} block left by pushing it",
    ),
    "push_right": (
        "push the {} block to the right",
        "slide the {} block right",
        "shove the {} block towards the right",
        "move the {} block right by pushing it",
    ),
    "lift": (
        "lift the {} block from the table",
        "pick up the {} block",
        "grasp the {} block and lift it",
        "take the {} block off the table",
    ),
}


def sentences(task: str) -> tuple[str, ...]:
    """Return all sentences of a task, evaluation's first."""
    if task in _FIXED:
        return _FIXED[task]
    verb, colour, _, place = task.split("_")
    kind = "lift" if verb == "lift" else f"push_{place}"
    return tuple(text.format(colour) for text in _BLOCK[kind])


def draw_sentence(task: str, rng: np.random.Generator) -> str:
    """Draw one of a task's sentences, evaluation's as often as all others together."""
    options = sentences(task)
    return options[0] if rng.random() < 0.5 else options[1 + rng.integers(len(options) - 1)]
