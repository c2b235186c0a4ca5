"""The image tokenizer: quantizer, network, losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gr2.errors import CheckpointError, ConfigError, ShapeError
from gr2.tokenizers.losses import (
    PerceptualLoss,
    adaptive_weight,
    detail_weights,
    gradient_loss,
    hinge_loss,
    make_critic,
)
from gr2.tokenizers.quality import measure_vqgan, ssim
from gr2.tokenizers.quantize import CodebookAverage, GumbelQuantizer, VectorQuantizer, codebook_perplexity
from gr2.tokenizers.state_dicts import build_vqgan, network_tensors
from gr2.tokenizers.training_options import LossConfig
from gr2.tokenizers.vqgan import (
    VQGAN,
    GumbelVQGAN,
    VQGANConfig,
    at_resolution,
    f16_1024,
    f16_16384,
    gumbel_f8,
    normalize_frames,
    small,
)
from gr2.tokenizers.weight_files import read_state_dict

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model() -> VQGAN:
    torch.manual_seed(0)
    model = VQGAN(small()).eval()
    with torch.no_grad():  # random weights leave the latents far from a fresh codebook: spread it over them
        noise = torch.rand(64, 3, 64, 64) * 2 - 1
        flat = model.latents(noise).permute(0, 2, 3, 1).flatten(0, 2)
        average = CodebookAverage(codebook_size=512, embed_dim=8)
        average.start(model.quantize, flat, torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


def test_taming_still_exports_the_three_names() -> None:
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.discriminator.model import NLayerDiscriminator

    assert all(issubclass(c, nn.Module) for c in (Decoder, Encoder, NLayerDiscriminator))


def test_nearest_code_equals_taming() -> None:
    from taming.modules.vqvae.quantize import VectorQuantizer as Reference

    torch.manual_seed(1)
    ours = VectorQuantizer(codebook_size=97, embed_dim=8, commitment=1.0)
    reference = Reference(97, 8, beta=1.0)
    with torch.no_grad():
        ours.embedding.weight.normal_()
        reference.embedding.weight.copy_(ours.embedding.weight)
    latents = torch.randn(3, 8, 5, 4)
    vectors, loss, codes = ours(latents)
    expected, expected_loss, (_, _, expected_codes) = reference(latents)
    assert torch.equal(codes.flatten(), expected_codes.flatten())
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(loss, expected_loss)


def test_quantizer_passes_gradients_straight_through() -> None:
    quantizer = VectorQuantizer(codebook_size=16, embed_dim=4)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    seed = torch.randn(2, 4, 3, 3)
    vectors, _, _ = quantizer(latents)
    (gradient,) = torch.autograd.grad((vectors * seed).sum(), latents)
    assert torch.equal(gradient, seed)


def test_quantizing_codebook_vectors_again_changes_nothing(model: VQGAN) -> None:
    codes = torch.randint(0, 512, (2, 256), generator=torch.Generator().manual_seed(0))
    vectors = model.quantize.lookup(codes, model.grid)
    again, loss, chosen = model.quantize(vectors)
    assert torch.equal(again, vectors) and loss.item() == 0.0
    assert torch.equal(model.codebook[chosen], model.codebook[codes])
    assert torch.equal(model.decode(chosen), model.decode(codes))


def test_nearest_inverts_lookup() -> None:
    quantizer = VectorQuantizer(codebook_size=50, embed_dim=6)
    codes = torch.randint(0, 50, (4, 12))
    vectors = quantizer.lookup(codes, (3, 4))
    assert vectors.is_contiguous()  # convolutions in bfloat16 take twice as long otherwise
    assert vectors.shape == (4, 6, 3, 4)
    assert torch.equal(quantizer.nearest(vectors.permute(0, 2, 3, 1)).flatten(1), codes)
    torch.testing.assert_close(vectors[1, :, 2, 1], quantizer.embedding.weight[codes[1, 9]])


@pytest.mark.parametrize("codes", [torch.full((1, 12), 50), torch.full((1, 12), -1), torch.zeros(1, 11).long()])
def test_lookup_refuses_codes_of_another_tokenizer(codes: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="Image codes"):
        VectorQuantizer(codebook_size=50, embed_dim=6).lookup(codes, (3, 4))


def test_codebook_average_finds_clusters_and_revives_the_dead() -> None:
    generator = torch.Generator().manual_seed(0)
    centers = 10 * torch.randn(8, 4, generator=generator)
    latents = (centers[:, None] + 0.01 * torch.randn(8, 64, 4, generator=generator)).flatten(0, 1)
    quantizer = VectorQuantizer(codebook_size=64, embed_dim=4)
    average = CodebookAverage(codebook_size=64, embed_dim=4)
    with torch.no_grad():
        quantizer.embedding.weight.fill_(1e3)  # every code but one is dead
        average.uses.zero_()
    codes = quantizer.nearest(latents)
    assert len(codes.unique()) == 1
    alone = average.update(quantizer, latents, codes, revive_with=None)
    revived = average.update(quantizer, latents, codes, revive_with=generator)
    assert alone == 0
    assert revived >= 63
    error = (quantizer.embedding(quantizer.nearest(latents)) - latents).norm(dim=1)
    assert error.max() < 0.2


def test_codebook_average_equals_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(1)
    quantizer = VectorQuantizer(codebook_size=6, embed_dim=3)
    average = CodebookAverage(codebook_size=6, embed_dim=3, decay=0.9)
    average.start(quantizer, torch.randn(40, 3, generator=generator), generator)
    uses, sums = average.uses.double().tolist(), average.sums.double().numpy().copy()
    for _ in range(4):
        latents = torch.randn(25, 3, generator=generator)
        codes = quantizer.nearest(latents)
        average.update(quantizer, latents, codes, revive_with=None)
        for code in range(6):
            own = [
                latent
                for latent, chosen in zip(latents.double().numpy(), codes.tolist(), strict=True)
                if chosen == code
            ]
            uses[code] = 0.9 * uses[code] + 0.1 * len(own)
            sums[code] = 0.9 * sums[code] + 0.1 * np.sum(own, axis=0)
        expected = sums / np.array(uses)[:, None]
        np.testing.assert_allclose(quantizer.embedding.weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


def half_used(decay: float = 0.98) -> tuple[VectorQuantizer, CodebookAverage, torch.Tensor, torch.Tensor]:
    """Return a codebook of which codes 3, 8 and 9 are dead, its averages, and latents with their codes."""
    generator = torch.Generator().manual_seed(2)
    quantizer = VectorQuantizer(codebook_size=10, embed_dim=4)
    average = CodebookAverage(codebook_size=10, embed_dim=4, decay=decay)
    latents = torch.randn(64, 4, generator=generator)
    codes = torch.tensor([0, 1, 2, 4, 5, 6, 7])[torch.arange(64) % 7]
    with torch.no_grad():
        quantizer.embedding.weight.normal_(generator=generator)
    average.uses[[3, 8, 9]] = 0.0
    average.sums.copy_(quantizer.embedding.weight.detach() * average.uses[:, None])
    return quantizer, average, latents, codes


@pytest.mark.parametrize("by_gradient", [False, True])
def test_revival_moves_the_dead_codes_alone(by_gradient: bool) -> None:
    quantizer, average, latents, codes = half_used()
    plain, plain_average, _, _ = half_used()
    if by_gradient:
        revived = average.revive(quantizer, latents, codes, torch.Generator().manual_seed(0))
    else:
        plain_average.update(plain, latents, codes, revive_with=None)
        revived = average.update(quantizer, latents, codes, revive_with=torch.Generator().manual_seed(0))
    found, expected = quantizer.embedding.weight.detach(), plain.embedding.weight.detach()
    dead, used = [3, 8, 9], [0, 1, 2, 4, 5, 6, 7]
    assert revived == 3
    assert torch.equal(found[used], expected[used])
    assert not (found[dead] == expected[dead]).all(1).any()
    assert torch.cdist(found[dead], latents).min(1).values.max() < 0.02
    assert average.revive(quantizer, latents, codes, torch.Generator().manual_seed(1)) == 0  # not dead at once again


def test_perplexity_counts_evenly_used_codes() -> None:
    assert float(codebook_perplexity(torch.arange(12).view(3, 4), 40)) == pytest.approx(12)
    assert float(codebook_perplexity(torch.zeros(9, dtype=torch.int64), 40)) == pytest.approx(1)
    shares = np.array([0.5, 0.25, 0.25])
    uneven = codebook_perplexity(torch.tensor([0, 0, 1, 2]), 3)
    assert float(uneven) == pytest.approx(float(np.exp(-(shares * np.log(shares)).sum())))


def test_ssim_equals_a_slow_reference() -> None:
    from scipy.ndimage import gaussian_filter

    a, noise = torch.rand(2, 3, 3, 24, 31, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = (a + 0.3 * noise).clamp(-1, 1)

    def blurred(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, radius=5)[5:-5, 5:-5]

    values = []
    for x, y in zip(a.flatten(0, 1).double().numpy(), b.flatten(0, 1).double().numpy(), strict=True):
        mean_x, mean_y = blurred(x), blurred(y)
        var_x, var_y, both = blurred(x**2) - mean_x**2, blurred(y**2) - mean_y**2, blurred(x * y) - mean_x * mean_y
        top = (2 * mean_x * mean_y + 0.02**2) * (2 * both + 0.06**2)
        values.append((top / ((mean_x**2 + mean_y**2 + 0.02**2) * (var_x + var_y + 0.06**2))).mean())
    assert float(ssim(a, b)) == pytest.approx(float(np.mean(values)), abs=1e-5)
    assert float(ssim(a, a)) == pytest.approx(1.0) and float(ssim(a[..., :7, :7], a[..., :7, :7])) == pytest.approx(1.0)


def test_metrics_do_not_depend_on_the_batches(model: VQGAN, frames: np.ndarray) -> None:
    whole, split = measure_vqgan(model, frames), measure_vqgan(model, frames, batch_size=2)
    assert set(whole) == {"psnr", "detail_psnr", "ssim", "l1", "codes_used", "perplexity"}
    assert whole == pytest.approx(split, rel=1e-4)
    assert 1 < whole["perplexity"] <= whole["codes_used"]
    shown = model.decode_frames(model.encode_frames(frames)).astype(float)
    assert whole["l1"] == pytest.approx(np.abs(shown - frames).mean() / 127.5, abs=2e-3)


@pytest.mark.parametrize(
    ("preset", "grid", "codes"),
    [(small, 16, 512), (f16_1024, 16, 1024), (f16_16384, 16, 16384), (gumbel_f8, 32, 8192)],
)
def test_presets_have_the_stated_grid_and_codebook(preset, grid: int, codes: int) -> None:
    with torch.device("meta"):
        model = VQGAN(preset())
    assert model.grid == (grid, grid)
    assert model.codebook.shape[0] == codes


def test_f16_has_the_published_size_and_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        model = VQGAN(f16_1024())
    assert capsys.readouterr().out == ""
    networks = [model.encoder, model.decoder, model.quant_conv, model.post_quant_conv]
    assert sum(p.numel() for m in networks for p in m.parameters()) == pytest.approx(72.1e6, rel=0.005)


def test_at_resolution_keeps_the_network() -> None:
    with torch.device("meta"):
        full, half = VQGAN(f16_1024()), VQGAN(at_resolution(f16_1024(), 128))
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (full, half)]
    assert shapes[0] == shapes[1]
    assert half.grid == (8, 8)


def test_frames_to_codes_to_frames(model: VQGAN, frames: np.ndarray) -> None:
    codes = model.encode_frames(frames, batch_size=2)
    assert codes.shape == (5, 256)
    assert codes.dtype == np.int64
    assert codes.min() >= 0
    assert codes.max() < 512
    assert len(np.unique(codes)) > 10
    again = model.decode_frames(codes, batch_size=3)
    assert again.shape == frames.shape
    assert again.dtype == np.uint8
    assert np.array_equal(codes, model.encode(normalize_frames(torch.from_numpy(frames))).numpy())
    assert np.array_equal(again[3:], model.decode_frames(codes[3:]))
    assert model.decode_frames(model.encode_frames(frames[:0])).shape == (0, 64, 64, 3)


def test_forward_is_decode_after_encode(model: VQGAN, frames: np.ndarray) -> None:
    images = normalize_frames(torch.from_numpy(frames))
    reconstruction, _, codes = model(images)
    assert torch.equal(codes, model.encode(images))
    torch.testing.assert_close(reconstruction.clamp(-1, 1), model.decode(codes), atol=1e-5, rtol=1e-4)


def test_wrong_frames_are_refused(model: VQGAN, frames: np.ndarray) -> None:
    for wrong in (frames.astype(np.float32), frames[0], frames[:, :32]):
        with pytest.raises(ShapeError, match="expected"):
            model.encode_frames(wrong)


@pytest.mark.parametrize("change", [{"channels": 40}, {"decoder_channels": 8}, {"resolution": 60}])
def test_impossible_shapes_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected a multiple"):
        VQGANConfig(**change)


def test_detail_weights_favor_small_objects() -> None:
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, :, 32:] = 0.2  # a large surface
    images[:, 0, 10:14, 10:14] = 1.0  # a block of four pixels
    weights = detail_weights(images, 2.0)
    assert float(weights.mean()) == pytest.approx(1.0, abs=1e-5)
    assert float(weights[0, 0, 12, 12]) > 3 * float(weights[0, 0, 50, 50])
    torch.testing.assert_close(detail_weights(images, 0.0), torch.ones(1, 1, 64, 64))


def test_gradient_loss_sees_edges_and_not_brightness() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert float(gradient_loss(images + 0.3, images)) == pytest.approx(0.0, abs=1e-6)
    blurred = torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)
    assert float(gradient_loss(blurred, images)) > 0.05


def test_adaptive_weight_balances_gradients() -> None:
    layer = nn.Linear(4, 4)
    out = layer(torch.randn(8, 4))
    reconstruction, adversarial = out.square().mean(), 50 * out.abs().mean()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    wanted = torch.autograd.grad(reconstruction, layer.weight, retain_graph=True)[0].norm()
    given = torch.autograd.grad(weight * adversarial, layer.weight)[0].norm()
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-6)


def test_adaptive_weight_is_the_ratio_of_measured_slopes() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(5, 4, generator=generator).double()
    weight = torch.randn(3, 4, generator=generator).double().requires_grad_()

    def losses(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = inputs @ matrix.T
        return out.square().mean(), 20 * torch.tanh(out).mean()

    def measured(which: int, step: float = 1e-5) -> float:
        slopes = []
        for place in np.ndindex(3, 4):
            moved = weight.detach().clone(), weight.detach().clone()
            moved[0][place] += step
            moved[1][place] -= step
            slopes.append(float(losses(moved[0])[which] - losses(moved[1])[which]) / (2 * step))
        return float(np.linalg.norm(slopes))

    found = adaptive_weight(*losses(weight), weight)
    assert float(found) == pytest.approx(measured(0) / measured(1), rel=1e-3)
    assert not found.requires_grad
    assert float(adaptive_weight(losses(weight)[0], 0 * losses(weight)[1], weight)) <= 1e4  # a silent critic


@pytest.mark.parametrize("wrong", [{"l1": -1.0}, {"adversarial": float("nan")}, {"critic_layers": 0}])
def test_impossible_losses_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"LossConfig.*expected"):
        LossConfig(**wrong)


def test_critic_learns_to_tell_images_apart() -> None:
    torch.manual_seed(0)
    critic = make_critic(LossConfig(critic_channels=8))
    optimizer = torch.optim.Adam(critic.parameters(), 2e-3)
    real, fake = torch.rand(8, 3, 32, 32), torch.zeros(8, 3, 32, 32)
    losses = []
    for _ in range(15):
        loss = hinge_loss(critic(real), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_perceptual_distance_from_local_files(tmp_path: Path) -> None:
    from torchvision.models.vgg import cfgs, make_layers

    with torch.device("meta"):
        shapes = {f"features.{k}": v.shape for k, v in make_layers(cfgs["D"]).state_dict().items()}
    torch.manual_seed(0)
    weights = {k: 0.05 * torch.randn(shape) for k, shape in shapes.items()}
    save_file(weights, tmp_path / "vgg.safetensors")
    widths = (64, 128, 256, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.ones(1, w, 1, 1) for i, w in enumerate(widths)}
    torch.save(heads, tmp_path / "heads.pth")
    plain = PerceptualLoss(vgg_file=tmp_path / "vgg.safetensors")
    weighted = PerceptualLoss(vgg_file=tmp_path / "vgg.safetensors", heads_file=tmp_path / "heads.pth")
    a, b = torch.rand(2, 1, 3, 32, 32)
    assert float(plain(a, a)) == pytest.approx(0.0, abs=1e-6)
    assert float(plain(a, b)) > 1e-4
    torch.testing.assert_close(weighted(a, b), plain(a, b))
    with pytest.raises(CheckpointError, match="VGG16 features"):
        PerceptualLoss(vgg_file=tmp_path / "heads.pth")
    with pytest.raises(CheckpointError, match="vgg_file"):
        PerceptualLoss(vgg_file=None)


GUMBEL = VQGANConfig(resolution=32, patch_size=1, channels=32, channel_mult=(1, 1, 2), z_channels=24, embed_dim=24,
                     attn_resolutions=(8,), codebook_size=40)  # fmt: skip


def published_gumbel() -> dict[str, torch.Tensor]:
    """Return a state dict with the names and shapes of taming's GumbelVQ, losses included."""
    torch.manual_seed(5)
    state = GumbelVQGAN(GUMBEL).state_dict()
    state["quantize.embed.weight"] = state.pop("quantize.embedding.weight")
    assert state["quantize.proj.weight"].shape == (40, 24, 1, 1) and state["quantize.proj.bias"].shape == (40,)
    return state | {"loss.discriminator.main.0.weight": torch.randn(4, 3, 4, 4), "loss.logvar": torch.zeros(())}


def test_gumbel_checkpoint_gives_the_likeliest_codes(tmp_path: Path) -> None:
    torch.save({"state_dict": published_gumbel()}, tmp_path / "last.ckpt")
    state = network_tensors(read_state_dict(tmp_path / "last.ckpt"), "last.ckpt")
    model = build_vqgan(GUMBEL, state, "last.ckpt")
    assert isinstance(model, GumbelVQGAN) and model.grid == (8, 8) and not model.training
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = model.latents(images)
    codes = model.encode(images)
    for b, n in ((0, 0), (0, 37), (1, 63)):
        vector = latents[b, :, n // 8, n % 8].double()
        logits = state["quantize.proj.weight"][:, :, 0, 0].double() @ vector + state["quantize.proj.bias"].double()
        assert int(codes[b, n]) == int(logits.argmax())
    reconstruction, loss, again = model(images)
    assert torch.equal(again, codes) and 0 <= float(loss) < 1e-6
    torch.testing.assert_close(reconstruction.clamp(-1, 1), model.decode(codes))
    own = build_vqgan(GUMBEL, network_tensors(model.state_dict(), "own"), "own")
    assert torch.equal(own.encode(images), codes)


def test_gumbel_training_reaches_the_logits_and_the_codebook() -> None:
    torch.manual_seed(0)
    quantizer = GumbelQuantizer(codebook_size=7, embed_dim=4)
    vectors, loss, codes = quantizer(torch.randn(2, 4, 3, 5))
    torch.testing.assert_close(vectors, quantizer.lookup(codes, (3, 5)))
    (vectors.square().sum() + loss).backward()
    assert quantizer.proj.weight.grad.norm() > 0 and quantizer.embedding.weight.grad.norm() > 0
    with torch.no_grad():
        quantizer.proj.weight.zero_()
        quantizer.proj.bias.zero_()
    assert quantizer(torch.randn(1, 4, 2, 2))[1].item() == pytest.approx(0.0, abs=1e-12)  # all codes alike


def test_gumbel_f8_has_the_published_size() -> None:
    with torch.device("meta"):
        model = GumbelVQGAN(gumbel_f8())
    networks = [model.encoder, model.decoder, model.quant_conv, model.post_quant_conv, model.quantize.proj]
    assert sum(p.numel() for m in networks for p in m.parameters()) == pytest.approx(66.9e6, rel=0.001)


def test_half_precision_checkpoints_become_float32(model: VQGAN, frames: np.ndarray) -> None:
    halved = {name: value.half() for name, value in model.state_dict().items()}
    loaded = build_vqgan(small(), network_tensors(halved, "half"), "half")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.codebook, model.codebook, rtol=1e-3, atol=1e-3)
    assert loaded.encode_frames(frames).shape == (5, 256)


def test_broken_state_dicts_are_refused() -> None:
    state = network_tensors(published_gumbel(), "file")
    for name in ("quantize.proj.bias", "decoder.conv_out.weight", "quantize.embedding.weight"):
        with pytest.raises(CheckpointError, match="file: expected"):
            build_vqgan(GUMBEL, {k: v for k, v in state.items() if k != name}, "file")
    with pytest.raises(CheckpointError, match=r"NaN or infinity in quantize\.proj\.bias"):
        build_vqgan(GUMBEL, state | {"quantize.proj.bias": torch.full((40,), torch.nan)}, "file")
    with pytest.raises(CheckpointError, match="configuration"):
        build_vqgan(small(), state, "file")
    for missing in ("quantize.embed.weight", "quantize.proj.weight"):
        rest = {k: v for k, v in published_gumbel().items() if k != missing}
        with pytest.raises(CheckpointError, match="Gumbel"):
            network_tensors(rest, "file")
