"""From a state dict to a VQGAN: names of published checkpoints, the kind of quantizer, and checks of the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError
from .published import LOADED, averaged, from_llamagen, is_llamagen, refuse_other
from .vqgan import VQGAN, GumbelVQGAN, VQGANConfig

_NETWORK = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_QUANTIZER = ("quantize.embedding.weight", "quantize.proj.weight", "quantize.proj.bias")


def network_tensors(state: Mapping[str, Tensor], source: object) -> dict[str, Tensor]:
    """Return the tensors of the network alone, under our names; losses and buffers of training are left out.

    The names of `LOADED` in `published.py` are known; the codebook of taming's `GumbelVQ` is `quantize.embed.weight`.

    Raises:
        CheckpointError: there is no codebook of a known quantizer.
    """
    refuse_other(source, state)
    renamed = averaged(from_llamagen(state) if is_llamagen(state) else state)
    if "quantize.embed.weight" in renamed and "quantize.proj.weight" in renamed:
        renamed["quantize.embedding.weight"] = renamed.pop("quantize.embed.weight")
    if "quantize.embedding.weight" not in renamed:
        found = sorted(name for name in state if name.startswith("quantize."))
        raise CheckpointError(
            f"{source}: expected quantize.embedding.weight as in taming's VQModel, or quantize.embed.weight with "
            f"quantize.proj.weight as in its Gumbel model, got {found or sorted(state)[:4]}; gr2 loads {LOADED}."
        )
    return {name: value for name, value in renamed.items() if name.startswith(_NETWORK) or name in _QUANTIZER}


def build_vqgan(config: VQGANConfig, state: Mapping[str, Tensor], source: object) -> VQGAN:
    """Return the frozen VQGAN of `network_tensors` in evaluation mode.

    Raises:
        CheckpointError: tensors are missing, of other shapes or no numbers.
    """
    wrong = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        raise CheckpointError(
            f"{source}: expected finite weights, got NaN or infinity in {wrong[0]} and {len(wrong) - 1} more tensors; "
            "copy the file again or use an earlier checkpoint."
        )
    kind = GumbelVQGAN if "quantize.proj.weight" in state else VQGAN
    with torch.device("meta"):  # the file fills the network, so sampling random weights is wasted
        model = kind(config)
    try:
        model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{source}: expected the tensors of the VQGAN that its configuration states, got others "
            f"({error}); use the configuration that belongs to the weights."
        ) from error
    return model.requires_grad_(False).eval()
