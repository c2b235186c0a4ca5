"""A captioner of video of one's own: frames become a few learned tokens, which a language model reads as words.

Patches of the frames, with learned places and times, are looked at by N learned queries; what they find (the mined
tokens) is put before the prompt of any causal language model of `transformers`. On disk it is a folder with the miner,
its record and the language model.

Source: HiLight, arXiv 2407.07325, which mines tokens for a video language model; learned queries as in BLIP-2, arXiv
2301.12597, section 3.1.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..contracts import Array
from ..errors import CheckpointError, ConfigError, EnvironmentMissing
from .files import write_json
from .video.frames import resize_frames

RECORD, WEIGHTS, LANGUAGE = "captioner.json", "miner.safetensors", "language_model"
FORMAT_VERSION = 1

Batch = tuple[Int[Tensor, "b f s s 3"], list[str]]
"""Frames of clips, uint8, and what is said of them."""


@dataclass(frozen=True, kw_only=True)
class MinerConfig:
    """Sizes of `TokenMiner`.

    image_size: side of a frame [px]; patch_size: of a patch [px]; num_frames: of a clip.
    num_tokens: that are mined; width, depth, heads: of the layers that look at the patches.
    language_width: of the language model's embeddings.
    """

    image_size: int = 64
    patch_size: int = 8
    num_frames: int = 8
    num_tokens: int = 16
    width: int = 128
    depth: int = 2
    heads: int = 4
    language_width: int

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size or self.width % self.heads or min(self.num_frames, self.num_tokens) < 1:
            raise ConfigError(
                "MinerConfig: expected patches that fill the image, heads that divide the width, frames, tokens, got "
                f"{self.image_size}/{self.patch_size}, {self.width}/{self.heads}, {self.num_frames}, "
                f"{self.num_tokens}; change them."
            )


class TokenMiner(nn.Module):
    """Frames to tokens of a language model's width."""

    def __init__(self, config: MinerConfig) -> None:
        super().__init__()
        self.config, c = config, config
        side = c.image_size // c.patch_size
        self.patches = nn.Conv2d(3, c.width, c.patch_size, c.patch_size)
        self.places = nn.Parameter(0.02 * torch.randn(side * side, c.width))
        self.times = nn.Parameter(0.02 * torch.randn(c.num_frames, 1, c.width))
        self.queries = nn.Parameter(0.02 * torch.randn(c.num_tokens, c.width))
        layer = nn.TransformerDecoderLayer(
            c.width, c.heads, 4 * c.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.look = nn.TransformerDecoder(layer, c.depth, nn.LayerNorm(c.width))
        self.say = nn.Linear(c.width, c.language_width)

    def forward(self, frames: Int[Tensor, "b f s s 3"]) -> Float[Tensor, "b n w"]:
        """Mine the tokens of clips."""
        b = len(frames)
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
        patches = self.patches(pixels).flatten(2).transpose(1, 2) + self.places
        seen = (patches.unflatten(0, (b, -1)) + self.times).flatten(1, 2)
        out: Tensor = self.say(self.look(self.queries.expand(b, -1, -1), seen))
        return out


class MinedLanguage(nn.Module):
    """A miner before a language model: scores captions in training, and writes them.

    Args:
        language: a causal language model of `transformers`.
        tokenizer: its tokenizer, with an end-of-text token.
        prompt: words between the mined tokens and the caption.
    """

    def __init__(self, miner: TokenMiner, language: Any, tokenizer: Any, *, prompt: str) -> None:
        super().__init__()
        self.miner, self.language, self.tokenizer, self.prompt = miner, language, tokenizer, prompt

    def loss(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy of the captions' tokens [nats]."""
        frames, captions = batch
        start, mask = self._begin(frames)
        end = self.tokenizer.eos_token
        kwargs = {"add_special_tokens": False, "padding": True, "return_tensors": "pt"}
        found = self.tokenizer([caption + end for caption in captions], **kwargs).to(start.device)
        words = self.language.get_input_embeddings()(found["input_ids"])
        labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
        labels = torch.cat((labels.new_full(mask.shape, -100), labels), dim=1)
        out = self.language(
            inputs_embeds=torch.cat((start, words), dim=1),
            attention_mask=torch.cat((mask, found["attention_mask"]), dim=1),
            labels=labels,
        )
        loss: Tensor = out.loss
        return loss

    @torch.inference_mode()
    def write(self, frames: Int[Tensor, "b f s s 3"], *, max_tokens: int) -> list[tuple[str, bool]]:
        """Write captions greedily; also say of each whether it came to its end."""
        start, mask = self._begin(frames)
        tokens = self.language.generate(
            inputs_embeds=start, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens,
            pad_token_id=self.tokenizer.pad_token_id, eos_token_id=self.tokenizer.eos_token_id,
        )  # fmt: skip
        ended = (tokens == self.tokenizer.eos_token_id).any(1).tolist()
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [(text.strip(), end) for text, end in zip(texts, ended, strict=True)]

    def _begin(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Embed mined tokens and prompt, and say that all of it is there."""
        embed = self.language.get_input_embeddings()
        mined = self.miner(frames).to(embed.weight.dtype)
        ids = self.tokenizer(self.prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        words = embed(ids.long().to(frames.device)).expand(len(frames), -1, -1)
        start = torch.cat((mined, words), dim=1)
        return start, torch.ones(start.shape[:2], dtype=torch.long, device=start.device)


def clip_frames(images: Sequence[bytes], config: MinerConfig) -> Array:
    """Return images of a clip (JPEG, in order of time) as the frames that a miner takes, uint8 `[f s s 3]`."""
    places = np.linspace(0, len(images) - 1, config.num_frames).round().astype(int)
    frames = np.stack([np.asarray(Image.open(io.BytesIO(images[place])).convert("RGB")) for place in places])
    return resize_frames(frames, config.image_size, "crop")


def load_language(folder: str | Path) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer from a folder; no code that comes with it is run.

    Raises:
        ConfigError: it is no such folder.
        EnvironmentMissing: `transformers` is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise EnvironmentMissing(f"a language model: {error}; install gr2 with the extra `caption`.") from error
    try:
        local: dict[str, Any] = {"trust_remote_code": False, "local_files_only": Path(folder).is_dir()}
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
        language = transformers.AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True, **local)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(
            f"language model {folder}: expected a folder or hub name of a causal language model with safetensors "
            f"weights and a tokenizer, got {reason[:200]}; check the name."
        ) from error
    if tokenizer.eos_token is None:
        raise ConfigError(f"language model {folder}: expected a tokenizer with an end-of-text token; choose another.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return language, tokenizer


def save_captioner(folder: Path, model: MinedLanguage, *, provenance: Mapping[str, Any]) -> None:
    """Write a captioner; the record comes last, so that a folder with a record is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.miner.state_dict().items()}, folder / WEIGHTS)
    model.language.save_pretrained(folder / LANGUAGE, safe_serialization=True)
    model.tokenizer.save_pretrained(folder / LANGUAGE)
    record = {"format_version": FORMAT_VERSION, "miner": asdict(model.miner.config), "prompt": model.prompt}
    write_json(folder / RECORD, record | {"provenance": dict(provenance)})


def is_captioner(folder: str | Path) -> bool:
    """Return whether a folder holds a captioner of one's own."""
    return (Path(folder) / RECORD).is_file()


def load_captioner(folder: Path) -> MinedLanguage:
    """Load a captioner, ready to write.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    try:
        record = json.loads((folder / RECORD).read_text())
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder / RECORD}: expected format version {FORMAT_VERSION}, got {record['format_version']}; use the "
                "gr2 version that wrote it."
            )
        miner = TokenMiner(MinerConfig(**record["miner"]))
        miner.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder}: expected a captioner of `gr2 caption train`, got an unusable one ({error}); train it again."
        ) from error
    language, tokenizer = load_language(folder / LANGUAGE)
    return MinedLanguage(miner, language, tokenizer, prompt=record["prompt"]).eval()
