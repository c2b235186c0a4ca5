"""The systems that GR-2 is compared with, as recipes over one trunk, one set of tokens and one loader.

What a system brought is its trajectory head, its network and what that reads; files of `cvae_head/` name their sources.
Sizes are those of two CPU cores. `differs` says what is not as published.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ...contracts import Chunking
from ...cvae_head.kinds import HeadOptions
from ...errors import ConfigError
from ...gr_model.model.config import ModelChanges

_IMAGES = "images are tokens of the frozen VQGAN"
_ALONE = ModelChanges(depth=1)
"""For heads with a way of looking of their own: the trunk is not read."""


@dataclass(frozen=True, kw_only=True)
class PolicyRecipe:
    """One system.

    system, source: its name and paper; head, model: what `gr2 finetune` makes.
    frame_fraction: share of the steps that predict frames; context: frames that are seen; chunk_length: control steps
        of a chunk; learning_rate: of AdamW.
    executed_steps, chunking: how chunks are carried out.
    differs: what is not as published.
    """

    name: str
    system: str
    source: str
    head: HeadOptions
    model: ModelChanges = field(default_factory=ModelChanges)
    frame_fraction: float = 0.0
    context: int = 1
    chunk_length: int = 10
    learning_rate: float = 1e-3
    executed_steps: int = 5
    chunking: Chunking = "independent"
    differs: str = _IMAGES

    @property
    def training(self) -> dict[str, Any]:
        """Options of `gr2 finetune`."""
        names = ("head", "model", "frame_fraction", "context", "chunk_length", "learning_rate")
        return {name: getattr(self, name) for name in names}

    @property
    def acting(self) -> dict[str, Any]:
        """Options of `gr2 benchmark calvin`."""
        return {"executed_steps": self.executed_steps, "chunking": self.chunking}


RECIPES: tuple[PolicyRecipe, ...] = (
    PolicyRecipe(
        name="gr2",
        system="gr2, the flow head",
        source="this library",
        head=HeadOptions(kind="flow"),
        frame_fraction=0.1,
        differs="",
    ),
    PolicyRecipe(
        name="gr2-cvae",
        system="GR-2",
        source="arXiv 2410.06158",
        head=HeadOptions(kind="cvae"),
        frame_fraction=0.1,
        differs="a KL weight at which the latent is used",
    ),
    PolicyRecipe(
        name="gr1",
        system="GR-1",
        source="arXiv 2312.13139",
        head=HeadOptions(kind="regression"),
        model=ModelChanges(decoding="queries"),
        frame_fraction=0.1,
        context=2,
        differs=f"{_IMAGES}, not patches of pixels; two frames are seen, not ten; chunks, as in its later versions",
    ),
    PolicyRecipe(
        name="act",
        system="ACT",
        source="arXiv 2304.13705",
        head=HeadOptions(kind="cvae", network="detr", width=128, heads=4, kl_weight=10.0, sample_latent=False),
        model=_ALONE,
        learning_rate=3e-4,
        chunking="ensemble",
        differs=f"{_IMAGES}; chunks of 10 steps, not 100; like the published one, it reads no instruction",
    ),
    PolicyRecipe(
        name="mt-act",
        system="MT-ACT (RoboAgent)",
        source="arXiv 2309.01918",
        head=HeadOptions(
            kind="cvae", network="detr", width=128, heads=4, kl_weight=10.0, sample_latent=False, film=True
        ),
        model=_ALONE,
        learning_rate=3e-4,
        chunking="ensemble",
        differs=f"{_IMAGES}; chunks of 10 steps, not 20",
    ),
    PolicyRecipe(
        name="rt1",
        system="RT-1",
        source="arXiv 2212.06817",
        head=HeadOptions(kind="bins", bins=256),
        model=_ALONE,
        context=2,
        differs=f"{_IMAGES}; two frames are seen, not six; chunks of steps at 30 Hz, not single steps at 3 Hz; the "
        "state is read",
    ),
    PolicyRecipe(
        name="diffusion-unet",
        system="Diffusion Policy, U-Net",
        source="arXiv 2303.04137",
        head=HeadOptions(kind="diffusion", network="unet", prediction="epsilon", draws=4),
        differs=f"{_IMAGES} through the trunk, which reads the instruction",
    ),
    PolicyRecipe(
        name="diffusion-transformer",
        system="Diffusion Policy, transformer",
        source="arXiv 2303.04137",
        head=HeadOptions(kind="diffusion", network="blocks", width=128, heads=4, prediction="epsilon", draws=4),
        differs=f"{_IMAGES} through the trunk, which reads the instruction",
    ),
    PolicyRecipe(
        name="pi0",
        system="pi0",
        source="arXiv 2410.24164",
        head=HeadOptions(kind="flow", network="expert", width=64, draws=4, steps=10),
        differs=f"{_IMAGES}; the trunk is not pretrained on language and the web; it reads the state",
    ),
    PolicyRecipe(
        name="rdt",
        system="RDT",
        source="arXiv 2410.07864",
        head=HeadOptions(kind="diffusion", network="dit", width=128, heads=4, blocks=4, draws=4, steps=5),
        model=_ALONE,
        differs=f"{_IMAGES}, not features of SigLIP; not pretrained on other robots; DDIM in place of DPM-Solver++",
    ),
    PolicyRecipe(
        name="two-speeds",
        system="HiRT, Helix",
        source="arXiv 2410.05273",
        head=HeadOptions(kind="flow", network="fast"),
        context=4,
        executed_steps=2,
        differs=f"{_IMAGES}, for the quick part, too; the slow part is the trunk, not a vision-language model",
    ),
    PolicyRecipe(
        name="openvla",
        system="OpenVLA, RT-2",
        source="arXiv 2406.09246, 2307.15818",
        head=HeadOptions(kind="tokens", bins=256, dct=0, temperature=0.0),
        chunk_length=5,
        differs=f"{_IMAGES}; the trunk is not a language model; chunks of 5 steps, not single ones",
    ),
)

PUBLISHED_ONLY = ("HULC (arXiv 2204.06252)", "RoboFlamingo (arXiv 2311.01378)")
"""Systems of which only the published rows are shown."""


def choose_recipes(names: str) -> list[PolicyRecipe]:
    """Return the recipes named, "all" of them, or those separated by commas.

    Raises:
        ConfigError: an unknown name.
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    if names == "all":
        return list(RECIPES)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"--policies: expected all or some of {', '.join(known)}, got {name!r}; correct the name."
            )
    return [known[name] for name in wanted]
