"""`gr2 caption train`: a captioner of one's own from clips and their captions."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..contracts import Array
from ..errors import ConfigError, DataError, EnvironmentMissing
from .curation.caption import View, show_window
from .curation.caption_words import nouns_of, verb_of
from .locations import as_location
from .store.shards import list_shards, read_indexed
from .store.stages import expect_video_shards
from .token_miner import MinedLanguage, MinerConfig, TokenMiner, clip_frames, load_language, save_captioner

CHECKPOINT, LOG = "last.pt", "metrics.csv"

_MOST_JUDGED = 128
"""Held-out clips that are captioned to judge the result."""

_LONGEST = 32
"""Tokens of such a caption."""


@dataclass(frozen=True, kw_only=True)
class CaptionerOptions:
    """Options of `gr2 caption train`.

    Args:
        shards: folder of video shards with captions, its URL, or tars by pattern.
        language_model: folder or hub name of a causal language model of `transformers`.
        out: folder for the captioner, the log and the checkpoint; a stopped run resumes.
        language: what of the language model is trained: nothing (frozen), changes of low rank (lora, by `peft`) or all
            of it (full).
        lora_rank: of the changes.
        prompt: words between what is seen and the caption.
        num_tokens: tokens that a clip becomes.
        num_frames: frames of a clip, spread over it.
        image_size: side of a frame [px].
        width: of the layers that mine the tokens.
        depth: of them.
        steps: optimization steps.
        batch_size: clips a step.
        learning_rate: peak of AdamW's for the miner; the language model takes a tenth.
        validation_share: share of the clips that is held out, one at least.
        checkpoint_every: steps between checkpoints.
        device: where to train; auto takes a GPU where there is one.
        seed: of weights and batches.
    """

    shards: str
    language_model: str
    out: Path
    language: Literal["frozen", "lora", "full"] = "lora"
    lora_rank: int = 8
    prompt: str = "Caption: "
    num_tokens: int = 16
    num_frames: int = 8
    image_size: int = 64
    width: int = 128
    depth: int = 2
    steps: int = 2000
    batch_size: int = 16
    learning_rate: float = 1e-3
    validation_share: float = 0.1
    checkpoint_every: int = 200
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.lora_rank, self.num_tokens, self.num_frames, self.image_size, self.width, self.depth, self.steps)
        if min(*counts, self.batch_size, self.checkpoint_every) < 1 or not self.learning_rate > 0:
            raise ConfigError("caption train: expected 1 or more of every number and a learning rate above 0.")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"--validation-share: expected a share between 0 and 1, got {self.validation_share}.")


def train_captioner(options: CaptionerOptions) -> dict[str, float]:
    """Train a captioner and judge it on held-out clips.

    Returns:
        `loss` [nats a token] of held-out captions, and how often verb and objects of what it writes are those of the
        caption, beside the guess that always names the most frequent ones.

    Raises:
        DataError: fewer than two clips with captions.
        EnvironmentMissing: `transformers` or, for lora, `peft` is not installed.
    """
    o = options
    expect_video_shards(as_location(o.shards))
    device = torch.device("cuda" if o.device != "cpu" and torch.cuda.is_available() else "cpu")
    torch.manual_seed(o.seed)
    language, tokenizer = load_language(o.language_model)
    config = MinerConfig(
        image_size=o.image_size, num_frames=o.num_frames, num_tokens=o.num_tokens, width=o.width, depth=o.depth,
        language_width=int(language.get_input_embeddings().embedding_dim),
    )  # fmt: skip
    frames, captions = _read_clips(o.shards, config)
    order = np.random.default_rng(o.seed).permutation(len(captions))
    held, kept = np.split(order, [min(max(1, round(o.validation_share * len(order))), len(order) - 1)])
    model = MinedLanguage(TokenMiner(config), _adapted(language, o), tokenizer, prompt=o.prompt).to(device)
    _run(model, o, frames, captions, kept)
    metrics = _judge(model.eval(), frames, captions, held, kept)
    if o.language == "lora":
        model.language = model.language.merge_and_unload()
    provenance = {"language_model": o.language_model, "language": o.language, "steps": o.steps, "seed": o.seed}
    save_captioner(o.out, model, provenance=provenance | {"clips": len(kept), **metrics})
    for name, value in metrics.items():
        print(f"{name}: {value:.3f}")
    return metrics


def _read_clips(shards: str, config: MinerConfig) -> tuple[Array, list[str]]:
    """Decode the captioned windows of shards, uint8 `[m f s s 3]`, and their captions."""
    view = View(num_frames=config.num_frames, short_side=config.image_size)
    frames, captions = [], []
    for shard in list_shards(as_location(shards)):
        for _, members in read_indexed(shard):
            description = json.loads(members["json"])
            for window in (window for window in description["windows"] if window["caption"]):
                try:
                    images = show_window(description, members, window, view)
                except DataError:
                    continue
                frames.append(clip_frames(images, config))
                captions.append(str(window["caption"]))
    if len(captions) < 2:
        raise DataError(f"{shards}: expected two clips with captions or more, got {len(captions)}; caption some first.")
    return np.stack(frames), captions


def _adapted(language: Any, o: CaptionerOptions) -> Any:
    """Freeze the language model, or give it changes of low rank, or train all of it."""
    if o.language == "full":
        return language.requires_grad_(True)
    language.requires_grad_(False)
    if o.language == "frozen":
        return language
    try:
        import peft
    except ImportError as error:
        raise EnvironmentMissing(
            f"--language lora: {error}; install gr2 with the extra `caption`, or choose frozen or full."
        ) from error
    return peft.get_peft_model(language, peft.LoraConfig(r=o.lora_rank, target_modules="all-linear"))


def _run(model: MinedLanguage, o: CaptionerOptions, frames: Array, captions: Sequence[str], kept: Array) -> None:
    """Take the steps that are missing; batches follow from seed and step, so that a stopped run resumes exactly."""
    rates = {True: o.learning_rate, False: 0.1 * o.learning_rate}
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [{"params": [p for n, p in named if n.startswith("miner.") is mine], "lr": rates[mine]} for mine in rates]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.01)
    first = _resume(model, optimizer, o.out / CHECKPOINT)
    device = next(model.parameters()).device
    o.out.mkdir(parents=True, exist_ok=True)
    with (o.out / LOG).open("a", newline="") as file, tqdm(total=o.steps, initial=first, unit="step") as progress:
        log = csv.writer(file)
        if first == 0:
            log.writerow(["step", "loss"])
        for step in range(first, o.steps):
            torch.manual_seed(o.seed * 1_000_003 + step)
            rng = np.random.default_rng((o.seed, step))
            chosen = rng.choice(kept, size=min(o.batch_size, len(kept)), replace=False)
            factor = min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / o.steps))
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("peak", group["lr"]) * factor
            model.train()
            loss = model.loss((torch.as_tensor(frames[chosen], device=device), [captions[i] for i in chosen]))
            if not torch.isfinite(loss):
                raise DataError(
                    f"caption train: expected a finite loss, got {loss.item()} at step {step}; lower --learning-rate."
                )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
            optimizer.step()
            progress.update()
            if (step + 1) % 20 == 0 or step + 1 == o.steps:
                log.writerow([step + 1, f"{loss.item():.5f}"])
                progress.set_postfix(loss=f"{loss.item():.3f}")
            if (step + 1) % o.checkpoint_every == 0 or step + 1 == o.steps:
                file.flush()
                _save(model, optimizer, o.out / CHECKPOINT, step + 1)


def _trained(model: MinedLanguage) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _save(model: MinedLanguage, optimizer: torch.optim.Optimizer, file: Path, step: int) -> None:
    state = {"step": step, "weights": _trained(model), "optimizer": optimizer.state_dict()}
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def _resume(model: MinedLanguage, optimizer: torch.optim.Optimizer, file: Path) -> int:
    """Go on from a checkpoint; return the step that comes next.

    Raises:
        DataError: it is of another language model or other sizes.
    """
    if not file.is_file():
        return 0
    state = torch.load(file, map_location="cpu", weights_only=True)
    trained = _trained(model)
    if {name: p.shape for name, p in trained.items()} != {name: p.shape for name, p in state["weights"].items()}:
        raise DataError(f"{file}: expected a checkpoint of these options, got one of others; choose another --out.")
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(state["weights"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _judge(model: MinedLanguage, frames: Array, captions: Sequence[str], held: Array, kept: Array) -> dict[str, float]:
    """Compare what is written of held-out clips with their captions."""
    judged, device = held[:_MOST_JUDGED], next(model.parameters()).device
    written, losses = [], []
    for start in range(0, len(judged), 16):
        some = judged[start : start + 16]
        seen = torch.as_tensor(frames[some], device=device)
        written += [text for text, _ in model.write(seen, max_tokens=_LONGEST)]
        with torch.no_grad():
            losses += [float(model.loss((seen, [captions[i] for i in some])))] * len(some)
    truth = [captions[i] for i in judged]
    common = Counter(verb_of(captions[i]) for i in kept).most_common(1)[0][0]
    object_of = Counter(_objects(captions[i]) for i in kept).most_common(1)[0][0]
    pairs = list(zip(written, truth, strict=True))
    return {
        "loss": float(np.mean(losses)),
        "verb_accuracy": float(np.mean([verb_of(a) == verb_of(b) for a, b in pairs])),
        "verb_majority": float(np.mean([verb_of(b) == common for b in truth])),
        "object_accuracy": float(np.mean([_objects(a) == _objects(b) for a, b in pairs])),
        "object_majority": float(np.mean([_objects(b) == object_of for b in truth])),
        "held_out": float(len(judged)),
    }


def _objects(caption: str) -> tuple[str, ...]:
    """Return the nouns of a caption with the colors before them."""
    words = caption.lower().replace(",", " ").split()
    colors = [word for word in words if word in {"red", "blue", "pink", "green", "yellow", "black", "white"}]
    return (*colors, *nouns_of(caption))
