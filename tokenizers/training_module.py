"""The optimization steps of a VQGAN, with and without a critic."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..layers import fast_bfloat16
from .losses import PerceptualLoss, adaptive_weight, hinge_loss, make_critic, reconstruction_loss
from .quality import psnr
from .quantize import CodebookAverage, codebook_perplexity
from .steps import require_finite, warmup_cosine
from .training_options import VQGANTrainingConfig
from .vqgan import VQGAN, VQGANConfig, normalize_frames


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What is left of a part of a step's images after its backward pass; `codes` is None before quantization."""

    images: Float[Tensor, "b 3 h w"]
    reconstruction: Float[Tensor, "b 3 h w"]
    latents: Float[Tensor, "m d"]
    codes: Int[Tensor, " m"] | None
    share: float
    metrics: dict[str, Tensor]


class VQGANTraining(L.LightningModule):
    """A VQGAN, its critic and its codebook averages, trained by `training_step`."""

    def __init__(self, config: VQGANConfig, training: VQGANTrainingConfig, *, steps: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.training_config, self.steps = training, steps
        self.model = VQGAN(config)
        losses = training.losses
        self.critic = make_critic(losses) if losses.adversarial > 0 else None
        # Not a sub-module: its frozen weights come from their own file and stay out of the checkpoints.
        self.perceptual: list[PerceptualLoss] = []
        if losses.perceptual > 0:
            self.perceptual.append(PerceptualLoss(vgg_file=losses.vgg_file, heads_file=losses.heads_file))
        self.codebook_average = CodebookAverage(
            codebook_size=config.codebook_size,
            embed_dim=config.embed_dim,
            decay=training.codebook_decay or 0.98,
        )
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(training.weight_average))
            if training.weight_average > 0
            else None
        )
        self.last_tick = time.perf_counter()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return AdamW for the VQGAN and, with a critic, one for the critic."""
        t = self.training_config
        betas = (0.5, 0.9) if self.critic is not None else (0.9, 0.99)
        groups = [(self.model.parameters(), t.weight_decay)]
        if self.critic is not None:
            groups.append((self.critic.parameters(), 0.0))
        return [torch.optim.AdamW(p, t.learning_rate, betas=betas, weight_decay=w) for p, w in groups]

    @property
    def quantize_start(self) -> int:
        """Step at which the quantizer is put between encoder and decoder."""
        return min(self.training_config.quantize_start, self.steps // 4)

    def training_step(self, frames: UInt8[Tensor, "b h w 3"], batch_idx: int) -> None:
        """Take one step on uint8 frames, in `accumulate` parts."""
        step, t = self.global_step, self.training_config
        optimizers = self._optimizers(step)
        pieces = frames.chunk(t.accumulate)
        # Seeded by the step, so that a resumed run samples what the whole run would have sampled.
        generator = torch.Generator().manual_seed(step)
        if step == self.quantize_start:
            self._place_codebook(pieces, generator)
        optimizers[0].zero_grad()
        parts = [self._backward(normalize_frames(piece), len(piece) / len(frames), step) for piece in pieces]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), t.clip_norm)
        metrics: dict[str, Any] = {name: sum(p.share * p.metrics[name] for p in parts) for name in parts[0].metrics}
        metrics |= self._update_codebook(parts, step, generator)
        optimizers[0].step()
        if self._is_adversarial(step):
            metrics["critic"] = self._critic_step(parts, optimizers[1])
        if self.average is not None:
            self.average.update_parameters(self.model)
        tick, self.last_tick = self.last_tick, time.perf_counter()
        self.log_dict(metrics | {"images_per_s": len(frames) / (self.last_tick - tick)})

    def _optimizers(self, step: int) -> list[Any]:
        """Return the optimizers with the learning rate of the step."""
        t = self.training_config
        optimizers: Any = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = t.learning_rate * warmup_cosine(step, steps=self.steps, warmup=t.warmup)
        found: list[Any] = optimizers
        return found

    def _is_adversarial(self, step: int) -> bool:
        return self.critic is not None and step >= self.training_config.losses.adversarial_start

    def _backward(self, images: Float[Tensor, "b 3 h w"], share: float, step: int) -> _Part:
        """Add the gradients of `share` times the loss of some images."""
        losses = self.training_config.losses
        latents = self._latents(images)
        codes, codebook_loss = None, latents.new_zeros(())
        vectors = latents
        if step >= self.quantize_start:
            vectors, codebook_loss, codes = self.model.quantize(latents)
        with self._mixed():
            reconstruction = self.model.images(vectors)
        reconstruction = reconstruction.float()
        loss = reconstruction_loss(reconstruction, images, losses)
        metrics = {"reconstruction": loss.detach()}
        if self.perceptual:
            distance = self.perceptual[0].to(images.device)(reconstruction, images)
            loss = loss + losses.perceptual * distance
            metrics["perceptual"] = distance.detach()
        if self._is_adversarial(step):
            assert self.critic is not None
            term = -self.critic(reconstruction).mean()
            weight = adaptive_weight(loss, term, self.model.decoder.conv_out.weight)
            loss = loss + losses.adversarial * (weight * term)
            metrics["adaptive_weight"] = weight
        loss = loss + losses.codebook * codebook_loss
        require_finite(loss.detach(), step)
        self.manual_backward(share * loss)
        shown = reconstruction.detach().clamp(-1, 1)
        metrics |= {
            "loss": loss.detach(),
            "codebook_loss": codebook_loss.detach(),
            "psnr": psnr(shown, images),
            "l1": (shown - images).abs().mean(),
        }
        return _Part(
            images=images,
            reconstruction=reconstruction.detach(),
            latents=_flat(latents),
            codes=None if codes is None else codes.flatten(),
            share=share,
            metrics=metrics,
        )

    def _latents(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        with self._mixed():
            latents = self.model.latents(images)
        return latents.float()

    def _mixed(self) -> torch.autocast:
        """Return the bfloat16 region for encoder and decoder; quantizer and losses stay in float32."""
        kind, precision = self.device.type, self.training_config.precision
        # A GPU that is not used shows nothing about the processor that is.
        fast = fast_bfloat16() and (kind != "cpu" or not torch.cuda.is_available())
        return torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16" or (precision == "auto" and fast))

    @torch.no_grad()
    def _place_codebook(self, pieces: tuple[Tensor, ...], generator: torch.Generator) -> None:
        latents = torch.cat([_flat(self._latents(normalize_frames(piece))) for piece in pieces])
        self.codebook_average.start(self.model.quantize, latents, generator)

    def _update_codebook(self, parts: list[_Part], step: int, generator: torch.Generator) -> dict[str, Tensor | float]:
        """Move the averages, revive dead codes; return how many codes the step used and how evenly."""
        t, quantizer = self.training_config, self.model.quantize
        found = [part.codes for part in parts if part.codes is not None]
        if not found:
            return {"codes_in_batch": 0.0}
        codes, latents = torch.cat(found), torch.cat([part.latents for part in parts])
        reviving = step < t.revive_until * self.steps
        revived = 0
        if t.codebook_decay > 0:
            draws = generator if reviving else None
            revived = self.codebook_average.update(quantizer, latents, codes, revive_with=draws)
        elif reviving:
            revived = self.codebook_average.revive(quantizer, latents, codes, generator)
        return {
            "codes_in_batch": float(len(codes.unique())),
            "perplexity": codebook_perplexity(codes, len(self.model.codebook)),
            "codes_revived": float(revived),
        }

    def _critic_step(self, parts: list[_Part], optimizer: Any) -> Tensor:
        assert self.critic is not None
        optimizer.zero_grad()
        total = parts[0].images.new_zeros(())
        for part in parts:
            loss = part.share * hinge_loss(self.critic(part.images), self.critic(part.reconstruction))
            self.manual_backward(loss)
            total = total + loss.detach()
        # The wrapped optimizer, so that `global_step` does not count the steps of the critic.
        optimizer.optimizer.step()
        return total

    def released(self) -> VQGAN:
        """Return the model to release, in evaluation mode."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, VQGAN)
        return model.eval()


def _flat(latents: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "m d"]:
    return latents.detach().permute(0, 2, 3, 1).flatten(0, 2)
