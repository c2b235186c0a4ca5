"""Train a small CLIP on pairs of images and captions; its text tower is the offline text encoder."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from open_clip import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from ..contracts import Array
from ..errors import ShapeError
from .steps import require_finite, run_steps, warmup_cosine
from .text import (
    END_OF_TEXT,
    UNKNOWN_ROW,
    TextConfig,
    TextEncoder,
    Vocabulary,
    token_features,
    token_mask,
    tokenize,
    vocabulary_of,
)
from .text_weights import load_text_encoder
from .weight_files import save_weights

Pairs = tuple[Array, list[str]]
"""Frames, uint8 `[b h w 3]` or stacks of frames `[b m h w 3]` in time order, and a caption for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTrainingConfig:
    """How the small CLIP is trained.

    vision_width, vision_layers, patch_size: of the vision tower, which is thrown away afterwards.
    word_dropout: chance that a word is read as unknown, so that the row of unknown words is trained.
    word_weight: weight of telling from each token's feature which word it is. The features are used token by token;
        the contrastive loss alone lets words fade that images rarely distinguish, such as left and right.
    """

    text: TextConfig = field(default_factory=TextConfig)
    vision_width: int = 96
    vision_layers: int = 2
    patch_size: int = 8
    learning_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    word_dropout: float = 0.03
    word_weight: float = 1.0


class EqualCaptionsClipLoss(ClipLoss):
    """open_clip's contrastive loss where all pairs of a batch with the same caption count as positives."""

    def forward(  # type: ignore[override]
        self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor, caption_ids: Int[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Return the cross-entropy to targets spread evenly over pairs with equal `caption_ids`."""
        per_image, per_text = self.get_logits(image_features, text_features, logit_scale)
        equal = (caption_ids[:, None] == caption_ids[None, :]).to(per_image.dtype)
        targets = equal / equal.sum(1, keepdim=True)
        return (F.cross_entropy(per_image, targets) + F.cross_entropy(per_text, targets)) / 2


def frame_channels(frames: Int[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
    """Stack frames along channels: the first in [-1, 1], then the change of each later one from the first.

    What a caption names is mostly what changes, and in plain stacks that is a small difference of large
    numbers.
    """
    stack = frames if frames.ndim == 5 else frames[:, None]
    images = stack.permute(0, 1, 4, 2, 3).float().div(127.5).sub(1.0)
    changes = images[:, 1:] - images[:, :1]
    return torch.cat([images[:, :1], changes], 1).flatten(1, 2)


class SmallCLIP(nn.Module):
    """open_clip's CLIP in a small shape, over a small vocabulary and stacks of frames."""

    def __init__(self, config: TextTrainingConfig, *, rows: int, frames: int, side: int) -> None:
        super().__init__()
        text = config.text
        self.clip = CLIP(
            embed_dim=text.embed_dim,
            vision_cfg=CLIPVisionCfg(
                layers=config.vision_layers,
                width=config.vision_width,
                head_width=32,
                patch_size=config.patch_size,
                image_size=side,
            ),
            text_cfg=CLIPTextCfg(
                context_length=text.context_length,
                vocab_size=rows,
                width=text.width,
                heads=text.heads,
                layers=text.layers,
            ),
        )
        self.words = nn.Linear(text.width, rows)
        patch = config.patch_size
        self.clip.visual.conv1 = nn.Conv2d(3 * frames, config.vision_width, patch, stride=patch, bias=False)

    def forward(self, frames: Tensor, rows: Int[Tensor, "b l"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return unit-length image and text features, the logit scale, and every token's scores of the words."""
        images = self.clip.encode_image(frame_channels(frames), normalize=True)
        texts = self.clip.encode_text(rows, normalize=True)
        return images, texts, self.clip.logit_scale.exp(), self.words(token_features(self.clip, rows))

    def text_state(self) -> dict[str, Tensor]:
        """Return the text tower's tensors, under the names of open_clip's text transformer."""
        state = self.clip.state_dict()
        return {k: v for k, v in state.items() if not k.startswith("visual.") and k != "logit_scale"}


class TextTraining(L.LightningModule):
    """Optimization steps of the small CLIP."""

    def __init__(
        self, config: TextTrainingConfig, vocabulary: Vocabulary, *, frames: int, side: int, steps: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.training_config, self.vocabulary, self.steps = config, vocabulary, steps
        self.model = SmallCLIP(config, rows=len(vocabulary), frames=frames, side=side)
        self.loss = EqualCaptionsClipLoss()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW, with weight decay on matrices alone."""
        parameters = list(self.model.parameters())
        matrices = [p for p in parameters if p.ndim > 1]
        others = [p for p in parameters if p.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": self.training_config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, self.training_config.learning_rate, betas=(0.9, 0.98))

    def training_step(self, batch: tuple[Tensor, list[str]], batch_idx: int) -> None:
        """Take one step on frames and their captions."""
        frames, captions = batch
        config, step = self.training_config, self.global_step
        tokens = tokenize(captions, config.text.context_length)
        rows = drop_words(self.vocabulary.rows[tokens], tokens, config.word_dropout, step).to(frames.device)
        ids = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        images, texts, scale, words = self.model(frames, rows)
        same = torch.tensor([ids[caption] for caption in captions], device=frames.device)
        used = token_mask(tokens).to(frames.device)
        word_loss = F.cross_entropy(words[used], rows[used])
        loss = self.loss(images, texts, scale, same) + config.word_weight * word_loss
        require_finite(loss.detach(), step)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warmup_cosine(step, steps=self.steps, warmup=config.warmup)
        optimizer.zero_grad()
        self.manual_backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(0.0, math.log(100.0))
            hits = same[(images @ texts.t()).argmax(1)] == same
        self.log_dict(
            {
                "loss": loss.detach(),
                "word_loss": word_loss.detach(),
                "in_batch_top1": hits.float().mean(),
                "logit_scale": scale.detach(),
            }
        )


def drop_words(rows: Int[Tensor, "b l"], tokens: Int[Tensor, "b l"], chance: float, seed: int) -> Int[Tensor, "b l"]:
    """Replace words, never start, end or padding, by the unknown row with the given chance."""
    generator = torch.Generator().manual_seed(seed)
    dropped = torch.rand(rows.shape, generator=generator) < chance
    words = (tokens > 0) & (tokens < END_OF_TEXT - 1)
    return rows.masked_fill(dropped & words, UNKNOWN_ROW)


@torch.inference_mode()
def measure_retrieval(module: TextTraining, pairs: Pairs) -> dict[str, float]:
    """Return how often the caption of held-out frames is the nearest, or among the nearest five."""
    frames, captions = pairs
    model, unique = module.model.eval(), sorted(set(captions))
    tokens = tokenize(unique, module.training_config.text.context_length)
    texts = model.clip.encode_text(module.vocabulary.rows[tokens].to(module.device), normalize=True)
    wanted = torch.tensor([unique.index(caption) for caption in captions])
    ranked = []
    for start in range(0, len(frames), 64):
        channels = frame_channels(torch.as_tensor(frames[start : start + 64], device=module.device))
        images = model.clip.encode_image(channels, normalize=True)
        ranked.append((images @ texts.t()).argsort(1, descending=True)[:, :5].cpu())
    hits = torch.cat(ranked) == wanted[:, None]
    return {
        "retrieval_top1": float(hits[:, 0].float().mean()),
        "retrieval_top5": float(hits.any(1).float().mean()),
        "sentences": float(len(unique)),
    }


def train_text(
    *,
    sample_pairs: Callable[[int, np.random.Generator], Pairs],
    captions: Sequence[str],
    validation: Pairs,
    out: Path,
    training: TextTrainingConfig | None = None,
    steps: int = 2000,
    batch_size: int = 64,
    seed: int = 0,
    checkpoint_every: int = 500,
    resume: bool = True,
    stop_after: int | None = None,
) -> TextEncoder:
    """Train a small CLIP, write `text.safetensors`, `text.json` and the log to `out`, return its encoder.

    Args:
        sample_pairs: samples frames and captions for a batch size and a generator.
        captions: every caption of the data; their tokens make the vocabulary.
        validation: held-out pairs for the retrieval metrics.
        out: folder of the run.
        training: shape and optimization.
        steps: optimization steps.
        batch_size: pairs a step.
        seed: of weights and batches.
        checkpoint_every: steps between checkpoints.
        resume: from the last checkpoint in `out`.
        stop_after: end early at this step, to be resumed later.

    Raises:
        ShapeError: if the frames are not `[b h w 3]` or `[b m h w 3]` and square.
        Gr2Error: if the loss is no number.
    """
    training = training or TextTrainingConfig()
    shape = validation[0].shape
    if len(shape) not in (4, 5) or shape[-1] != 3 or shape[-2] != shape[-3] or len(validation[1]) != shape[0]:
        raise ShapeError(
            "train_text.validation: expected square frames (b, h, w, 3) or (b, m, h, w, 3) and b "
            f"captions, got {shape} and {len(validation[1])}; check the sampler."
        )
    torch.manual_seed(seed)
    vocabulary = vocabulary_of(captions)
    frames = shape[1] if len(shape) == 5 else 1
    module = TextTraining(training, vocabulary, frames=frames, side=shape[-2], steps=steps)
    begin = time.perf_counter()

    def sample_batch(generator: np.random.Generator) -> tuple[Tensor, list[str]]:
        images, matching = sample_pairs(batch_size, generator)
        return torch.from_numpy(np.ascontiguousarray(images)), list(matching)

    run_steps(
        module,
        sample_batch,
        out=out,
        steps=steps,
        seed=seed,
        checkpoint_every=checkpoint_every,
        log_every=max(1, min(50, steps // 10)),
        description="text",
        resume=resume,
        stop_after=stop_after,
    )
    record = {
        "kind": "text",
        "config": asdict(training.text),
        "training": asdict(training),
        "command": " ".join(["gr2", *sys.argv[1:]]),
        "steps": module.global_step,
        "batch_size": batch_size,
        "seed": seed,
        "seconds": round(time.perf_counter() - begin, 1),
        "metrics": measure_retrieval(module, validation),
    }
    tensors = {name: tensor.to(torch.float16) for name, tensor in module.model.text_state().items()}
    tensors["token_ids"] = torch.as_tensor(vocabulary.token_ids, dtype=torch.int32)
    save_weights(out / "text.safetensors", tensors, record)
    return load_text_encoder(out)
