"""Configuration of the world model; everything the weights' shapes follow from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from ...cvae_head.cvae import CVAEConfig
from ...cvae_head.head import ChunkShape, TrunkShape
from ...cvae_head.kinds import HeadConfig, num_queries
from ...cvae_head.slots import SlotCoding, slots_of
from ...embodiment import TOOL_ARM, Embodiment, fitting
from ...errors import ConfigError

Decoding = Literal["masked", "raster", "queries"]


@dataclass(frozen=True, kw_only=True)
class CameraSpec:
    """A camera and its grid of image tokens (rows, columns)."""

    name: str
    grid: tuple[int, int] = (8, 8)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of `WorldModel`.

    width, depth, heads: the GPT body.
    cameras: in the order of the sequence.
    codebook_size, codebook_dim: of the frozen image tokenizer.
    token_packing: p; p x p neighboring codes share one position.
    head_dim: width of the frame head before the codes; head_hidden: of a hidden layer of it, 0 for none (many codes
        in one position need one).
    text_dim, text_length: width of the text features and the most positions they may take.
    state_joints: whether joint angles are read beside the tool's pose by a policy that commands tool poses.
    embodiments: cameras, signals and rate of the robot, or of each of several that one model serves.
    max_context: most context frames; num_targets: frames predicted in one forward pass, each one frame step further.
    chunk_length: k, poses of a chunk.
    decoding: "masked" predicts a frame in parallel and refines it, codes given codes, "raster" code by code, "queries"
        in one pass, from queries alone (GR-1); "masked" and "queries" are bidirectional inside a frame.
    dropout: residual and attention dropout; the others are probabilities, in training, that a context code,
        the states of a sample, its text or one of its cameras are hidden (the last camera never is).
    code_permutation: probability, in training, that codes of a sample are permuted at random, in all frames alike: what
        stands still stays to be copied in scenes that training never showed.
    contacts: names of the parts of a scene of which the model says which one the hand touches next and when, as an
        auxiliary loss; empty for one that does not.
    keyposes: whether the model says where the arm is to be when its gripper next opens or closes, or at the end, as an
        auxiliary loss.
    motions: what x, y and z of the robot's base are called ("right", "forward", "up"), for a model that says the coming
        motion in words before it acts; empty for one that does not.
    scored_share: share of the predicted positions, sampled at each step, on which the frame loss is computed; scoring
        every code of every position costs more than the trunk of a small model.
    """

    width: int
    depth: int
    heads: int
    cameras: tuple[CameraSpec, ...]
    codebook_size: int
    codebook_dim: int
    text_dim: int
    token_packing: int = 1
    head_dim: int = 384
    head_hidden: int = 0
    text_length: int = 77
    state_joints: bool = False
    max_context: int = 1
    num_targets: int = 1
    chunk_length: int = 10
    decoding: Decoding = "masked"
    dropout: float = 0.0
    token_dropout: float = 0.05
    state_dropout: float = 0.0
    text_dropout: float = 0.0
    camera_dropout: float = 0.0
    code_permutation: float = 0.0
    scored_share: float = 1.0
    gradient_checkpointing: bool = False
    motions: tuple[str, ...] = ()
    contacts: tuple[str, ...] = ()
    keyposes: bool = False
    head: HeadConfig = field(default_factory=CVAEConfig)
    embodiments: tuple[Embodiment, ...] = (TOOL_ARM,)

    def __post_init__(self) -> None:
        for name in (
            "width",
            "depth",
            "heads",
            "codebook_size",
            "codebook_dim",
            "text_dim",
            "token_packing",
            "head_dim",
        ):
            _require(getattr(self, name) >= 1, name, "a positive number", getattr(self, name))
        for name in ("text_length", "max_context", "num_targets", "chunk_length"):
            _require(getattr(self, name) >= 1, name, "a positive number", getattr(self, name))
        for name in (
            "dropout",
            "token_dropout",
            "state_dropout",
            "text_dropout",
            "camera_dropout",
            "code_permutation",
        ):
            _require(0 <= getattr(self, name) <= 1, name, "a probability", getattr(self, name))
        _require(self.head_hidden >= 0, "head_hidden", "0 or a positive number", self.head_hidden)
        _require(0 < self.scored_share <= 1, "scored_share", "a share above 0 and up to 1", self.scored_share)
        _require(self.width % self.heads == 0, "width", f"a multiple of heads ({self.heads})", self.width)
        _require(len(self.cameras) > 0, "cameras", "at least one camera", self.cameras)
        names = [camera.name for camera in self.cameras]
        _require(len(set(names)) == len(names), "cameras", "different names", names)
        for camera in self.cameras:
            fits = all(side >= 1 and side % self.token_packing == 0 for side in camera.grid)
            _require(
                fits,
                f"cameras[{camera.name}].grid",
                f"sides divisible by p = {self.token_packing}",
                camera.grid,
            )

        _require(len(self.embodiments) > 0, "embodiments", "at least one robot", self.embodiments)
        robots = [embodiment.name for embodiment in self.embodiments]
        _require(len(set(robots)) == len(robots), "embodiments", "different names", robots)

    @property
    def slots(self) -> SlotCoding:
        """What is learned of the states and actions of the robots."""
        return slots_of(self.embodiments, self.state_joints)

    @property
    def is_mixture(self) -> bool:
        """Whether the model serves more than one robot."""
        return len(self.embodiments) > 1

    def place_of(self, robot: str | Embodiment | None) -> int:
        """Return the place in `embodiments` of the robot to act for.

        Args:
            robot: its name, or an embodiment whose signals and rate it must have; None where there is only one.

        Raises:
            ConfigError: none fits, or several do.
        """
        if not self.is_mixture and not isinstance(robot, str):
            return 0
        names = [embodiment.name for embodiment in self.embodiments]
        if isinstance(robot, Embodiment):
            places, wanted = fitting(self.embodiments, robot), f"one that fits {robot.name}"
        else:
            places, wanted = [i for i, name in enumerate(names) if name == robot], repr(robot) if robot else "none"
        if len(places) != 1:
            found = f", which {' and '.join(names[i] for i in places)} do" if places else ""
            raise ConfigError(
                f"embodiment: expected one of the robots that the model was trained on ({', '.join(names)}), got "
                f"{wanted}{found}; name it, as in load_policy(..., embodiment={names[0]!r}) or "
                f"`gr2 serve --embodiment {names[0]}`."
            )
        return places[0]

    @property
    def state_dim(self) -> int:
        """Number of state features."""
        return self.slots.num_features

    @property
    def chunk_shape(self) -> ChunkShape:
        """Steps and columns of a chunk."""
        return self.slots.shape(self.chunk_length)

    @property
    def trunk_shape(self) -> TrunkShape:
        """What a head knows of the trunk."""
        return TrunkShape(width=self.width, depth=self.depth, heads=self.heads, max_context=self.max_context)

    @property
    def num_queries(self) -> int:
        """Positions of the action query."""
        return num_queries(self.head, self.chunk_shape)

    @property
    def codes_per_position(self) -> int:
        """p * p."""
        return self.token_packing**2

    @property
    def packed_grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of positions for each camera."""
        p = self.token_packing
        return tuple((camera.grid[0] // p, camera.grid[1] // p) for camera in self.cameras)


@dataclass(frozen=True, kw_only=True)
class ModelChanges:
    """What differs from a named size; see `ModelConfig`. None leaves what the size has.

    Args:
        decoding: masked predicts a frame in parallel and refines it, raster code by code, queries in one pass (GR-1).
        width: of the GPT.
        depth: layers of the GPT.
        heads: attention heads of the GPT.
        token_packing: p x p codes share a position (tiny: a quarter of the grid, others 1).
        dropout: residual and attention dropout.
        token_dropout: how often codes of the context are hidden in training.
        state_dropout: how often robot states are hidden in training.
        text_dropout: how often texts are hidden in training; guidance needs some.
        camera_dropout: how often single cameras are hidden in training.
        code_permutation: how often codes of a sample are permuted in training, for scenes that it never shows.
        motions: say the coming motion in words before acting: what x, y and z of the robot's base are called, as in
            right,forward,up.
    """

    decoding: Decoding | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    token_packing: int | None = None
    dropout: float | None = None
    token_dropout: float | None = None
    state_dropout: float | None = None
    text_dropout: float | None = None
    camera_dropout: float | None = None
    code_permutation: float | None = None
    motions: str | None = None

    def apply(self, config: ModelConfig) -> ModelConfig:
        """Return `config` with the changes."""
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        if self.motions is not None:
            changes["motions"] = tuple(word.strip() for word in self.motions.split(","))
        return replace(config, **changes)


def _require(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ConfigError(f"ModelConfig.{name}: expected {expected}, got {got}; change the configuration.")
