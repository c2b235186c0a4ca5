"""How well frozen encoders fit data that they were not trained on: reconstruction, and words that are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..contracts import Array
from .quality import psnr
from .text import TextEncoder
from .vqgan import VQGAN, normalize_frames

POOR_DB = 3.0
"""Loss against the tokenizer's own training data [dB] from which advice is given: twice the squared error."""

LEAST_DB = 20.0
"""What a tokenizer should reach that does not state how it does on its own data [dB]."""

POOR_WORDS = 0.05
"""Share of unknown words above which advice is given."""

_NAMED = 6
"""Unknown words that a line lists."""


@torch.inference_mode()
def reconstruction_psnr(vqgan: VQGAN, frames: Array, *, batch_size: int = 32) -> float:
    """Return the mean peak signal-to-noise ratio [dB] of reconstructions of uint8 frames `[f h w 3]`."""
    total = 0.0
    for start in range(0, len(frames), batch_size):
        images = normalize_frames(torch.as_tensor(frames[start : start + batch_size])).to(vqgan.codebook.device)
        total += float(psnr(vqgan.decode(vqgan.encode(images)), images)) * len(images)
    return total / len(frames)


def is_poor(found_db: float, trained_db: float | None) -> bool:
    """Return whether images lose too much in the tokenizer.

    Args:
        trained_db: reconstruction of the tokenizer's own training data [dB]; None where that is unknown.
    """
    return found_db < (LEAST_DB if trained_db is None else trained_db - POOR_DB)


def describe_images(vqgan: VQGAN, frames: Array) -> str:
    """Return in one line how well images come back, beside the tokenizer's own training data, with advice if poorly."""
    found, trained = reconstruction_psnr(vqgan, frames), vqgan.trained_psnr
    own = "" if trained is None else f", {trained:.1f} dB on the data it was trained on"
    line = f"image tokenizer: {found:.1f} dB on {len(frames)} images of these shards{own}"
    if is_poor(found, trained):
        line += "; poor: train one on your images (`gr2 tokenizer train --shards ...`) and name it with --tokenizer"
    return line


def describe_texts(encoder: TextEncoder, texts: Iterable[str]) -> str:
    """Return in one line how many words of different texts an encoder knows, with advice if many are unknown."""
    different = sorted({text for text in texts if text})
    words = [word for text in different for word in encoder.words(text)]
    unknown = [word for text in different for word in encoder.unknown_words(text)]
    if not words:
        return ""
    share = len(unknown) / len(words)
    line = f"text encoder: {share:.0%} of the words of {len(different)} captions are unknown to it"
    if unknown:
        line += f" ({listed(list(dict.fromkeys(unknown)))})"
    if share > POOR_WORDS:
        line += "; `--text ViT-B-32:openai` knows all words, `gr2 text train` learns those of your captions"
    return line


def listed(words: Sequence[str]) -> str:
    """Return the first few words of a list, and how many more there are."""
    more = f" and {len(words) - _NAMED} more" if len(words) > _NAMED else ""
    return ", ".join(words[:_NAMED]) + more
