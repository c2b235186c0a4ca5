"""Instructions for each of Meta-World's 50 tasks, in our own words.

Meta-World has none. Demonstrations use all of `instructions_of`; evaluation the first, or one that no demonstration
has.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from ...errors import ConfigError

Wording = Literal["trained", "held-out"]
"""The wording that demonstrations have most often, or one in the same words that they never have."""

MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)
"""The ten tasks of Meta-World's MT10.

Source: Yu et al., Meta-World, arXiv 1910.10897.
"""

_INSTRUCTIONS = {
    "assembly": (
        "put the ring onto the peg",
        "lift the ring and place it over the peg",
        "pick up the ring and set it on the peg",
        "grasp the ring and put it over the peg",
    ),
    "basketball": (
        "throw the ball into the basket",
        "pick up the ball and put it into the basket",
        "drop the ball into the basket",
        "lift the ball into the basket",
    ),
    "bin-picking": (
        "move the block from one bin to the other",
        "pick up the block and drop it into the other bin",
        "take the block out of its bin and put it into the other bin",
        "place the block in the other bin",
    ),
    "box-close": (
        "close the box with its lid",
        "put the lid onto the box",
        "pick up the lid and place it on the box",
        "cover the box with the lid",
    ),
    "button-press-topdown": (
        "press the button from above",
        "push the button down",
        "press down on the button",
        "move down and push the button",
    ),
    "button-press-topdown-wall": (
        "press the button behind the wall from above",
        "go over the wall and push the button down",
        "press down on the button behind the wall",
        "move over the wall and press the button from above",
    ),
    "button-press": (
        "press the button from the front",
        "push the button in",
        "press the button forward",
        "move forward and push the button",
    ),
    "button-press-wall": (
        "press the button behind the wall from the front",
        "go around the wall and push the button in",
        "press the button forward behind the wall",
        "move around the wall and press the button from the front",
    ),
    "coffee-button": (
        "press the button of the coffee machine",
        "start the coffee machine",
        "push the button on the coffee machine",
        "turn on the coffee machine",
    ),
    "coffee-pull": (
        "pull the mug away from the coffee machine",
        "take the mug out of the coffee machine",
        "move the mug back from the coffee machine",
        "grasp the mug and pull it away from the machine",
    ),
    "coffee-push": (
        "push the mug under the coffee machine",
        "put the mug into the coffee machine",
        "move the mug towards the coffee machine",
        "grasp the mug and push it under the machine",
    ),
    "dial-turn": (
        "turn the dial",
        "rotate the dial",
        "turn the knob around",
        "rotate the knob half around",
    ),
    "disassemble": (
        "take the ring off the peg",
        "lift the ring from the peg",
        "pull the ring up and off the peg",
        "remove the ring from the peg",
    ),
    "door-close": (
        "close the door",
        "push the door shut",
        "swing the door closed",
        "move the door until it is shut",
    ),
    "door-lock": (
        "lock the door",
        "turn the lock of the door down",
        "rotate the lock to lock the door",
        "push the lock of the door down",
    ),
    "door-open": (
        "open the door",
        "pull the door open",
        "swing the door open",
        "pull the door by its handle",
    ),
    "door-unlock": (
        "unlock the door",
        "turn the lock of the door to the side",
        "rotate the lock to unlock the door",
        "push the lock of the door to the side",
    ),
    "hand-insert": (
        "put the hand into the hole",
        "insert the gripper into the hole",
        "move the gripper down into the hole",
        "lower the hand into the hole in the table",
    ),
    "drawer-close": (
        "close the drawer",
        "push the drawer shut",
        "slide the drawer in",
        "push the drawer closed",
    ),
    "drawer-open": (
        "open the drawer",
        "pull the drawer open",
        "slide the drawer out",
        "pull out the drawer by its handle",
    ),
    "faucet-open": (
        "open the faucet",
        "turn the faucet on",
        "rotate the faucet to the left",
        "push the handle of the faucet to open it",
    ),
    "faucet-close": (
        "close the faucet",
        "turn the faucet off",
        "rotate the faucet to the right",
        "push the handle of the faucet to close it",
    ),
    "hammer": (
        "hammer the nail into the wall",
        "pick up the hammer and hit the nail",
        "drive the nail in with the hammer",
        "grasp the hammer and push the nail into the wall",
    ),
    "handle-press-side": (
        "press the handle down from the side",
        "push down the handle at the side",
        "move the handle on the side down",
        "press down on the side handle",
    ),
    "handle-press": (
        "press the handle down",
        "push down the handle",
        "move the handle down",
        "press down on the handle",
    ),
    "handle-pull-side": (
        "pull the handle up from the side",
        "lift the handle at the side",
        "move the handle on the side up",
        "raise the side handle",
    ),
    "handle-pull": (
        "pull the handle up",
        "lift the handle",
        "move the handle up",
        "raise the handle",
    ),
    "lever-pull": (
        "pull the lever up",
        "lift the lever",
        "move the lever up",
        "raise the lever",
    ),
    "pick-place-wall": (
        "lift the block over the wall to the goal",
        "pick up the block and place it at the goal behind the wall",
        "carry the block over the wall",
        "grasp the block and move it over the wall to the goal",
    ),
    "pick-out-of-hole": (
        "take the block out of the hole",
        "pick the block out of the hole",
        "lift the block from the hole",
        "grasp the block in the hole and raise it to the goal",
    ),
    "pick-place": (
        "pick up the block and place it at the goal",
        "lift the block to the goal",
        "grasp the block and carry it to the goal",
        "pick up the block and hold it at the goal",
    ),
    "plate-slide": (
        "slide the plate into the cabinet",
        "push the plate forward into the cabinet",
        "move the plate forward to the goal",
        "push the plate in",
    ),
    "plate-slide-side": (
        "slide the plate into the cabinet from the side",
        "push the plate to the side into the cabinet",
        "move the plate to the side to the goal",
        "push the plate in from the side",
    ),
    "plate-slide-back": (
        "slide the plate out of the cabinet",
        "pull the plate back out of the cabinet",
        "move the plate back to the goal",
        "pull the plate out",
    ),
    "plate-slide-back-side": (
        "slide the plate out of the cabinet to the side",
        "pull the plate to the side out of the cabinet",
        "move the plate back to the side",
        "pull the plate out to the side",
    ),
    "peg-insert-side": (
        "insert the peg into the hole at the side",
        "put the peg into the hole in the box",
        "pick up the peg and push it into the hole",
        "grasp the peg and insert it from the side",
    ),
    "peg-unplug-side": (
        "unplug the peg from the side",
        "pull the peg out of the hole",
        "take the peg out of the box",
        "grasp the peg and pull it out to the side",
    ),
    "soccer": (
        "kick the ball into the net",
        "push the ball into the net",
        "move the ball to the goal in the net",
        "hit the ball so that it rolls into the net",
    ),
    "stick-push": (
        "push the bottle with the stick",
        "pick up the stick and push the bottle with it",
        "use the stick to push the bottle to the goal",
        "grasp the stick and move the bottle forward with it",
    ),
    "stick-pull": (
        "pull the bottle with the stick",
        "pick up the stick and pull the bottle with it",
        "use the stick to pull the bottle to the goal",
        "grasp the stick, hook the bottle and pull it back",
    ),
    "push": (
        "push the block to the goal",
        "slide the block to the goal",
        "push the block across the table",
        "move the block along the table to the goal",
    ),
    "push-wall": (
        "push the block around the wall to the goal",
        "slide the block around the wall",
        "push the block past the wall",
        "move the block along the table past the wall to the goal",
    ),
    "push-back": (
        "push the block back to the goal",
        "pull the block back",
        "slide the block back towards the robot",
        "move the block along the table back to the goal",
    ),
    "reach": (
        "reach the goal with the hand",
        "move the hand to the goal",
        "reach for the goal",
        "bring the gripper to the goal",
    ),
    "reach-wall": (
        "reach the goal behind the wall with the hand",
        "move the hand over the wall to the goal",
        "reach for the goal behind the wall",
        "bring the gripper around the wall to the goal",
    ),
    "shelf-place": (
        "put the block on the shelf",
        "pick up the block and place it on the shelf",
        "lift the block onto the shelf",
        "grasp the block and set it on the shelf",
    ),
    "sweep-into": (
        "sweep the block into the hole",
        "push the block into the hole in the table",
        "move the block along the table into the hole",
        "sweep the block across the table into the hole",
    ),
    "sweep": (
        "sweep the block off the table",
        "push the block off the table",
        "sweep the block to the side of the table",
        "move the block along the table until it drops off",
    ),
    "window-open": (
        "open the window",
        "slide the window open",
        "push the window open to the right",
        "move the window to the side to open it",
    ),
    "window-close": (
        "close the window",
        "slide the window shut",
        "push the window closed to the left",
        "move the window to the side to close it",
    ),
}
"""Without the version that Meta-World's names end in."""

_HELD_OUT = {
    "assembly": "place the ring on the peg",
    "basketball": "move the ball into the basket",
    "bin-picking": "carry the block to the other bin",
    "box-close": "set the lid on the box",
    "button-press-topdown": "move down on the button",
    "button-press-topdown-wall": "push down the button behind the wall",
    "button-press": "push the button forward",
    "button-press-wall": "push the button in behind the wall",
    "coffee-button": "push the button to start the coffee machine",
    "coffee-pull": "pull the mug out of the machine",
    "coffee-push": "move the mug under the coffee machine",
    "dial-turn": "turn the dial half around",
    "disassemble": "raise the ring off the peg",
    "door-close": "move the door shut",
    "door-lock": "turn the lock to lock the door",
    "door-open": "move the door open by its handle",
    "door-unlock": "turn the lock to unlock the door",
    "hand-insert": "lower the gripper into the hole",
    "drawer-close": "move the drawer in",
    "drawer-open": "move the drawer out",
    "faucet-open": "turn the handle of the faucet to the left",
    "faucet-close": "turn the handle of the faucet to the right",
    "hammer": "hit the nail with the hammer",
    "handle-press-side": "push the side handle down",
    "handle-press": "push the handle down",
    "handle-pull-side": "lift the side handle",
    "handle-pull": "bring the handle up",
    "lever-pull": "bring the lever up",
    "pick-place-wall": "move the block over the wall to the goal",
    "pick-out-of-hole": "pull the block up out of the hole",
    "pick-place": "carry the block to the goal",
    "plate-slide": "move the plate into the cabinet",
    "plate-slide-side": "move the plate into the cabinet from the side",
    "plate-slide-back": "move the plate out of the cabinet",
    "plate-slide-back-side": "move the plate out of the cabinet to the side",
    "peg-insert-side": "move the peg into the hole at the side",
    "peg-unplug-side": "move the peg out of the hole to the side",
    "soccer": "hit the ball into the net",
    "stick-push": "move the bottle forward with the stick",
    "stick-pull": "move the bottle back with the stick",
    "push": "move the block across the table to the goal",
    "push-wall": "move the block around the wall",
    "push-back": "move the block back towards the robot",
    "reach": "bring the hand to the goal",
    "reach-wall": "bring the hand over the wall to the goal",
    "shelf-place": "carry the block onto the shelf",
    "sweep-into": "slide the block into the hole",
    "sweep": "slide the block off the table",
    "window-open": "push the window to the right",
    "window-close": "push the window to the left",
}

TASKS = tuple(f"{name}-v3" for name in _INSTRUCTIONS)
"""All 50 tasks, MT50."""


def choose_tasks(names: str) -> tuple[str, ...]:
    """Return the tasks called "mt10", "mt50", or by name, separated by commas; `-v3` may be left out.

    Raises:
        ConfigError: no such task.
    """
    if names in ("mt10", "mt50"):
        return MT10 if names == "mt10" else TASKS
    chosen = [name if name.endswith("-v3") else f"{name}-v3" for name in names.replace(" ", "").split(",") if name]
    unknown = [name for name in chosen if name not in TASKS]
    if unknown or not chosen:
        got = f"no task {', '.join(unknown)}" if unknown else "none"
        raise ConfigError(f"--tasks {names}: expected mt10, mt50 or names such as {', '.join(MT10[:3])}, got {got}.")
    return tuple(dict.fromkeys(chosen))


def instructions_of(task: str) -> tuple[str, ...]:
    """Return all instructions of a task that demonstrations have, evaluation's first."""
    return _INSTRUCTIONS[task.removesuffix("-v3")]


def held_out_instruction(task: str) -> str:
    """Return an instruction of a task that no demonstration has, in words that demonstrations have."""
    return _HELD_OUT[task.removesuffix("-v3")]


def evaluation_instruction(task: str, wording: Wording) -> str:
    """Return the instruction of a task that evaluation gives."""
    return instructions_of(task)[0] if wording == "trained" else held_out_instruction(task)


def sample_instruction(task: str, rng: np.random.Generator) -> str:
    """Sample one of a task's instructions, evaluation's as often as all others together."""
    options = instructions_of(task)
    return options[0] if rng.random() < 0.5 else options[1 + rng.integers(len(options) - 1)]
