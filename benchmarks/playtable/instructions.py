"""Instructions for each of the 34 tasks, in our own words.

Demonstrations use all of `instructions_of`, evaluation the first, or one that no demonstration has. Beside a clone of
CALVIN, demonstrations use its training annotations, and evaluation its validation ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from ...errors import ConfigError
from .tasks import ALL_TASKS

Wording = Literal["trained", "held-out"]
"""The wording that demonstrations have most often, or one in the same words that they never have."""

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
    "place_in_slider": (
        "put the held block into the cabinet",
        "place the block on the shelf behind the sliding door",
        "set the block down inside the cabinet",
        "store the grasped block in the sliding cabinet",
    ),
    "place_in_drawer": (
        "put the held block into the drawer",
        "place the block in the open drawer",
        "drop the grasped block into the drawer",
        "store the block in the drawer",
    ),
    "stack_block": (
        "put the held block on top of another block",
        "stack the blocks",
        "place the grasped block onto another one",
        "set one block on top of the other",
    ),
    "unstack_block": (
        "take the upper block off the stack",
        "unstack the blocks",
        "lift the block that lies on top of the other",
        "remove the top block",
    ),
    "push_into_drawer": (
        "move the block from the table into the drawer",
        "sweep the block into the drawer",
        "get the block into the open drawer",
        "put the block that is on the table into the drawer",
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
    "rotate_left": (
        "turn the {} block to the left",
        "rotate the {} block left",
        "grasp the {} block and turn it anticlockwise",
        "twist the {} block towards the left",
    ),
    "rotate_right": (
        "turn the {} block to the right",
        "rotate the {} block right",
        "grasp the {} block and turn it clockwise",
        "twist the {} block towards the right",
    ),
    "lift_table": (
        "lift the {} block from the table",
        "pick up the {} block",
        "grasp the {} block and lift it",
        "take the {} block off the table",
    ),
    "lift_slider": (
        "lift the {} block from the shelf in the cabinet",
        "pick up the {} block behind the sliding door",
        "grasp the {} block inside the cabinet",
        "take the {} block off the shelf",
    ),
    "lift_drawer": (
        "lift the {} block out of the drawer",
        "pick up the {} block in the drawer",
        "grasp the {} block that lies in the drawer",
        "take the {} block from the drawer",
    ),
}

_HELD_OUT = {
    "open_drawer": "move the drawer out",
    "close_drawer": "shut the drawer",
    "move_slider_left": "push the sliding door left",
    "move_slider_right": "push the sliding door right",
    "turn_on_lightbulb": "light up the bulb",
    "turn_off_lightbulb": "make the bulb go dark",
    "turn_on_led": "make the green light go on",
    "turn_off_led": "make the green light go off",
    "place_in_slider": "put the grasped block on the shelf",
    "place_in_drawer": "set the held block down in the drawer",
    "stack_block": "place the held block on top of the other",
    "unstack_block": "take the top block off the other one",
    "push_into_drawer": "slide the block from the table into the open drawer",
    "push_left": "move the {} block towards the left",
    "push_right": "move the {} block towards the right",
    "rotate_left": "turn the {} block anticlockwise",
    "rotate_right": "turn the {} block clockwise",
    "lift_table": "take the {} block from the table",
    "lift_slider": "take the {} block out of the cabinet",
    "lift_drawer": "lift the {} block from the drawer",
}


def instructions_of(task: str) -> tuple[str, ...]:
    """Return all instructions of a task that demonstrations have, evaluation's first."""
    if task in _FIXED:
        return _FIXED[task]
    verb, color, _, place = task.split("_")
    return tuple(text.format(color) for text in _BLOCK[f"{verb}_{place}"])


def held_out_instruction(task: str) -> str:
    """Return an instruction of a task that no demonstration has, in words that demonstrations have."""
    if task in _FIXED:
        return _HELD_OUT[task]
    verb, color, _, place = task.split("_")
    return _HELD_OUT[f"{verb}_{place}"].format(color)


def sample_instruction(
    task: str, rng: np.random.Generator, annotations: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Sample one of a task's annotations, or of our instructions, evaluation's as often as all others together."""
    if annotations is not None:
        return annotations[task][int(rng.integers(len(annotations[task])))]
    options = instructions_of(task)
    return options[0] if rng.random() < 0.5 else options[1 + rng.integers(len(options) - 1)]


def evaluation_instructions(calvin_root: Path | None = None, wording: Wording = "trained") -> dict[str, str]:
    """Return the instruction of each task that evaluation uses: ours, or CALVIN's validation annotations.

    Raises:
        ConfigError: the clone has no usable annotations, or another wording of them is wanted.
    """
    if wording == "held-out":
        if calvin_root is not None:
            raise ConfigError(
                "--wording held-out: CALVIN's validation instructions are held out already; leave out one of "
                "--wording and --calvin-root."
            )
        return {name: held_out_instruction(name) for name in ALL_TASKS}
    if calvin_root is None:
        return {name: instructions_of(name)[0] for name in ALL_TASKS}
    return {name: texts[0] for name, texts in _annotations(calvin_root, "new_playtable_validation.yaml").items()}


@cache
def training_annotations(calvin_root: Path) -> dict[str, tuple[str, ...]]:
    """Return CALVIN's annotations of its training data, several for each task; evaluation has others.

    Raises:
        ConfigError: the clone has no usable annotations.
    """
    return _annotations(calvin_root, "new_playtable.yaml")


def _annotations(calvin_root: Path, name: str) -> dict[str, tuple[str, ...]]:
    import yaml

    file = calvin_root / "calvin_models" / "conf" / "annotations" / name
    try:
        found = yaml.safe_load(file.read_text())
        texts = {task: tuple(map(str, found[task])) for task in ALL_TASKS}
        if not all(isinstance(found[task], list) and texts[task] for task in ALL_TASKS):
            raise TypeError("a task without a list of them")
        return texts
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{file}: expected CALVIN's instructions of each task ({error}); clone mees/calvin whole."
        ) from error
