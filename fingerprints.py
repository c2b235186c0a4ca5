"""Fingerprints of frozen encoders: a digest of their weights, and a few numbers of what they compute.

    9f3ac0...  .  3a41b5c7...      digest of the weights, a dot, numbers of eight 16-bit floats each

Weights alone do not say what is computed: the same ones with GELU and with QuickGELU give different features. The
numbers are projections of features of fixed inputs. Their last digits differ between machines, so fingerprints are
compared by `same_encoder`. Fingerprints of earlier versions are the digest alone; they match by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from .contracts import Array

_PROJECTIONS = 8
"""Numbers that each computed array is reduced to."""

_TOLERANCE = 0.004
"""Difference that counts as rounding, as a share of the root mean square of the eight numbers."""


def fingerprint_of(digest: str, *computed: Array) -> str:
    """Return the fingerprint of an encoder.

    Args:
        digest: hexadecimal digits that change with any weight.
        computed: what the encoder makes of fixed inputs, arrays of any shape.
    """
    numbers = np.stack([_projected(values) for values in computed]).clip(-6e4, 6e4)
    return f"{digest}.{numbers.astype('>f2').tobytes().hex()}"


def same_encoder(one: str, other: str) -> bool:
    """Return whether two fingerprints are of encoders with the same weights that compute the same.

    Where either lacks the numbers, as those of earlier versions do, the weights decide.
    """
    (weights, _, numbers), (other_weights, _, other_numbers) = one.partition("."), other.partition(".")
    if weights != other_weights or not numbers or not other_numbers:
        return weights == other_weights
    a, b = _numbers(numbers), _numbers(other_numbers)
    if a is None or b is None or a.shape != b.shape:
        return False
    scale = np.sqrt(np.maximum(np.square(a).mean(1), np.square(b).mean(1)))
    return bool((np.abs(a - b).max(1) <= _TOLERANCE * scale).all())


def image_fingerprint(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the image tokenizer in the facts of token shards, "" where they state none."""
    return str(facts.get("image_fingerprint", facts.get("sha256", "")))


def differing_facts(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the names of the facts in which the tokenizers of two sets of token shards differ."""
    names = sorted({*one, *other} - {"sha256", "image_fingerprint", "text_fingerprint"})
    before = {"image_fit": "stretch"}  # what facts of earlier versions do not state
    changed = [name for name in names if one.get(name, before.get(name)) != other.get(name, before.get(name))]
    if not same_encoder(image_fingerprint(one), image_fingerprint(other)):
        changed.append("image_fingerprint")
    if not same_encoder(str(one.get("text_fingerprint", "")), str(other.get("text_fingerprint", ""))):
        changed.append("text_fingerprint")
    return changed


def fixed_bytes(count: int, name: str) -> Array:
    """Return `count` numbers below 256 that look random and are the same everywhere, uint8."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(count), np.uint8)


def _projected(values: Array) -> Array:
    flat = np.asarray(values, np.float64).reshape(-1)
    bits = fixed_bytes(_PROJECTIONS * (-(-flat.size // 8)), "gr2 projections").reshape(_PROJECTIONS, -1)
    signs = np.unpackbits(bits, axis=1)[:, : flat.size].astype(np.float64) * 2.0 - 1.0
    projected: Array = signs @ flat / np.sqrt(max(flat.size, 1))
    return projected


def _numbers(text: str) -> Array | None:
    try:
        numbers: Array = np.frombuffer(bytes.fromhex(text), ">f2").astype(np.float64).reshape(-1, _PROJECTIONS)
    except ValueError:
        return None
    return numbers
