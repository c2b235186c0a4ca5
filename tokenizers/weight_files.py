"""Read and write weight files: safetensors beside a JSON record, and foreign pickles without running them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import CheckpointError, refuse_lfs_pointer


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(name))
        os.chmod(name, 0o666 & ~_umask())  # mkstemp and safetensors let nobody else read their files
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    """Return which permissions new files do not have."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
        return digest.hexdigest()


def save_weights(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write `path` (safetensors) and, beside it, `record` with the file's SHA-256 as JSON."""
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    text = json.dumps({**record, "sha256": hashlib.sha256(content).hexdigest()}, indent=2, default=str)
    write_atomically(path, lambda p: _write_bytes(p, content))
    write_atomically(path.with_suffix(".json"), lambda p: _write_bytes(p, f"{text}\n".encode()))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def load_weights(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the record that `save_weights` wrote.

    Raises:
        CheckpointError: if a file is missing or damaged, or holds another `kind` of weights.
    """
    record_path = path.with_suffix(".json")
    for file in (path, record_path):
        if not file.is_file():
            raise CheckpointError(
                f"Weights of a {kind}: expected the file {file}, got none; train it or give the path of a trained one."
            )
        refuse_lfs_pointer(file)
    try:
        record = json.loads(record_path.read_text())
    except ValueError as error:
        raise CheckpointError(
            f"{record_path}: expected JSON, got damaged text ({error}); copy the file again."
        ) from error
    if not isinstance(record, dict) or record.get("kind") != kind:
        raise CheckpointError(
            f"{record_path}: expected weights of a {kind}, got another record; give the path of a {kind}."
        )
    if record.get("sha256") != sha256(path):
        raise CheckpointError(
            f"{path}: expected the SHA-256 that {record_path.name} states, got another; copy both files again."
        )
    return read_safetensors(path), record


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: if the file is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: expected a whole safetensors file, got a damaged one ({error}); copy it again."
        ) from error


class _Inert:
    """Stand in for every class of a foreign pickle: keeps nothing and does nothing."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Accept a pickled list item and drop it."""

    def extend(self, items: Any) -> None:
        """Accept pickled list items and drop them."""


_STORAGES = "Float Double Half BFloat16 Long Int Short Char Byte Bool"
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    **{("torch", f"{kind}Storage"): getattr(torch, f"{kind}Storage") for kind in _STORAGES.split()},
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Inert)


def _inert_pickle() -> types.ModuleType:
    module = types.ModuleType("inert_pickle")
    module.Unpickler = _InertUnpickler  # type: ignore[attr-defined]
    module.load = lambda file, **_: _InertUnpickler(file).load()  # type: ignore[attr-defined]
    return module


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a file, running nothing that is pickled in it.

    Tries safetensors, then torch's `weights_only` reader, then an unpickler that rebuilds tensors and
    replaces every other class by one that does nothing (Lightning checkpoints of 2020 need it). An entry
    `state_dict`, `ema` or `model` is unwrapped.

    Raises:
        CheckpointError: if the file is missing, damaged or holds no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a weight file, got none; check the path.")
    refuse_lfs_pointer(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        content = _load_inert(path)
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    for name in ("state_dict", "ema", "model"):  # Lightning's, and LlamaGen's two
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    tensors = (
        {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise CheckpointError(
            f"{path}: expected tensors by name, got {type(content).__name__} without any; give a file with "
            "a state dict."
        )
    return tensors


def _load_inert(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", pickle_module=_inert_pickle(), weights_only=False)
    except Exception as error:  # a hostile or damaged pickle can raise anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected a torch checkpoint, got one that cannot be read ({error}); copy or download it again."
    )
