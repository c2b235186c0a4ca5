"""The trajectory heads: their configurations as one union, their options on the command line, and the maker.

A new head is a module with a configuration and a `TrajectoryHead`; `docs/extend.md` lists its lines here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from ..errors import ConfigError
from .bins import BinsConfig, BinsHead
from .cvae import CVAEConfig, CVAEHead, Prior
from .diffusion import DiffusionConfig, DiffusionHead
from .flow import FlowConfig, FlowHead
from .head import ChunkShape, TrajectoryHead, TrunkShape
from .networks import Network
from .regression import RegressionConfig, RegressionHead
from .tokens import TokensConfig, TokensHead, num_tokens

HeadKind = Literal["cvae", "regression", "flow", "diffusion", "tokens", "bins"]

HeadConfig = CVAEConfig | RegressionConfig | FlowConfig | DiffusionConfig | TokensConfig | BinsConfig


def small(kind: HeadKind = "cvae") -> HeadConfig:
    """Return the head for two CPU cores: perceptrons over the whole chunk."""
    heads: dict[str, HeadConfig] = {
        "cvae": CVAEConfig(latent_dim=16, network="mlp", width=256, pose_norm="l1", gripper_weight=0.3, kl_weight=0.02),
        "regression": RegressionConfig(network="mlp", width=256, pose_norm="l1", gripper_weight=0.3),
        "flow": FlowConfig(network="mlp", blocks=3, draws=16),
        "diffusion": DiffusionConfig(network="mlp", blocks=3, draws=16),
        "tokens": TokensConfig(bins=128, dct=4),
        "bins": BinsConfig(width=128, blocks=2, heads=4, learned_tokens=8, bins=128),
    }
    return heads[kind]


def reference(kind: HeadKind = "cvae") -> HeadConfig:
    """Return the head for the full sizes: transformer blocks over the steps of the chunk.

    The CVAE is the published one of GR-2's team (latent 32, 4 + 4 blocks of 128, weights 1 and 0.01), but for a latent
    that is used: with the published KL weight of 1 and z = 0 it collapses on natural demonstrations.

    Source: GR-MG, arXiv 2408.14368, and its released configuration.
    """
    heads: dict[str, HeadConfig] = {
        "cvae": CVAEConfig(kl_weight=0.02),
        "regression": RegressionConfig(),
        "flow": FlowConfig(),
        "diffusion": DiffusionConfig(),
        "tokens": TokensConfig(),
        "bins": BinsConfig(),
    }
    return heads[kind]


def num_queries(config: HeadConfig, shape: ChunkShape) -> int:
    """Return how many positions the action query takes."""
    return num_tokens(config, shape) if isinstance(config, TokensConfig) else 1


def make_head(config: HeadConfig, *, trunk: TrunkShape, shape: ChunkShape) -> TrajectoryHead:
    """Make the head of a configuration.

    Args:
        trunk: of which the head reads the output, or more.
        shape: of the chunk.
    """
    if isinstance(config, TokensConfig):
        return TokensHead(config, width=trunk.width, shape=shape)
    if isinstance(config, BinsConfig):
        return BinsHead(config, trunk=trunk, shape=shape)
    if isinstance(config, CVAEConfig):
        return CVAEHead(config, condition_dim=trunk.width, shape=shape)
    if isinstance(config, RegressionConfig):
        return RegressionHead(config, condition_dim=trunk.width, shape=shape)
    if isinstance(config, FlowConfig):
        return FlowHead(config, trunk=trunk, shape=shape)
    return DiffusionHead(config, trunk=trunk, shape=shape)


def head_config_from_dict(values: Mapping[str, Any]) -> HeadConfig:
    """Rebuild a configuration from `dataclasses.asdict` or its JSON; that of gr2 0.1.0 is a CVAE that takes z = 0.

    Raises:
        ConfigError: an unknown kind or option.
    """
    values = dict(values)
    if values.get("kind") in ("blocks", "mlp"):
        values = {**values, "network": values["kind"], "kind": "cvae", "sample_latent": False}
        if not values["latent_dim"]:
            names = ("network", "width", "heads", "pose_norm", "pose_weight", "gripper_weight")
            return RegressionConfig(blocks=values["decoder_blocks"], **{name: values[name] for name in names})
    kinds: dict[str, type[HeadConfig]] = {
        "cvae": CVAEConfig,
        "regression": RegressionConfig,
        "flow": FlowConfig,
        "diffusion": DiffusionConfig,
        "tokens": TokensConfig,
        "bins": BinsConfig,
    }
    kind = values.get("kind")
    if kind not in kinds:
        raise ConfigError(f"head: expected a kind of {', '.join(kinds)}, got {kind!r}; update gr2.")
    unknown = sorted(set(values) - {field.name for field in fields(kinds[kind])})
    if unknown:
        raise ConfigError(f"head {kind}: expected only known options, got {unknown} as well; update gr2.")
    return kinds[kind](**values)


def is_small(config: HeadConfig) -> bool:
    """Return whether a head is one for two CPU cores: a perceptron, tokens of a cosine transform, few bins."""
    if isinstance(config, TokensConfig):
        return bool(config.dct)
    return config.bins < 256 if isinstance(config, BinsConfig) else config.network == "mlp"


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """The trajectory head; None leaves what the size has. An option must be one of the kind's.

    Args:
        kind: cvae (GR-2, ACT), regression, flow (pi0), diffusion (Diffusion Policy), tokens (OpenVLA) or bins (RT-1).
        network: mlp over the whole chunk, or transformer blocks over its steps; flow and diffusion also unet (Diffusion
            Policy), expert (pi0), dit (RDT) and fast (HiRT), the cvae also detr (ACT).
        film: the network detr reads the instruction (MT-ACT).
        width: of the network.
        heads: attention heads of the network.
        blocks: transformer blocks of the network.
        latent_dim: of the cvae.
        prior: of the cvae; gaussian and flow are learned from the condition.
        sample_latent: the cvae acts on a sample of its prior, not on its mean.
        kl_weight: of the cvae.
        kl_warmup: steps over which kl_weight rises.
        free_bits: of the cvae: nats of each latent number that cost nothing.
        steps: denoising steps of an answer of flow and diffusion.
        draws: noises for each sample of a batch in training of flow and diffusion.
        prediction: what diffusion predicts.
        learned_tokens: of each context step, of bins.
        bins: values of a number, of tokens and bins.
        dct: coefficients of a cosine transform that tokens keep; 0 makes each step a token.
        temperature: of tokens and bins; 0 takes the likeliest.
    """

    kind: HeadKind | None = None
    network: Network | None = None
    width: int | None = None
    heads: int | None = None
    blocks: int | None = None
    latent_dim: int | None = None
    film: bool | None = None
    prior: Prior | None = None
    sample_latent: bool | None = None
    kl_weight: float | None = None
    kl_warmup: int | None = None
    free_bits: float | None = None
    steps: int | None = None
    draws: int | None = None
    prediction: Literal["epsilon", "sample"] | None = None
    learned_tokens: int | None = None
    bins: int | None = None
    dct: int | None = None
    temperature: float | None = None

    def apply(self, config: HeadConfig) -> HeadConfig:
        """Return `config`, or the head of another kind and the same size, with the options.

        Raises:
            ConfigError: an option that this kind has not.
        """
        if self.kind is not None and self.kind != config.kind:
            config = small(self.kind) if is_small(config) else reference(self.kind)
        changes = {name: value for name, value in asdict(self).items() if value is not None and name != "kind"}
        known = {field.name for field in fields(config)}
        unfit = sorted(set(changes) - known)
        if unfit:
            options = ", ".join(sorted(known & {field.name for field in fields(self)} - {"kind"}))
            raise ConfigError(
                f"--head.{unfit[0].replace('_', '-')}: expected an option of the head {config.kind} ({options}), got "
                f"{changes[unfit[0]]!r}; choose another --head.kind or leave it out."
            )
        return replace(config, **changes)
