"""What GR-2's report claims, as pairs of trainings that differ in one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...cvae_head.kinds import HeadOptions
from ...errors import ConfigError
from ...gr_model.model.config import ModelChanges

Pretraining = Literal["none", "play", "play and clips"]
Demonstrations = Literal["all", "eighth", "scenes A to C", "scenes A to C, jittered too", "scenes A to C and generated"]

TOKENS: dict[Demonstrations, tuple[str, ...]] = {
    "all": ("all",),
    "eighth": ("eighth",),
    "scenes A to C": ("abc",),
    "scenes A to C, jittered too": ("abc", "jittered"),
    "scenes A to C and generated": ("abc", "generated"),
}
"""The folders of tokens that hold each choice of demonstrations."""

FRACTION = 8
"""The small data set is every eighth demonstration."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of training; the defaults are the recipe that all others differ from in one thing.

    pretraining: videos that are seen first, without actions;
    demonstrations: all of scene D, one in `FRACTION`, or those of other scenes;
    frame_fraction: share of the finetuning steps that predict frames, too; chunk_length: poses of a trajectory;
    width: of the trunk.
    """

    pretraining: Pretraining = "play"
    demonstrations: Demonstrations = "all"
    frame_fraction: float = 0.1
    chunk_length: int = 10
    width: int = 128

    @property
    def name(self) -> str:
        """What differs from the recipe, in words."""
        words: list[str] = []
        if self.demonstrations != "all":
            words.append("an eighth of the demonstrations" if self.demonstrations == "eighth" else self.demonstrations)
        if self.pretraining != "play":
            words.append(f"pretraining: {self.pretraining}")
        if self.frame_fraction == 0:
            words.append("no video loss in finetuning")
        if self.chunk_length != 10:
            words.append("single steps" if self.chunk_length == 1 else f"trajectories of {self.chunk_length}")
        if self.width != 128:
            words.append(f"width {self.width}")
        return ", ".join(words) or "recipe"

    @property
    def base(self) -> tuple[Pretraining, int]:
        """What the pretraining depends on: equal ones share it."""
        return (self.pretraining, self.width)

    @property
    def model(self) -> dict[str, Any]:
        """Options of a model that starts from nothing."""
        return {"model": ModelChanges(width=self.width, heads=self.width // 32)}

    @property
    def head(self) -> HeadOptions:
        """The trajectory head, the same for all."""
        return HeadOptions(kind="flow")

    @property
    def executed_steps(self) -> int:
        """Control steps of a chunk that are carried out: half of the recipe's, all of shorter ones."""
        return min(5, self.chunk_length)

    def folder(self, out: Path, seed: int) -> Path:
        """Return where the policy is trained and measured."""
        return out / f"seed_{seed}" / self.name.replace(":", "").replace(",", "").replace(" ", "_")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence of the report and the trainings that decide it.

    pairs: (better, worse) by the claim, for each of which the difference is measured; others: rows beside them;
    imagines: whether futures that `others` imagine are compared with what they do;
    measure: what the difference is of: "success" [%], or "frame_loss" [nats a code] of held-out windows, where less
    is better.
    """

    name: str
    says: str
    pairs: tuple[tuple[Variant, Variant], ...] = ()
    others: tuple[Variant, ...] = ()
    imagines: bool = False
    measures: tuple[Literal["success", "frame_loss"], ...] = ("success",)

    @property
    def variants(self) -> list[Variant]:
        """All trainings, each once, in order."""
        return list(dict.fromkeys([*(one for pair in self.pairs for one in pair), *self.others]))


RECIPE = Variant()
_EIGHTH = replace(RECIPE, demonstrations="eighth")
_ELSEWHERE = replace(RECIPE, demonstrations="scenes A to C", pretraining="none")
_SMALL, _LARGE = replace(RECIPE, width=64), replace(RECIPE, width=256)


def _without_pretraining(variant: Variant) -> tuple[Variant, Variant]:
    return variant, replace(variant, pretraining="none")


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="pretraining",
        says="Pretraining on video helps, more so with few demonstrations.",
        pairs=(_without_pretraining(RECIPE), _without_pretraining(_EIGHTH)),
    ),
    Claim(
        name="clips",
        says="Real clips beside play video help pretraining.",
        pairs=tuple((replace(one, pretraining="play and clips"), one) for one in (RECIPE, _EIGHTH)),
    ),
    Claim(
        name="video_loss",
        says="Predicting frames in finetuning, too, helps.",
        pairs=((RECIPE, replace(RECIPE, frame_fraction=0.0)),),
    ),
    Claim(
        name="trajectories",
        says="Trajectories beat single steps.",
        pairs=((RECIPE, replace(RECIPE, chunk_length=1)),),
        others=(replace(RECIPE, chunk_length=5), replace(RECIPE, chunk_length=20)),
    ),
    Claim(
        name="size",
        says="More parameters help, in predicting video and in acting.",
        pairs=((RECIPE, _SMALL), (_LARGE, RECIPE)),
        measures=("success", "frame_loss"),
    ),
    Claim(
        name="augmentation",
        says="Other colors and arrangements help in a scene that training does not show.",
        pairs=(
            (replace(_ELSEWHERE, demonstrations="scenes A to C, jittered too"), _ELSEWHERE),
            (replace(_ELSEWHERE, demonstrations="scenes A to C and generated"), _ELSEWHERE),
        ),
    ),
    Claim(
        name="imagination",
        says="What the model imagines agrees with what its policy does, and more so where that succeeds.",
        others=(RECIPE,),
        imagines=True,
    ),
    Claim(
        name="few_demonstrations",
        says="An eighth of the demonstrations is not enough.",
        pairs=((RECIPE, _EIGHTH), (_without_pretraining(RECIPE)[1], _without_pretraining(_EIGHTH)[1])),
    ),
)


def choose_claims(names: str, *, clips: bool) -> list[Claim]:
    """Return the claims named, "all" of them, or those separated by commas; without clips all but that one.

    Raises:
        ConfigError: an unknown name, or clips are asked for and not given.
    """
    known = {claim.name: claim for claim in CLAIMS}
    if names == "all":
        return [claim for claim in CLAIMS if clips or claim.name != "clips"]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"--claims: expected all or some of {', '.join(known)}, got {name!r}; correct the name.")
    if "clips" in wanted and not clips:
        raise ConfigError("--claims: clips needs videos of your own, got none; name their folder with --videos.")
    return [known[name] for name in wanted]
