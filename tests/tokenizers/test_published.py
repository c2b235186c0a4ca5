"""Published weights of other families: the ones that load give the same codes, each of the others is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from gr2.errors import CheckpointError, ConfigError
from gr2.fingerprints import same_encoder
from gr2.tokenizers.text_weights import load_text_encoder
from gr2.tokenizers.vqgan import VQGAN, VQGANConfig
from gr2.tokenizers.weights import convert_vqgan, load_vqgan

torch.set_num_threads(1)

PLAIN = VQGANConfig(
    resolution=32, patch_size=1, channels=32, channel_mult=(1, 2), num_res_blocks=1, attn_resolutions=(16,),
    z_channels=8, embed_dim=4, codebook_size=40,
)  # fmt: skip


def network(config: VQGANConfig, seed: int = 0) -> VQGAN:
    torch.manual_seed(seed)
    model = VQGAN(config).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model.requires_grad_(False)


def assert_same(loaded: VQGAN, reference: VQGAN) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    codes = reference.encode_frames(frames)
    assert len(np.unique(codes)) > 3 and np.array_equal(loaded.encode_frames(frames), codes)
    assert np.array_equal(loaded.decode_frames(codes), reference.decode_frames(codes))


def write_yaml(path: Path, config: VQGANConfig, *, lightning: bool, kind: str, **extra: Any) -> None:
    """Write a configuration as latent-diffusion (`params`) or Lightning's parser (`init_args`) does."""
    stated = {
        "double_z": False, "z_channels": config.z_channels, "resolution": config.resolution, "in_channels": 3,
        "out_ch": 3, "ch": config.channels, "ch_mult": list(config.channel_mult),
        "num_res_blocks": config.num_res_blocks, "attn_resolutions": list(config.attn_resolutions), "dropout": 0.0,
        **extra.pop("ddconfig", {}),
    }  # fmt: skip
    params = {"embed_dim": config.embed_dim, "n_embed": config.codebook_size, "ddconfig": stated, **extra}
    model = {"class_path": kind, "init_args": params} if lightning else {"target": kind, "params": params}
    path.write_text(yaml.safe_dump({"model": model}))


@pytest.mark.parametrize("attention", [True, False])
def test_latent_diffusion_models_load(tmp_path: Path, attention: bool) -> None:
    config = replace(PLAIN, attn_resolutions=(), embed_dim=3, z_channels=3, middle_attention=attention)
    reference = network(config)
    state = reference.state_dict() | {"loss.discriminator.main.0.weight": torch.ones(2)}
    assert ("encoder.mid.attn_1.q.weight" in state) is attention
    torch.save({"state_dict": state, "global_step": 3}, tmp_path / "model.ckpt")
    extra = {} if attention else {"ddconfig": {"attn_type": "none"}}
    write_yaml(tmp_path / "config.yaml", config, lightning=False, kind="ldm.models.autoencoder.VQModel", **extra)
    assert_same(load_vqgan(tmp_path / "model.ckpt"), reference)
    convert_vqgan(source=tmp_path / "model.ckpt", out=tmp_path / "ours")
    assert_same(load_vqgan(tmp_path / "ours"), reference)


def test_ibq_loads_with_its_moving_averages(tmp_path: Path) -> None:
    reference, last = network(replace(PLAIN, quantizer="dot")), network(PLAIN, seed=1).state_dict()
    averages = {f"model_ema.{n.replace('.', '')}": value for n, value in reference.state_dict().items()}
    state = last | averages | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(4)}
    torch.save({"state_dict": state}, tmp_path / "imagenet256_16384.ckpt")
    kind = "src.IBQ.models.ibqgan.IBQ"
    write_yaml(tmp_path / "ibq.yaml", PLAIN, lightning=True, kind=kind, cosine_similarity=False, use_ema=True)
    assert_same(load_vqgan(tmp_path / "imagenet256_16384.ckpt"), reference)
    write_yaml(tmp_path / "ibq.yaml", PLAIN, lightning=True, kind=kind, l2_normalize=True)
    with pytest.raises(CheckpointError, match="l2_normalize"):
        load_vqgan(tmp_path / "imagenet256_16384.ckpt")


def llamagen_names(state: dict[str, torch.Tensor], levels: int) -> dict[str, torch.Tensor]:
    """Return taming's tensors as LlamaGen names them."""
    found = {}
    middle = {"block_1": "0", "attn_1": "1", "block_2": "2"}
    for name, value in state.items():
        parts = name.split(".")
        if parts[1] in ("down", "up"):
            level = int(parts[2]) if parts[1] == "down" else levels - 1 - int(parts[2])
            inside = ["res" if parts[3] == "block" else parts[3], *parts[4:]]
            name = ".".join((parts[0], "conv_blocks", str(level), *inside))
        elif parts[1] == "mid":
            name = ".".join((parts[0], "mid", middle[parts[2]], *parts[3:]))
        found[name] = value
    return found | {"quantize.codebook_used": torch.zeros(65536)}


@pytest.mark.parametrize("entry", ["model", "ema"])
def test_llamagen_loads_without_a_configuration(tmp_path: Path, entry: str) -> None:
    config = replace(PLAIN, channel_mult=(1, 1, 2), attn_resolutions=(8,), quantizer="cosine", num_res_blocks=2)
    reference = network(config)
    state = llamagen_names(reference.state_dict(), levels=3)
    assert "encoder.conv_blocks.2.attn.0.q.weight" in state and "decoder.conv_blocks.0.attn.2.q.weight" in state
    torch.save({entry: state, "steps": 7}, tmp_path / "vq_ds4.pt")
    loaded = load_vqgan(tmp_path / "vq_ds4.pt", resolution=32)
    assert loaded.config == config
    assert_same(loaded, reference)
    np.testing.assert_allclose(loaded.codebook.norm(dim=1), 1, atol=1e-6)
    plain = VQGAN(replace(config, quantizer="nearest")).eval()
    plain.load_state_dict(reference.state_dict())
    assert not same_encoder(plain.fingerprint(), reference.fingerprint())


OTHERS: dict[str, tuple[list[str], str, dict[str, str]]] = {
    "Open-MAGVIT2": (["encoder.conv_in.weight", "encoder.conv_in.bias", "encoder.mid_block.0.norm1.weight"], "a", {}),
    "MaskGIT": (["encoder.conv_in.weight", "quantize.embedding.weight"], "a", {}),
    "aMUSEd": (["encoder.conv_in.bias", "encoder.down_blocks.0.resnets.0.conv1.weight"], "model", {
        "config.json": json.dumps({"_class_name": "VQModel"})}),
    "KL autoencoder": (["encoder.conv_in.bias", "encoder.down_blocks.0.resnets.0.conv1.weight"], "model", {
        "config.json": json.dumps({"_class_name": "AutoencoderKL"})}),
    "Cosmos": (["encoder.patcher3d.wavelets", "encoder.conv_in.bias"], "a", {}),
    "Emu3": (["encoder.conv_in.weight", "encoder.conv_in.bias", "encoder.time_res_stack.0.conv1.conv.weight"], "a", {
        "config.json": json.dumps({"model_type": "Emu3VisionVQ"})}),
}  # fmt: skip


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_each_other_family_is_named(tmp_path: Path, family: str, suffix: str) -> None:
    names, stem, files = OTHERS[family]
    tensors = {name: torch.ones(2, 2) for name in names}
    if suffix == ".pt":
        torch.save(tensors, tmp_path / f"{stem}.pt")
    else:
        save_file(tensors, tmp_path / f"{stem}.safetensors")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    for source in (tmp_path / f"{stem}{suffix}", tmp_path):
        with pytest.raises(CheckpointError, match=rf"this is .*{family}.* which gr2 cannot load"):
            load_vqgan(source)


def test_torchscript_and_flax_files_are_named(tmp_path: Path) -> None:
    for name, kind in (("encoder.jit", "Cosmos"), ("tokenizer.msgpack", "MaskGIT")):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(CheckpointError, match=kind):
            load_vqgan(tmp_path / name)


def tiny_clip(quick_gelu: bool) -> CLIP:
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=32, head_width=16, patch_size=16, image_size=32)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=32, heads=2, layers=2)
    return CLIP(16, vision, text, quick_gelu=quick_gelu).eval()


def write_transformers_clip(folder: Path, clip: CLIP, quick_gelu: bool, *, alone: bool) -> None:
    """Write the text tower as transformers saves a CLIPModel, or (alone) a CLIPTextModel without projection."""
    state = clip.state_dict()
    found = {
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.final_layer_norm.weight": state["ln_final.weight"],
        "text_model.final_layer_norm.bias": state["ln_final.bias"],
    }
    places = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
              "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
    for i in range(2):
        for kind in ("weight", "bias"):
            for ours, theirs in places.items():
                found[f"text_model.encoder.layers.{i}.{theirs}.{kind}"] = state[
                    f"transformer.resblocks.{i}.{ours}.{kind}"
                ]
            for letter, part in zip(
                "qkv", state[f"transformer.resblocks.{i}.attn.in_proj_{kind}"].chunk(3), strict=True
            ):
                found[f"text_model.encoder.layers.{i}.self_attn.{letter}_proj.{kind}"] = part
    text = {"hidden_act": "quick_gelu" if quick_gelu else "gelu", "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": 128, "hidden_size": 32}  # fmt: skip
    if alone:
        config = {"model_type": "clip_text_model", **text}
    else:
        found["text_projection.weight"] = state["text_projection"].t()
        found["vision_model.pre_layrnorm.weight"] = torch.ones(4)
        config = {"model_type": "clip", "text_config": text}
    folder.mkdir()
    save_file({name: value.contiguous().clone() for name, value in found.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("quick_gelu", "alone"), [(True, False), (False, True)])
def test_clip_of_transformers_gives_the_features_of_open_clip(tmp_path: Path, quick_gelu: bool, alone: bool) -> None:
    clip = tiny_clip(quick_gelu)
    write_transformers_clip(tmp_path / "clip", clip, quick_gelu, alone=alone)
    texts = ["open the drawer", "push the red block to the left"]
    with torch.no_grad():
        tokens = open_clip.SimpleTokenizer()(texts, context_length=77)
        found = clip.forward_intermediates(text=tokens, text_indices=1, normalize_intermediates=True)
    features, mask = load_text_encoder(tmp_path / "clip").encode(texts)
    np.testing.assert_allclose(features[mask], found["text_intermediates"][-1].numpy()[mask], atol=1e-5)


@pytest.mark.parametrize(("kind", "sentence"), [("siglip", "this is SigLIP"), ("siglip2", "SigLIP"), ("bert", "bert")])
def test_other_text_models_are_named(tmp_path: Path, kind: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ConfigError, match=sentence):
        load_text_encoder(tmp_path)
