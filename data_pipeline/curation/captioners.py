"""Models that describe a few images: behind an HTTP endpoint, or with `transformers` in this process."""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ...errors import ConfigError, EnvironmentMissing
from .endpoint_captioner import Answer, AskConfig, EndpointCaptioner, check_endpoint

_HASHED_AT_ONCE = 1 << 22
_MINER_RECORD = "captioner.json"
"""What a folder of `gr2 caption train` holds, see `token_miner`."""


class Captioner(Protocol):
    """A model that is asked about images.

    at_once: how many threads may ask at a time.
    """

    at_once: int

    def ask(self, frames: Sequence[bytes], prompt: str) -> Answer:
        """Describe frames (JPEG files, in order of time) as the prompt wants it."""
        ...


@functools.lru_cache(maxsize=1)
def open_captioner(model: str, endpoint: str, config: AskConfig) -> Captioner:
    """Open a model, once in each process.

    Args:
        model: name that the endpoint knows; without an endpoint the folder or hub name of a `transformers` model, or a
            folder of `gr2 caption train`.
        endpoint: address before `/chat/completions` (`http://localhost:8000/v1`), empty for a local model.
        config: how it is asked.

    Raises:
        ConfigError: the address, the key or the model cannot be used.
        EnvironmentMissing: `transformers` is not installed.
    """
    if endpoint:
        return EndpointCaptioner(model, endpoint, config)
    if (Path(model) / _MINER_RECORD).is_file():
        return MiningCaptioner(model, config)
    return LocalCaptioner(model, config)


class LocalCaptioner:
    """An image-text-to-text model of `transformers` in this process; it is asked one clip at a time.

    Weights are read from safetensors files alone, and no code that comes with the model is run.

    Raises:
        ConfigError: there is no such model, or it takes no images.
        EnvironmentMissing: `transformers` is not installed.
    """

    at_once = 1

    def __init__(self, model: str, config: AskConfig) -> None:
        transformers = _load_transformers()
        import torch

        self._max_tokens = config.max_tokens
        self._revision = model_revision(model, config.revision)
        local = Path(model).is_dir()
        source: dict[str, Any] = {} if local else {"revision": self._revision or None}
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(
                model, trust_remote_code=False, local_files_only=local, **source
            )
            self._network: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                model, trust_remote_code=False, use_safetensors=True, dtype="auto", local_files_only=local, **source
            )
            self._network = self._network.to(device).eval()
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
            raise _unusable_model(model, error) from error

    def ask(self, frames: Sequence[bytes], prompt: str) -> Answer:
        """Generate greedily.

        Raises:
            ConfigError: the model has no chat template.
        """
        import torch

        images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
        content = [{"type": "image", "image": image} for image in images]
        messages = [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]
        try:
            inputs = self._processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self._network.device, dtype=self._network.dtype)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"model: expected one with a chat template and images, got {error}.") from error
        with torch.inference_mode():
            tokens = self._network.generate(**inputs, do_sample=False, max_new_tokens=self._max_tokens)
        answer = tokens[0, inputs["input_ids"].shape[1] :]
        ends = self._network.generation_config.eos_token_id
        ended = len(answer) and int(answer[-1]) in (ends if isinstance(ends, list) else [ends])
        finish = "stop" if len(answer) < self._max_tokens or ended else "length"
        text = self._processor.batch_decode(answer[None], skip_special_tokens=True)[0]
        return Answer(text=text, finish=finish, revision=self._revision)


class MiningCaptioner:
    """A captioner of `gr2 caption train` in this process; it was trained with its prompt and reads no other.

    Raises:
        CheckpointError: the folder is damaged.
        EnvironmentMissing: `transformers` is not installed.
    """

    at_once = 1

    def __init__(self, folder: str, config: AskConfig) -> None:
        import torch

        from ..token_miner import load_captioner

        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_captioner(Path(folder)).to(device)
        self._max_tokens, self._revision, self._device = config.max_tokens, _folder_digest(Path(folder)), device

    def ask(self, frames: Sequence[bytes], prompt: str) -> Answer:
        """Write greedily what the frames show."""
        import torch

        from ..token_miner import clip_frames

        clip = torch.as_tensor(clip_frames(frames, self._model.miner.config), device=self._device)[None]
        ((text, ended),) = self._model.write(clip, max_tokens=self._max_tokens)
        return Answer(text=text, finish="stop" if ended else "length", revision=self._revision)


def model_revision(model: str, revision: str) -> str:
    """Name the version of a local model: the commit of a hub model, or the SHA-256 of what a folder holds.

    Raises:
        ConfigError: there is no such model.
        EnvironmentMissing: `transformers` is not installed.
    """
    transformers = _load_transformers()
    if Path(model).is_dir():
        return _folder_digest(Path(model))
    try:
        config = transformers.AutoConfig.from_pretrained(model, revision=revision or None, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _unusable_model(model, error) from error
    return str(getattr(config, "_commit_hash", None) or revision)


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    files = [*folder.iterdir(), *folder.glob("language_model/*")]
    for file in sorted(file for file in files if file.suffix in (".json", ".safetensors", ".jinja")):
        digest.update(file.name.encode())
        with file.open("rb") as opened:
            while block := opened.read(_HASHED_AT_ONCE):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def _load_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentMissing(
            f"a local vision-language model: {error}; install gr2 with the extra `caption`, or name an --endpoint."
        ) from error
    return transformers


def _unusable_model(model: str, error: Exception) -> ConfigError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return ConfigError(
        f"model {model}: expected a folder or hub name of an image-text-to-text model with safetensors weights, got "
        f"{reason[:200]}; check the name."
    )


def answering_model(model: str, endpoint: str, config: AskConfig) -> Mapping[str, str]:
    """Return what identifies the model in a manifest; a local one has a revision before it is asked.

    Raises:
        ConfigError: the address or the model cannot be used.
        EnvironmentMissing: `transformers` is not installed.
    """
    if endpoint:
        check_endpoint(endpoint)
        return {"model": model, "served_by": "endpoint"}
    return {"model": model, "served_by": "transformers", "revision": model_revision(model, config.revision)}
