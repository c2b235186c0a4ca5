"""Read `features.json` of an RLDS dataset, and what an example keeps under one of its names."""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...contracts import Array
from ...errors import DataError
from ..files import read_json
from .array_images import is_image_file
from .record import load_image
from .tfrecord import Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One leaf of `features.json`.

    kind: "image", "text", "tensor" (scalars and class labels too) or "other".
    shape: of one step, -1 for an axis that is not known beforehand.
    encoding: of a tensor: "none" (numbers), "bytes" or "zlib".
    num_sequences: sequences around the leaf; 1 for what a step holds, 0 for what an episode holds.
    """

    kind: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    num_sequences: int


def read_features(path: Path) -> dict[str, Feature]:
    """Read `features.json` as a map from name (`steps/observation/image`) to leaf.

    Raises:
        DataError: where it is missing, broken or of another layout.
    """
    content = read_json(path)
    try:
        features = dict(_leaves(content, "", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: expected features with a pythonClassName each, as tensorflow_datasets 4.5 or newer writes them, "
            f"got another layout ({type(error).__name__}: {error}); write the dataset again."
        ) from error
    if not any(name.startswith("steps/") for name in features):
        raise DataError(f"{path}: expected episodes with `steps`, got {sorted(features)[:9]}; this is no RLDS dataset.")
    return features


def _leaves(node: Any, name: str, depth: int) -> Iterator[tuple[str, Feature]]:
    if not isinstance(node["pythonClassName"], str):
        raise ValueError(f"{name}: pythonClassName is no string")
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, f"{name}/{key}".lstrip("/"), depth)
    elif "sequence" in node:
        yield from _leaves(node["sequence"]["feature"], name, depth + 1)
    else:
        kind = next((kind for kind in ("image", "text", "tensor") if kind in node), "other")
        body: Mapping[str, Any] = node.get(kind, {})
        dtype = str(body.get("dtype", ""))
        shape = tuple(int(size) for size in body.get("shape", {}).get("dimensions", ()))
        if kind == "tensor" and dtype in ("string", "object"):
            kind = "text"
        if "classLabel" in node:
            kind, dtype, shape = "tensor", "int64", ()
        encoding = str(body.get("encoding", "none")) or "none"
        yield name, Feature(kind=kind, dtype=dtype, shape=shape, encoding=encoding, num_sequences=depth)


def decode_feature(name: str, feature: Feature, values: Values) -> Any:
    """Decode what all steps hold under one name.

    Returns:
        Instructions, images uint8 `[t h w 3]`, or numbers `[t ...]`.

    Raises:
        DataError: `values` are not what the feature states.
    """
    if feature.kind == "image":
        return decode_images(name, feature, image_bytes(name, feature, values))
    wanted = "bytes" if feature.kind == "text" or feature.encoding != "none" else "numbers"
    unknown = feature.kind == "tensor" and -1 in feature.shape
    if feature.kind == "other" or feature.num_sequences > 1 or unknown:
        raise DataError(f"{name}: expected images, text or numbers of a fixed shape, got {feature}")
    if _stored_as(values) != wanted:
        raise DataError(f"{name}: expected {wanted} ({feature.kind} {feature.dtype}), got {_stored_as(values)}")
    if feature.kind == "text":
        return [value.decode("utf-8", "replace") if isinstance(value, bytes) else "" for value in values]
    return _tensors(name, feature, values)


def _stored_as(values: Values) -> str:
    return "nothing" if not len(values) else "bytes" if isinstance(values, list) else "numbers"


def holds_pixels(feature: Feature) -> bool:
    """Return whether a tensor has the form of one color image a step: uint8 `[h w 3]` of a known size."""
    image = len(feature.shape) == 3 and min(feature.shape) > 0 and feature.shape[2] == 3
    return feature.kind == "tensor" and feature.dtype == "uint8" and image


def image_bytes(name: str, feature: Feature, values: Values) -> list[bytes]:
    """Return the images of all steps as files: not decoded, or as PNG where pixels or files are kept as tensors.

    Raises:
        DataError: `values` are no images, or the feature states that their pixels are no uint8.
    """
    if holds_pixels(feature) and feature.num_sequences == 1:
        return [_png(pixels) for pixels in decode_feature(name, feature, values)]
    if feature.kind == "text" and feature.num_sequences == 1 and isinstance(values, list) and values:
        if all(is_image_file(value) for value in values):
            return values
        raise DataError(f"{name}: expected an image file each step, got another text; correct the spec")
    if feature.kind != "image" or feature.num_sequences > 1 or feature.dtype != "uint8":
        raise DataError(f"{name}: expected one image of uint8 for each step, got {feature}")
    if not isinstance(values, list) or not values:
        raise DataError(f"{name}: expected bytes (image uint8), got {_stored_as(values)}")
    return values


def _png(pixels: Array) -> bytes:
    Image.fromarray(pixels.astype(np.uint8)).save(data := io.BytesIO(), "PNG", compress_level=1)
    return data.getvalue()


def _tensors(name: str, feature: Feature, values: Values) -> Array:
    shape = feature.shape
    try:
        dtype = np.dtype(feature.dtype)
        if isinstance(values, list):
            unpacked = [zlib.decompress(v) if feature.encoding == "zlib" else v for v in values]
            return np.stack([np.frombuffer(v, dtype.newbyteorder("<")).reshape(shape) for v in unpacked])
        if (values.dtype.kind == "f") != (dtype.kind == "f"):
            raise DataError(f"{name}: expected {feature.dtype}, got numbers stored as {values.dtype}")
        if len(values) % max(math.prod(shape), 1):
            raise DataError(f"{name}: expected numbers of shape {shape} for each step, got {len(values)} in all")
        return values.reshape(-1, *shape)
    except (ValueError, TypeError, zlib.error) as error:
        raise DataError(f"{name}: expected {feature.dtype} of shape {shape}, got {error}") from error


def decode_images(name: str, feature: Feature, values: Sequence[bytes]) -> Array:
    """Decode images, uint8 `[t h w 3]`.

    Raises:
        DataError: one is no image file, or of another size than the feature or the first one.
    """
    frames: list[Array] = []
    for i, value in enumerate(values):
        try:
            image = load_image(value)
        except DataError as error:
            raise DataError(f"{name}: image {i}: {error}") from error
        size = (image.height, image.width)
        wanted = frames[0].shape[:2] if frames else feature.shape[:2] or size
        if any(want not in (got, -1) for want, got in zip(wanted, size, strict=True)):
            raise DataError(f"{name}: image {i}: expected {wanted} (height, width), got {size}")
        frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)
