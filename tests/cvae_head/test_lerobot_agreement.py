"""ACT, Diffusion Policy and pi0 beside LeRobot's implementations: equal weights give equal losses and chunks (nightly).

`GR2_LEROBOT_PYTHON` names a Python with `lerobot` 0.6.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gr2.cvae_head.cvae import CVAEConfig, CVAEHead
from gr2.cvae_head.detr import DetrDecoder, StyleEncoder
from gr2.cvae_head.diffusion import DiffusionConfig, DiffusionHead
from gr2.cvae_head.expert import ExpertDenoiser
from gr2.cvae_head.flow import FlowConfig, FlowHead
from gr2.cvae_head.head import ChunkShape, Seen, TrunkShape
from gr2.cvae_head.networks import time_features
from gr2.cvae_head.unet import FilmBlock, UNetDenoiser

pytestmark = pytest.mark.nightly

STATE, SCENE, COLUMNS, BATCH = 5, 4, 3, 6

SETUP = """
import sys, numpy as np, torch
from lerobot.configs.types import FeatureType, PolicyFeature
torch.manual_seed(0)
STATE, SCENE, COLUMNS, BATCH = 5, 4, 3, 6
inputs = {
    "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
    "observation.environment_state": PolicyFeature(FeatureType.ENV, (SCENE,)),
}
outputs = {"action": PolicyFeature(FeatureType.ACTION, (COLUMNS,))}
found = {}
def keep(module):
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.2)
def weights(module):
    found.update({"w." + name: value.detach().numpy() for name, value in module.state_dict().items()})
"""

ACT = (
    SETUP
    + """
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
config = ACTConfig(
    input_features=inputs, output_features=outputs, chunk_size=7, n_action_steps=7, dim_model=16, n_heads=4,
    dim_feedforward=100, n_encoder_layers=2, n_vae_encoder_layers=2, latent_dim=3, dropout=0.0, device="cpu",
)
policy = ACTPolicy(config)
model = policy.model
keep(model)
for zeroed in (model.encoder_1d_feature_pos_embed.weight, model.encoder_robot_state_input_proj.bias,
               model.encoder_env_state_input_proj.bias):
    torch.nn.init.zeros_(zeroed)
batch = {
    "observation.state": torch.randn(BATCH, STATE), "observation.environment_state": torch.randn(BATCH, SCENE),
    "action": torch.randn(BATCH, 7, COLUMNS), "action_is_pad": torch.zeros(BATCH, 7, dtype=torch.bool),
}
eps = torch.randn(BATCH, 3)
torch.randn_like = lambda like: eps
policy.train()
loss, parts = policy.forward(dict(batch))
policy.eval()
with torch.no_grad():
    chunk = policy.predict_action_chunk(dict(batch))
weights(model)
found |= {name: value.numpy() for name, value in batch.items()} | {"eps": eps.numpy()}
found |= {"loss": loss.detach().numpy(), "chunk": chunk.numpy()}
np.savez(sys.argv[1], **found)
"""
)

DIFFUSION = (
    SETUP
    + """
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel
for prediction in ("epsilon", "sample"):
    config = DiffusionConfig(
        input_features=inputs, output_features=outputs, n_obs_steps=1, horizon=8, n_action_steps=8,
        down_dims=(8, 16, 32), kernel_size=5, n_groups=8, diffusion_step_embed_dim=128, noise_scheduler_type="DDIM",
        num_train_timesteps=100, num_inference_steps=100, prediction_type=prediction, clip_sample_range=1e3,
        device="cpu",
    )
    torch.manual_seed(1)
    model = DiffusionModel(config)
    keep(model)
    state, scene = torch.randn(BATCH, 1, STATE), torch.randn(BATCH, 1, SCENE)
    batch = {"observation.state": state, "observation.environment_state": scene,
             "action": torch.randn(BATCH, 8, COLUMNS), "action_is_pad": torch.zeros(BATCH, 8, dtype=torch.bool)}
    eps, level = torch.randn(BATCH, 8, COLUMNS), torch.arange(BATCH) * 17
    randn, randint = torch.randn, torch.randint
    torch.randn = lambda *a, **k: eps
    torch.randint = lambda *a, **k: level
    loss = model.compute_loss(dict(batch))
    with torch.no_grad():
        condition = model._prepare_global_conditioning(batch)
        chunk = model.conditional_sample(BATCH, global_cond=condition)
    torch.randn, torch.randint = randn, randint
    found |= {prediction + ".loss": loss.detach().numpy(), prediction + ".chunk": chunk.numpy()}
weights(model.unet)
found |= {"action": batch["action"].numpy(), "condition": condition.numpy(), "eps": eps.numpy(), "level": level.numpy()}
np.savez(sys.argv[1], **found)
"""
)

PI0 = (
    SETUP
    + """
from types import SimpleNamespace
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config
WIDTH, ROWS = 64, 7
config = PI0Config(max_action_dim=COLUMNS, max_state_dim=STATE, chunk_size=ROWS, n_action_steps=ROWS, min_period=0.2)
model = modeling_pi0.PI0Pytorch.__new__(modeling_pi0.PI0Pytorch)
torch.nn.Module.__init__(model)
model.config, model.rtc_processor, model.gradient_checkpointing_enabled = config, None, False
for name, sizes in {
    "action_in_proj": (COLUMNS, WIDTH), "action_out_proj": (WIDTH, COLUMNS), "state_proj": (STATE, WIDTH),
    "action_time_mlp_in": (2 * WIDTH, WIDTH), "action_time_mlp_out": (WIDTH, WIDTH),
}.items():
    setattr(model, name, torch.nn.Linear(*sizes))
keep(model)
class Passes:
    # in place of PaliGemma and of the expert's blocks of Gemma: what goes in comes out
    def __init__(self):
        weight = SimpleNamespace(weight=torch.zeros(1))
        layers = [SimpleNamespace(self_attn=SimpleNamespace(q_proj=weight))]
        language = SimpleNamespace(layers=layers, config=SimpleNamespace())
        self.paligemma = SimpleNamespace(model=SimpleNamespace(language_model=language))
        self.gemma_expert = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace()))
    def embed_image(self, image):
        return torch.zeros(len(image), 2, WIDTH)
    def embed_language_tokens(self, tokens):
        return torch.zeros(*tokens.shape, WIDTH)
    def forward(self, inputs_embeds, **_):
        return inputs_embeds, ()
model.paligemma_with_expert = Passes()
modeling_pi0.clone_past_key_values = lambda values: values
seen = ([torch.zeros(BATCH, 3, 8, 8)], [torch.ones(BATCH, dtype=torch.bool)], torch.zeros(BATCH, 2, dtype=torch.long),
        torch.ones(BATCH, 2, dtype=torch.bool), torch.randn(BATCH, STATE))
(action, eps), time = torch.randn(2, BATCH, ROWS, COLUMNS), model.sample_time(BATCH, "cpu")
loss = model.forward(*seen, action, eps, time)
with torch.no_grad():
    chunk = model.sample_actions(*seen, noise=eps, num_steps=10)
times = model.sample_time(20000, "cpu")
weights(model)
found |= {"action": action.numpy(), "eps": eps.numpy(), "time": time.numpy(), "loss": loss.detach().numpy(),
          "chunk": chunk.numpy(), "times": times.numpy()}
np.savez(sys.argv[1], **found)
"""
)


def ask(script: str, tmp_path: Path) -> dict[str, Tensor]:
    """Run a script under LeRobot and return what it found."""
    python = os.environ.get("GR2_LEROBOT_PYTHON")
    if not python:
        pytest.skip("GR2_LEROBOT_PYTHON names no Python with lerobot")
    out = tmp_path / "found.npz"
    subprocess.run([python, "-c", script, str(out)], check=True, timeout=600)
    with np.load(out) as arrays:
        return {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def take(module: nn.Module, found: dict[str, Tensor], pairs: dict[str, str]) -> None:
    """Give a module LeRobot's weights: the beginnings of names, ours and theirs."""
    state = {}
    for name in module.state_dict():
        ours = max((p for p in pairs if name == p or name.startswith(p + ".")), key=len)
        state[name] = found["w." + pairs[ours] + name[len(ours) :]].reshape(module.state_dict()[name].shape)
    module.load_state_dict(state)


def take_layers(layers: Iterable[nn.Module], found: dict[str, Tensor], theirs: str) -> None:
    for number, layer in enumerate(layers):
        pairs = {"among": "self_attn", "across": "multihead_attn", "mlp.0": "linear1", "mlp.3": "linear2"}
        pairs |= {f"norms.{i}": f"norm{i + 1}" for i in range(3)}
        take(layer, found, {ours: f"{theirs}.layers.{number}.{name}" for ours, name in pairs.items()})


def test_act_agrees_with_lerobot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(ACT, tmp_path)
    shape = ChunkShape(length=7, width=COLUMNS)
    config = CVAEConfig(network="detr", width=16, heads=4, encoder_blocks=2, latent_dim=3, pose_norm="l1",
                        kl_weight=10.0, sample_latent=False)  # fmt: skip
    head = CVAEHead(config, condition_dim=STATE + SCENE, shape=shape).eval()
    style, decoder = head.encoder, head.decoder
    assert isinstance(style, StyleEncoder) and isinstance(decoder, DetrDecoder)
    nothing = torch.zeros(16, SCENE)
    found["w.style_state.weight"] = torch.cat((found["w.vae_encoder_robot_state_input_proj.weight"], nothing), 1)
    found["w.style_state.bias"] = found["w.vae_encoder_robot_state_input_proj.bias"]
    pairs = {"cls": "vae_encoder_cls_embed.weight", "state": "style_state", "row": "vae_encoder_action_input_proj",
             "out": "vae_encoder_latent_output_proj"}  # fmt: skip
    for ours, theirs in pairs.items():
        part = getattr(style, ours)
        if isinstance(part, nn.Module):
            take(part, found, {n: f"{theirs}.{n}" for n in ("weight", "bias")})
        else:
            part.data = found["w." + theirs].reshape(part.shape)
    take_layers(style.layers, found, "vae_encoder")
    both = [found[f"w.encoder_{name}_input_proj.weight"] for name in ("robot_state", "env_state")]
    decoder.load_state_dict(decoder.state_dict() | {"seen.weight": torch.cat(both, 1), "seen.bias": torch.zeros(16)})
    names = {"latent": "encoder_latent_input_proj", "norm": "decoder.norm", "out": "action_head"}
    for ours, theirs in names.items():
        take(getattr(decoder, ours), found, {n: f"{theirs}.{n}" for n in ("weight", "bias")})
    decoder.queries.data = found["w.decoder_pos_embed.weight"]
    take_layers(decoder.encoder, found, "encoder")
    take_layers([decoder.decoder], found, "decoder")

    scene = torch.cat((torch.zeros(BATCH, STATE), found["observation.environment_state"]), 1)
    state = torch.cat((found["observation.state"], torch.zeros(BATCH, SCENE)), 1)
    seen = Seen(
        text=torch.zeros(BATCH, 1, STATE + SCENE), text_keep=torch.ones(BATCH, 1, dtype=torch.bool),
        tokens=torch.stack((scene, state), 1), keep=torch.ones(BATCH, 2, dtype=torch.bool), num_steps=1,
    )  # fmt: skip
    monkeypatch.setattr(torch, "randn_like", lambda like: found["eps"])
    loss = head.loss(seen, found["action"], torch.ones(BATCH, 7, COLUMNS, dtype=torch.bool))
    torch.testing.assert_close(head.sample(seen), found["chunk"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss["action_loss"], found["loss"], atol=1e-5, rtol=1e-5, check_dtype=False)


def take_unet(unet: UNetDenoiser, found: dict[str, Tensor]) -> None:
    pairs = {"level.0": "diffusion_step_encoder.1", "level.2": "diffusion_step_encoder.3", "leave.1": "final_conv.1"}
    pairs |= {f"leave.0.{i}": f"final_conv.0.block.{i}" for i in range(2)}
    blocks = {f"down.{i}.{j}": f"down_modules.{i}.{j}" for i in range(3) for j in range(2)}
    blocks |= {f"up.{i}.{j}": f"up_modules.{i}.{j}" for i in range(2) for j in range(2)}
    blocks |= {f"middle.{i}": f"mid_modules.{i}" for i in range(2)}
    pairs |= {f"shrink.{i}": f"down_modules.{i}.2" for i in range(2)}
    pairs |= {f"grow.{i}": f"up_modules.{i}.2" for i in range(2)}
    for ours, theirs in blocks.items():
        assert isinstance(unet.get_submodule(ours), FilmBlock)
        pairs |= {f"{ours}.first.{i}": f"{theirs}.conv1.block.{i}" for i in range(2)}
        pairs |= {f"{ours}.second.{i}": f"{theirs}.conv2.block.{i}" for i in range(2)}
        pairs |= {f"{ours}.modulate.1": f"{theirs}.cond_encoder.1", f"{ours}.residual": f"{theirs}.residual_conv"}
    take(unet, found, pairs)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_diffusion_policy_agrees_with_lerobot(tmp_path: Path, prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(DIFFUSION, tmp_path)
    shape = ChunkShape(length=8, width=COLUMNS)
    config = DiffusionConfig(network="unet", width=32, draws=1, steps=100, prediction=prediction, clip=1e3)
    head = DiffusionHead(config, trunk=TrunkShape(width=STATE + SCENE), shape=shape).eval()
    assert isinstance(head.denoiser, UNetDenoiser)
    take_unet(head.denoiser, found)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: found["eps"])
        patch.setattr(torch, "randint", lambda *_, **__: found["level"])
        loss = head.loss(found["condition"], found["action"], torch.ones(BATCH, 8, COLUMNS, dtype=torch.bool))
    torch.testing.assert_close(loss["action_loss"], found[f"{prediction}.loss"], atol=1e-5, rtol=1e-5)
    if prediction == "epsilon":
        return  # from noise alone, where the signal is 5e-4, the last digits of the network are all that is seen
    with torch.no_grad():
        chunk = head.sample(found["condition"], found["eps"].flatten(1))
    torch.testing.assert_close(chunk, found[f"{prediction}.chunk"], atol=1e-5, rtol=1e-5)


def take_pi0(expert: ExpertDenoiser, found: dict[str, Tensor]) -> None:
    """Give an expert LeRobot's weights around its blocks.

    Its time runs from noise to the chunk and its velocity leads there, both the other way round. Sines and cosines of
    1 - t are a rotation of those of t.
    """
    features, weight = 64, found["w.action_time_mlp_in.weight"]
    at_one = time_features(torch.ones(1), features)[0]
    sine, cosine = at_one.split(features // 2)
    rows, sines, cosines = weight.split((features, features // 2, features // 2), dim=1)
    turned = torch.cat((rows, cosines * sine - sines * cosine, sines * sine + cosines * cosine), dim=1)
    state = {"mix.0.weight": turned, "mix.0.bias": found["w.action_time_mlp_in.bias"]}
    for ours, theirs in {"row": "action_in_proj", "mix.2": "action_time_mlp_out", "leave": "action_out_proj"}.items():
        state |= {f"{ours}.{name}": found[f"w.{theirs}.{name}"] for name in ("weight", "bias")}
    state |= {name: -state[name] for name in ("leave.weight", "leave.bias")}
    expert.load_state_dict(state | {"places": torch.zeros_like(expert.places)}, strict=False)
    expert.norm = nn.Identity()


def test_pi0_agrees_with_lerobot_around_its_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ask(PI0, tmp_path)
    shape, trunk = ChunkShape(length=7, width=COLUMNS), TrunkShape(width=8, depth=0, heads=1)
    head = FlowHead(FlowConfig(network="expert", width=64, draws=1, steps=10), trunk=trunk, shape=shape).eval()
    assert isinstance(head.velocity, ExpertDenoiser)
    take_pi0(head.velocity, found)
    nothing = torch.zeros(BATCH, 1, 8)
    keep = torch.ones(BATCH, 1, dtype=torch.bool)
    seen = Seen(text=nothing, text_keep=keep, tokens=nothing, keep=keep, num_steps=1)
    uniform = ((found["time"] - 0.001) / 0.999) ** 1.5  # of which the head makes its time, 1 - LeRobot's
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randn_like", lambda like: found["eps"])
        patch.setattr(torch, "rand", lambda *_, **__: uniform)
        loss = head.loss(seen, found["action"], torch.ones(BATCH, 7, COLUMNS, dtype=torch.bool))
    torch.testing.assert_close(loss["action_loss"], found["loss"].mean(), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        chunk = head.sample(seen, found["eps"].flatten(1))
    torch.testing.assert_close(chunk, found["chunk"], atol=1e-5, rtol=1e-5)
    ours = 1 - 0.999 * (1 - torch.rand(20000, generator=torch.Generator().manual_seed(0)) ** (1 / 1.5))
    quantiles = torch.linspace(0.05, 0.95, 19)
    assert float((ours.quantile(quantiles) - found["times"].quantile(quantiles)).abs().max()) < 0.015
