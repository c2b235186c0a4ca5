"""Fingerprints tell encoders apart that compute something else with the same weights, and know those of before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gr2.fingerprints import differing_facts, fingerprint_of, fixed_bytes, image_fingerprint, same_encoder
from gr2.tokenizers.text import BPE_SIZE, TextConfig, TextEncoder
from gr2.tokenizers.text_weights import build_text_tower, load_text_encoder
from gr2.tokenizers.vqgan import VQGAN, VQGANConfig
from gr2.tokenizers.weights import load_vqgan


def text_encoder(activation: nn.Module | None = None) -> TextEncoder:
    torch.manual_seed(0)
    tower = build_text_tower(TextConfig(width=32, heads=2, layers=2, context_length=12, embed_dim=16), BPE_SIZE)
    if activation is not None:
        for block in tower.transformer.resblocks:
            block.mlp.gelu = activation
    return TextEncoder(tower)


def image_tokenizer() -> VQGAN:
    torch.manual_seed(0)
    config = VQGANConfig(resolution=32, channels=32, channel_mult=(1, 1), z_channels=8, embed_dim=4, codebook_size=24)
    return VQGAN(config).eval()


class QuickGELU(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def test_gelu_and_quickgelu_have_different_fingerprints() -> None:
    plain, quick = text_encoder().fingerprint, text_encoder(QuickGELU()).fingerprint
    assert plain.partition(".")[0] == quick.partition(".")[0], "the weights are the same"
    assert not same_encoder(plain, quick)
    assert same_encoder(plain, text_encoder().fingerprint)


def test_image_tokenizers_that_use_their_weights_otherwise_have_different_fingerprints() -> None:
    model = image_tokenizer()
    before = model.fingerprint()
    assert same_encoder(before, image_tokenizer().fingerprint())
    for change in (model.encoder.mid.block_1, model.decoder.mid.block_1):
        kept = change.norm1.eps
        change.norm1.eps = 0.1
        assert not same_encoder(before, model.fingerprint())
        change.norm1.eps = kept
    model.quantize.scores = lambda latents: latents @ model.codebook.t()  # type: ignore[method-assign]
    assert not same_encoder(before, model.fingerprint())


def test_the_fingerprint_does_not_depend_on_the_resolution() -> None:
    assert load_vqgan("small").fingerprint() == load_vqgan("small", resolution=128).fingerprint()


def test_a_weight_that_the_numbers_do_not_show_changes_the_fingerprint() -> None:
    model = image_tokenizer()
    before = model.fingerprint()
    with torch.no_grad():
        model.codebook[3, 0] += 1e-6
    assert not same_encoder(before, model.fingerprint())


def test_rounding_of_another_machine_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 77, 32)) + 3.0
    noise = rng.normal(size=values.shape) * 1e-3
    assert same_encoder(fingerprint_of("ab", values), fingerprint_of("ab", values + noise))
    assert not same_encoder(fingerprint_of("ab", values), fingerprint_of("ab", values * 1.02))
    assert fingerprint_of("ab", np.zeros(5)) == "ab." + 8 * "0000"


@pytest.mark.parametrize("broken", ["ab.xyz", "ab.0000", "ab." + 16 * "0000", "cd." + 8 * "0000", "cd", ""])
def test_texts_that_are_no_fingerprint_of_it_differ(broken: str) -> None:
    assert not same_encoder("ab." + 8 * "3c00", broken)


def test_fingerprints_of_before_match_by_the_weights() -> None:
    text, image = load_text_encoder("small"), load_vqgan("small")
    for whole in (text.fingerprint, image.fingerprint()):
        assert same_encoder(whole, whole.partition(".")[0]) and same_encoder(whole.partition(".")[0], whole)
    assert len(text.fingerprint.partition(".")[0]) == 16 and len(image.fingerprint().partition(".")[0]) == 64


def test_facts_of_before_and_of_now_are_compared() -> None:
    now: dict[str, Any] = {"grid": [4, 4], "image_fingerprint": "ab.3c00", "text_fingerprint": "12.3c00"}
    before = {"grid": [4, 4], "sha256": "ab", "text_fingerprint": "12"}
    assert image_fingerprint(before) == "ab" and image_fingerprint({}) == ""
    assert differing_facts(now, before) == differing_facts(before, now) == []
    assert differing_facts(now, before | {"sha256": "cd"}) == ["image_fingerprint"]
    assert differing_facts(before, now | {"text_fingerprint": "34", "grid": [8, 8]}) == ["grid", "text_fingerprint"]


def test_fixed_bytes_never_change() -> None:
    assert fixed_bytes(4, "gr2 image").tolist() == fixed_bytes(9, "gr2 image")[:4].tolist() == [44, 82, 122, 140]
