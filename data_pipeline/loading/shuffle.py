"""A permutation computed number by number: shuffling needs no memory and resumes at any position.

A Feistel network permutes the numbers below a power of four; results outside the range are permuted again
until they fall inside (cycle walking), which keeps the map one to one.
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.
"""

from __future__ import annotations

import numpy as np

from ...contracts import Array

ROUNDS = 6


def permute(positions: Array, size: Array | int, seed: Array | int) -> Array:
    """Map positions one to one onto [0, size).

    Args:
        positions: integers `[b]` in [0, size).
        size: number of items, for all positions or for each `[b]`.
        seed: chooses the permutation, for all positions or for each `[b]`.

    Returns:
        int64 `[b]`.
    """
    value = np.asarray(positions).astype(np.uint64)
    size = np.broadcast_to(np.asarray(size), value.shape).astype(np.uint64)
    keys = _mix(np.broadcast_to(np.asarray(seed), value.shape).astype(np.uint64))
    half_bits = _half_bits(size)
    value = _feistel(value, half_bits, keys)
    outside = np.nonzero(value >= size)[0]
    while len(outside):
        value[outside] = _feistel(value[outside], half_bits[outside], keys[outside])
        outside = outside[value[outside] >= size[outside]]
    return value.astype(np.int64)


def _half_bits(size: Array) -> Array:
    # frexp gives the bit length of size - 1 exactly below 2**53
    bits = np.frexp(np.maximum(size.astype(np.float64) - 1, 1))[1]
    return ((np.maximum(bits, 2) + 1) // 2).astype(np.uint64)


def _feistel(value: Array, half_bits: Array, keys: Array) -> Array:
    mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = value >> half_bits, value & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (_mix(right + keys + np.uint64(number)) & mask)
    return (left << half_bits) | right


def _mix(value: Array) -> Array:
    """Scatter 64-bit numbers (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Array = value ^ (value >> np.uint64(31))
    return mixed
