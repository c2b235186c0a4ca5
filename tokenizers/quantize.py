"""Quantization to codebook vectors, by distance or by logits, and the moving-average way of learning the codebook."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import ShapeError


class VectorQuantizer(nn.Module):
    """Replace each latent vector by its nearest codebook vector.

    The state dict has one key, `embedding.weight` `[K d]`, as in the published VQGAN checkpoints.

    Source: van den Oord et al. 2017, "Neural Discrete Representation Learning", section 3.
    """

    def __init__(self, *, codebook_size: int, embed_dim: int, commitment: float = 0.25) -> None:
        super().__init__()
        self.commitment = commitment
        self.embedding = nn.Embedding(codebook_size, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / codebook_size, 1.0 / codebook_size)

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codebook vectors as the decoder gets them."""
        return self.embedding.weight

    def nearest(self, latents: Float[Tensor, "*b d"]) -> Int[Tensor, "*b"]:
        """Return the index of the codebook vector that is chosen for each latent vector."""
        scores = self.scores(latents)
        if scores.device.type != "cpu" or scores.dtype != torch.float32:
            return scores.argmax(-1)
        return torch.from_numpy(scores.detach().numpy().argmax(-1))  # nine times as fast as PyTorch's

    def scores(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return how well each codebook vector fits; the greatest is chosen. Here the nearest fits best."""
        codebook = self.embedding.weight
        flat = latents.reshape(-1, codebook.shape[1])
        # |z|^2 is the same for every code, so it cannot change the minimum.
        scores = torch.addmm(codebook.square().sum(1), flat, codebook.t(), beta=-1.0, alpha=2.0)
        return scores.view(*latents.shape[:-1], -1)

    def lookup(self, codes: Int[Tensor, "b n"], grid: tuple[int, int]) -> Float[Tensor, "b d gh gw"]:
        """Return the codebook vectors of row-major codes, laid out as an image of `grid` rows and columns.

        Raises:
            ShapeError: if a code lies outside the codebook, or the codes do not fill the grid.
        """
        if codes.ndim != 2 or codes.shape[1] != grid[0] * grid[1]:
            raise ShapeError(
                f"Image codes: expected shape (b, {grid[0] * grid[1]}) for a {grid[0]} x {grid[1]} grid, "
                f"got {tuple(codes.shape)}; pass the codes of whole frames."
            )
        if codes.numel() and (codes.min() < 0 or codes.max() >= self.embedding.num_embeddings):
            raise ShapeError(
                f"Image codes: expected values in [0, {self.embedding.num_embeddings}), got "
                f"{int(codes.min())} to {int(codes.max())}; check that codes and tokenizer belong together."
            )
        vectors = F.embedding(codes, self.codebook)
        # contiguous: convolutions in bfloat16 take more than twice as long on the strides of a transposed view
        return vectors.transpose(1, 2).reshape(len(codes), -1, *grid).contiguous()

    def forward(
        self, latents: Float[Tensor, "b d gh gw"]
    ) -> tuple[Float[Tensor, "b d gh gw"], Float[Tensor, ""], Int[Tensor, "b n"]]:
        """Quantize with the straight-through gradient; return vectors, the codebook loss and codes.

        The loss is `commitment * |z - sg(e)|^2 + |sg(z) - e|^2`, averaged over elements (`sg` stops
        gradients).
        """
        batch, _, rows, columns = latents.shape
        codes = self.nearest(latents.detach().permute(0, 2, 3, 1)).view(batch, rows * columns)
        vectors = F.embedding(codes, self.codebook).transpose(1, 2).reshape(latents.shape).contiguous()
        loss = self.commitment * F.mse_loss(latents, vectors.detach()) + F.mse_loss(vectors, latents.detach())
        return latents + (vectors - latents).detach(), loss, codes


class CosineQuantizer(VectorQuantizer):
    """Choose codes by the angle between vectors, all of length 1, as LlamaGen's tokenizers do.

    Source: Sun et al. 2024, "Autoregressive Model Beats Diffusion", section 2.1; Yu et al. 2022 (ViT-VQGAN).
    """

    @property
    def codebook(self) -> Float[Tensor, "k d"]:
        """The codebook vectors, of length 1."""
        return F.normalize(self.embedding.weight, dim=-1)

    def scores(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return the cosine of the angle to each codebook vector."""
        return F.normalize(latents, dim=-1) @ self.codebook.t()

    def forward(
        self, latents: Float[Tensor, "b d gh gw"]
    ) -> tuple[Float[Tensor, "b d gh gw"], Float[Tensor, ""], Int[Tensor, "b n"]]:
        """Quantize latents of length 1 as the plain quantizer does."""
        return super().forward(F.normalize(latents, dim=1))


class DotQuantizer(VectorQuantizer):
    """Choose codes by the product with each codebook vector, as IBQ does.

    Source: Shi et al. 2024, "Scalable Image Tokenization with Index Backpropagation Quantization".
    """

    def scores(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return the product with each codebook vector."""
        return latents @ self.embedding.weight.t()


class GumbelQuantizer(VectorQuantizer):
    """Choose codes by logits, a linear function of the latents, as the published `gumbel_f8` does.

    In training the choice is a straight-through sample of the Gumbel softmax; in evaluation it is the likeliest
    code. Keys of the state dict: `embedding.weight` `[K d]`, `proj.weight` `[K d 1 1]` and `proj.bias` `[K]`.

    Source: `GumbelQuantize` of taming-transformers; Jang et al. 2017, "Categorical Reparameterization with
    Gumbel-Softmax".
    """

    def __init__(
        self, *, codebook_size: int, embed_dim: int, kl_weight: float = 1e-8, temperature: float = 1.0
    ) -> None:
        super().__init__(codebook_size=codebook_size, embed_dim=embed_dim)
        self.kl_weight, self.temperature = kl_weight, temperature
        self.proj = nn.Conv2d(embed_dim, codebook_size, 1)

    def scores(self, latents: Float[Tensor, "*b d"]) -> Float[Tensor, "*b k"]:
        """Return the logit of each code."""
        return F.linear(latents, self.proj.weight.flatten(1), self.proj.bias)

    def forward(
        self, latents: Float[Tensor, "b d gh gw"]
    ) -> tuple[Float[Tensor, "b d gh gw"], Float[Tensor, ""], Int[Tensor, "b n"]]:
        """Quantize; return vectors, `kl_weight` times the divergence from evenly used codes, and codes."""
        logits = self.proj(latents)
        chances = logits.softmax(1)
        divergence = (chances * torch.log(chances * logits.shape[1] + 1e-10)).sum(1).mean()
        if self.training:
            chosen = F.gumbel_softmax(logits, tau=self.temperature, hard=True, dim=1)
            codes = chosen.argmax(1).flatten(1)
            vectors = torch.einsum("bkhw,kd->bdhw", chosen, self.embedding.weight)
        else:
            codes = logits.argmax(1).flatten(1)
            vectors = self.lookup(codes, (latents.shape[2], latents.shape[3]))
        return vectors, self.kl_weight * divergence, codes


def codebook_perplexity(codes: Int[Tensor, "*b"], codebook_size: int) -> Float[Tensor, ""]:
    """Return the exponential of the entropy of the codes: how many evenly used codes would be as varied."""
    shares = torch.bincount(codes.flatten(), minlength=codebook_size).double() / max(codes.numel(), 1)
    return torch.special.entr(shares).sum().exp().float()


class CodebookAverage(nn.Module):
    """Learn a codebook as moving averages of the latents that chose each code, and revive dead codes.

    Kept outside `VectorQuantizer`, so that its buffers travel in training checkpoints and never in
    released weights.

    Source: van den Oord et al. 2017, appendix A.1; the revival of unused codes follows Dhariwal et al. 2020
    ("Jukebox"), section 3.1.
    """

    uses: Tensor
    sums: Tensor

    def __init__(self, *, codebook_size: int, embed_dim: int, decay: float = 0.98, dead_uses: float = 0.1) -> None:
        """Set the decay of the averages and `dead_uses`, the uses a batch below which a code is revived."""
        super().__init__()
        self.decay, self.dead_uses = decay, dead_uses
        self.register_buffer("uses", torch.ones(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, embed_dim))

    @torch.no_grad()
    def start(
        self,
        quantizer: VectorQuantizer,
        latents: Float[Tensor, "m d"],
        generator: torch.Generator,
        iterations: int = 8,
    ) -> None:
        """Place the codebook on `latents` with k-means, starting from sampled latents."""
        size = quantizer.embedding.num_embeddings
        codebook = quantizer.embedding.weight
        codebook.copy_(_sample(latents, size, generator))
        for _ in range(iterations):
            counts, sums = self._gather(latents, quantizer.nearest(latents))
            used = counts > 0
            codebook[used] = sums[used] / counts[used, None]
        self.uses.fill_(len(latents) / size)
        self.sums.copy_(codebook * self.uses[:, None])

    @torch.no_grad()
    def update(
        self,
        quantizer: VectorQuantizer,
        latents: Float[Tensor, "m d"],
        codes: Int[Tensor, " m"],
        *,
        revive_with: torch.Generator | None,
    ) -> int:
        """Move the codebook towards the latents; return how many dead codes were put onto sampled latents.

        Without a generator in `revive_with` dead codes are left alone.
        """
        counts, sums = self._gather(latents, codes)
        self.uses.lerp_(counts, 1.0 - self.decay)
        self.sums.lerp_(sums, 1.0 - self.decay)
        revived = 0
        if revive_with is not None:
            dead = self._take_dead(len(latents))
            revived = len(dead)
            self.sums[dead] = _sample(latents, revived, generator=revive_with) * self.uses[dead, None]
        quantizer.embedding.weight.copy_(self.sums / self.uses.clamp_min(1e-5)[:, None])
        return revived

    @torch.no_grad()
    def revive(
        self,
        quantizer: VectorQuantizer,
        latents: Float[Tensor, "m d"],
        codes: Int[Tensor, " m"],
        generator: torch.Generator,
    ) -> int:
        """Put dead codes of a codebook that is learnt by gradient onto sampled latents; return how many.

        All other codebook vectors stay as they are.
        """
        self.uses.lerp_(self._gather(latents, codes)[0], 1.0 - self.decay)
        dead = self._take_dead(len(latents))
        quantizer.embedding.weight[dead] = _sample(latents, len(dead), generator).to(quantizer.embedding.weight)
        return len(dead)

    def _take_dead(self, num_latents: int) -> Int[Tensor, " dead"]:
        dead = (self.uses < self.dead_uses).nonzero().flatten()
        # A revived code starts with the uses of an average code, so that it is not declared dead at once.
        self.uses[dead] = num_latents / len(self.uses)
        return dead

    def _gather(
        self, latents: Float[Tensor, "m d"], codes: Int[Tensor, " m"]
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "k d"]]:
        counts = torch.zeros_like(self.uses).index_add_(0, codes, torch.ones_like(latents[:, 0]))
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        return counts, sums


def _sample(latents: Float[Tensor, "m d"], count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
    """Return `count` sampled latents, moved a little apart so that no two are equal."""
    picks = torch.randint(len(latents), (count,), generator=generator).to(latents.device)
    noise = torch.randn(count, latents.shape[1], generator=generator).to(latents)
    return latents[picks] + 1e-3 * latents.std() * noise
