"""How well frozen encoders fit other data is reported, with advice where it is poor."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from gr2.tokenizers import text
from gr2.tokenizers.fit import describe_images, describe_texts, is_poor, reconstruction_psnr
from gr2.tokenizers.text import TextConfig, TextEncoder, vocabulary_of
from gr2.tokenizers.text_weights import build_text_tower
from gr2.tokenizers.weights import load_vqgan

torch.set_num_threads(1)


def encoder_of(*texts: str) -> TextEncoder:
    vocabulary = vocabulary_of(texts)
    config = TextConfig(width=32, heads=2, layers=1, context_length=12, embed_dim=8)
    return TextEncoder(build_text_tower(config, len(vocabulary)), vocabulary=vocabulary)


def test_images_unlike_the_training_data_are_poor() -> None:
    vqgan = load_vqgan("small")
    assert vqgan.trained_psnr == pytest.approx(27.87, abs=0.01)
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    assert reconstruction_psnr(vqgan, noise) < 15
    line = describe_images(vqgan, noise)
    assert "3 images" in line and "27.9 dB on the data it was trained on; poor: train one" in line
    vqgan.trained_psnr = 5.0
    assert "poor" not in describe_images(vqgan, noise)
    assert is_poor(19.0, None) and not is_poor(21.0, None) and not is_poor(25.0, 27.9)


def test_unknown_words_are_counted_with_advice() -> None:
    encoder = encoder_of("open the drawer", "push the block")
    assert encoder.unknown_words("Open the handle, slowly!") == ["handle", "slowly"]
    line = describe_texts(encoder, ["open the drawer", "open the handle", "", "open the drawer"])
    assert line.startswith("text encoder: 17% of the words of 2 captions are unknown to it (handle); `--text ViT-B-32")
    assert describe_texts(encoder, ["push the drawer"]) == (
        "text encoder: 0% of the words of 1 captions are unknown to it"
    )
    assert describe_texts(encoder, [""]) == ""
    encoder.vocabulary = None
    assert encoder.unknown_words("quetzalcoatl") == []


def test_each_text_with_unknown_words_is_named_once() -> None:
    text._TOLD.clear()
    encoder = encoder_of("open the drawer")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            encoder._cache.clear()
            encoder.encode(["open the drawer", "open the handle"])
        encoder_of("open the drawer").encode(["open the handle", "pull the knob"])
        encoder_of("open").encode([f"word{chr(97 + i)}{chr(97 + j)}" for i in range(10) for j in range(26)])
        encoder_of("open").encode(["something else"])
    assert len(told) == 3 and "further texts are not named" in str(told[2].message)
    assert "'open the handle' (handle)" in str(told[0].message) and "open the drawer" not in str(told[0].message)
    assert "'pull the knob' (pull, knob)" in str(told[1].message) and "handle" not in str(told[1].message)
