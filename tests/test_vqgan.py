"""The image tokenizer: quantiser, network, losses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gr2.gr_model.errors import CheckpointError, ConfigError, ShapeError
from gr2.tokenizers.losses import (
    LossConfig,
    PerceptualLoss,
    adaptive_weight,
    detail_weights,
    gradient_loss,
    hinge_loss,
    make_critic,
)
from gr2.tokenizers.quantize import CodebookAverage, VectorQuantizer
from gr2.tokenizers.vqgan import (
    VQGAN,
    VQGANConfig,
    at_resolution,
    f16_1024,
    f16_16384,
    normalize_frames,
    small,
)

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


def test_quantiser_passes_gradients_straight_through() -> None:
    quantizer = VectorQuantizer(codebook_size=16, embed_dim=4)
    latents = torch.randn(2, 4, 3, 3, requires_grad=True)
    seed = torch.randn(2, 4, 3, 3)
    vectors, _, _ = quantizer(latents)
    (gradient,) = torch.autograd.grad((vectors * seed).sum(), latents)
    torch.testing.assert_close(gradient, seed)


def test_nearest_inverts_lookup() -> None:
    quantizer = VectorQuantizer(codebook_size=50, embed_dim=6)
    codes = torch.randint(0, 50, (4, 12))
    vectors = quantizer.lookup(codes, (3, 4))
    assert vectors.shape == (4, 6, 3, 4)
    assert torch.equal(quantizer.nearest(vectors.permute(0, 2, 3, 1)).flatten(1), codes)
    torch.testing.assert_close(vectors[1, :, 2, 1], quantizer.embedding.weight[codes[1, 9]])


@pytest.mark.parametrize("codes", [torch.full((1, 12), 50), torch.full((1, 12), -1), torch.zeros(1, 11).long()])
def test_lookup_refuses_codes_of_another_tokenizer(codes: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="Image codes"):
        VectorQuantizer(codebook_size=50, embed_dim=6).lookup(codes, (3, 4))


def test_codebook_average_finds_clusters_and_revives_the_dead() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 4, generator=generator)
    latents = (centres[:, None] + 0.01 * torch.randn(8, 64, 4, generator=generator)).flatten(0, 1)
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


@pytest.mark.parametrize(("preset", "grid", "codes"), [(small, 16, 512), (f16_1024, 16, 1024), (f16_16384, 16, 16384)])
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


def test_detail_weights_favour_small_objects() -> None:
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


def test_critic_learns_to_tell_pictures_apart() -> None:
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
