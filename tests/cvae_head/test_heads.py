"""The trajectory heads: one interface, masks, noise, and several motions that answer one observation."""

from __future__ import annotations

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.cvae_head import kinds
from gr2.cvae_head.bins import BinsConfig
from gr2.cvae_head.cvae import COLLAPSED_KL, CVAEConfig, CVAEHead
from gr2.cvae_head.diffusion import cosine_schedule
from gr2.cvae_head.head import ChunkShape, Condition, Seen, TrajectoryHead, TrunkShape
from gr2.cvae_head.kinds import HeadConfig, HeadOptions, head_config_from_dict, make_head
from gr2.cvae_head.losses import continuous_loss, kl_between_normals, kl_to_standard_normal, masked_mean
from gr2.cvae_head.networks import time_features
from gr2.cvae_head.regression import RegressionConfig
from gr2.cvae_head.tokens import TokensConfig, TokensHead
from gr2.cvae_head.two_ways import TREE, judge, train_two_ways
from gr2.errors import ConfigError

SHAPE = ChunkShape(length=5, width=7, binary=(6,))
KINDS = ("cvae", "regression", "flow", "diffusion")
CONFIGS: list[HeadConfig] = [kinds.small(kind) for kind in KINDS]
CONFIGS += [replace(kinds.reference(kind), width=32) for kind in KINDS]
CONFIGS += [
    CVAEConfig(network="mlp", prior="gaussian"),
    CVAEConfig(network="mlp", prior="flow"),
    HeadOptions(kind="diffusion", prediction="epsilon", steps=50).apply(kinds.small()),
    HeadOptions(kind="diffusion", network="unet", width=32).apply(kinds.small()),
    HeadOptions(kind="diffusion", network="dit", width=32, heads=4).apply(kinds.small()),
    HeadOptions(kind="flow", network="expert", width=32).apply(kinds.small()),
    HeadOptions(kind="flow", network="fast", width=32).apply(kinds.small()),
    HeadOptions(kind="cvae", network="detr", width=32).apply(kinds.small()),
    HeadOptions(kind="cvae", network="detr", width=32, film=True, sample_latent=False).apply(kinds.small()),
    BinsConfig(width=32, blocks=2, heads=4, learned_tokens=3),
    BinsConfig(width=32, blocks=2, heads=4, learned_tokens=3, temperature=1.0),
]
TRUNK = TrunkShape(width=32, depth=2, heads=4, max_context=2)


def name_of(config: HeadConfig) -> str:
    details = [str(getattr(config, name, "")) for name in ("network", "prior", "prediction", "film", "temperature")]
    return "-".join(filter(None, (config.kind, *details)))


def make_condition(head: TrajectoryHead, count: int) -> Condition:
    """What a head reads: the action query's output, or two steps of four tokens and a text, parts of them absent."""
    if head.reads == "query":
        return torch.randn(count, 32)
    layers = tuple(torch.randn(2, count, 4, 11, 8) for _ in range(2)) if head.reads == "layers" else ()
    text_keep, keep = torch.ones(count, 3, dtype=torch.bool), torch.ones(count, 8, dtype=torch.bool)
    text_keep[0, 1:] = keep[1, 4:7] = False
    text, tokens = torch.randn(count, 3, 32), torch.randn(count, 8, 32)
    seen = Seen(text=text, text_keep=text_keep, tokens=tokens, keep=keep, num_steps=2, layers=layers)
    late = {"thought": torch.randn(count, 32), "age": torch.rand(count)} if head.reads == "late" else {}
    return replace(seen, **late)


def rows(condition: Condition, part: slice) -> Condition:
    if not isinstance(condition, Seen):
        return condition[part]
    layers = tuple(layer[:, part] for layer in condition.layers)
    return replace(replace(condition, layers=()).map(lambda tensor: tensor[part]), layers=layers)


def make(config: HeadConfig, seed: int = 0) -> TrajectoryHead:
    torch.manual_seed(seed)
    head = make_head(config, trunk=TRUNK, shape=SHAPE)
    for parameter in head.parameters():  # last layers begin at zero: let every path count
        torch.nn.init.normal_(parameter, std=0.1)
    return head


def chunks(count: int) -> torch.Tensor:
    chunk = torch.randn(count, SHAPE.length, SHAPE.width)
    chunk[..., 6] = (chunk[..., 6] > 0).float()
    return chunk


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_what_is_masked_changes_no_loss(config: HeadConfig) -> None:
    head = make(config)
    condition, chunk = make_condition(head, 4), chunks(4)
    mask = torch.ones(4, 5, 7, dtype=torch.bool)
    mask[:, 3:] = False
    mask[0, :, 2] = False
    losses, gradients = [], []
    for filling in (0.0, 7.0, math.nan, math.inf):
        torch.manual_seed(1)
        losses.append(head.loss(condition, torch.where(mask, chunk, filling), mask))
        gradients.append(torch.autograd.grad(losses[-1]["action_loss"], [*head.parameters()], allow_unused=True))
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert all(torch.equal(losses[0][name], loss[name]) for name in losses[0])
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], gradient, strict=True) if a is not None)
    assert torch.isfinite(losses[0]["action_loss"])


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_losses_of_parts_add_up_to_that_of_the_whole(config: HeadConfig) -> None:
    """Every part is divided by the mean count of the parts; what counts samples needs parts of equal size."""
    head = make(config)
    torch.manual_seed(3)
    condition, chunk = make_condition(head, 4), chunks(4)
    mask = torch.arange(5)[None, :, None] < torch.tensor([5, 4, 1, 0])[:, None, None]
    mask = mask.expand(4, 5, 7).clone()
    mask[0, :, 2:4] = False
    parts = [slice(0, 2), slice(2, 4)]
    kept = torch.stack([head.counts(mask[part]) for part in parts]).mean(0)
    torch.testing.assert_close(kept * 2, head.counts(mask))
    alone = head.loss(condition, chunk, mask)["action_loss"]
    torch.manual_seed(1)
    same = head.loss(rows(condition, parts[0]), chunk[parts[0]], mask[parts[0]])["action_loss"]
    torch.manual_seed(1)
    own = head.counts(mask[parts[0]])
    again = head.loss(rows(condition, parts[0]), chunk[parts[0]], mask[parts[0]], kept=own)["action_loss"]
    assert torch.equal(same, again)
    if type(config).__name__ in ("RegressionConfig", "BinsConfig"):  # the others draw noise for each sample
        found = [head.loss(rows(condition, p), chunk[p], mask[p], kept=kept)["action_loss"] for p in parts]
        torch.testing.assert_close(torch.stack(found).mean(), alone)


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_equal_noise_gives_equal_chunks_and_other_noise_others(config: HeadConfig) -> None:
    head = make(config).eval()
    condition, noise = make_condition(head, 4), torch.randn(4, head.noise_dim)
    first = head.sample(condition, noise)
    assert first.shape == (4, 5, 7)
    assert (first[..., 6] >= 0).all() and (first[..., 6] <= 1).all()
    assert torch.equal(first, head.sample(condition, noise))
    # Eight steps and more carry the rounding of another batch size along.
    torch.testing.assert_close(head.sample(rows(condition, slice(1, 2)), noise[1:2]), first[1:2], rtol=1e-5, atol=5e-5)
    if head.noise_dim:
        assert not torch.equal(first, head.sample(condition, -noise))
    assert torch.equal(head.sample(condition), head.sample(condition, torch.zeros_like(noise)))


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_every_head_learns_one_batch(config: HeadConfig) -> None:
    torch.manual_seed(0)
    head = make_head(config, trunk=TRUNK, shape=SHAPE)
    condition, chunk = make_condition(head, 8), chunks(8)
    mask = torch.ones(8, 5, 7, dtype=torch.bool)
    optimizer = torch.optim.Adam(head.parameters(), lr=2e-3)
    guess = float((chunk - chunk.mean(0))[..., :6].abs().mean())
    error, steps = guess, 0
    while error >= 0.5 * guess and steps < (1500 if getattr(config, "prediction", "") == "epsilon" else 400):
        head.train()
        for _ in range(50):
            optimizer.zero_grad()
            head.loss(condition, chunk, mask)["action_loss"].backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            answer = head.sample(condition, torch.randn(8, head.noise_dim))
        error, steps = float((answer - chunk)[..., :6].abs().mean()), steps + 50
    assert error < 0.6 * guess


@pytest.mark.parametrize("config", CONFIGS, ids=name_of)
def test_a_configuration_survives_its_record(config: HeadConfig) -> None:
    assert head_config_from_dict(asdict(config)) == config


def test_records_of_the_first_release_take_the_mean_of_the_prior() -> None:
    old = {"latent_dim": 16, "kind": "mlp", "width": 256, "heads": 8, "encoder_blocks": 4, "decoder_blocks": 4,
           "pose_norm": "l1", "pose_weight": 1.0, "gripper_weight": 0.3, "kl_weight": 0.3}  # fmt: skip
    read = head_config_from_dict(old)
    assert isinstance(read, CVAEConfig) and not read.sample_latent and read.network == "mlp"
    assert make_head(read, trunk=TrunkShape(width=8), shape=SHAPE).noise_dim == 0
    assert isinstance(head_config_from_dict({**old, "latent_dim": 0}), RegressionConfig)


def test_options_must_fit_the_kind() -> None:
    with pytest.raises(ConfigError, match=r"--head.kl-weight: expected an option of the head flow \(.*steps.*got 0.1"):
        HeadOptions(kind="flow", kl_weight=0.1).apply(kinds.small())
    assert HeadOptions().apply(kinds.small()) == kinds.small()
    chosen = HeadOptions(kind="flow", steps=3).apply(kinds.small())
    assert chosen.kind == "flow" and chosen.steps == 3 and chosen.network == "mlp"
    with pytest.raises(ConfigError, match="one of mlp, blocks for the head regression, got 'dit'"):
        HeadOptions(kind="regression", network="dit").apply(kinds.small())
    with pytest.raises(ConfigError, match="a multiple of 32 for the network unet, got 100"):
        make(HeadOptions(kind="flow", network="unet", width=100).apply(kinds.small()))
    with pytest.raises(ConfigError, match="film: expected the network detr"):
        HeadOptions(kind="cvae", film=True).apply(kinds.small())
    with pytest.raises(ConfigError, match="expected a kind of cvae"):
        head_config_from_dict({"kind": "mixture"})


def test_divergences_agree_with_torch_distributions() -> None:
    mean, log_variance, prior_mean, prior_log_variance = torch.randn(4, 6, 5).unbind()
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    prior = torch.distributions.Normal(prior_mean, (0.5 * prior_log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, prior)
    torch.testing.assert_close(kl_between_normals(mean, log_variance, prior_mean, prior_log_variance), expected)
    standard = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), standard)


def test_free_bits_and_warm_up_make_the_latent_cheap() -> None:
    torch.manual_seed(0)
    condition, chunk, mask = torch.randn(4, 32), chunks(4), torch.ones(4, 5, 7, dtype=torch.bool)
    head = make(CVAEConfig(network="mlp", latent_dim=4, kl_weight=1.0, kl_warmup=10))
    assert isinstance(head, CVAEHead)

    def penalty(step: int | None) -> float:
        torch.manual_seed(1)
        losses = head.loss(condition, chunk, mask, step=step)
        return float(losses["action_loss"] - losses["continuous_loss"] - 0.01 * losses["binary_loss"])

    assert penalty(0) == pytest.approx(0.1 * penalty(None), rel=1e-3)
    assert penalty(9) == pytest.approx(penalty(None)) == pytest.approx(penalty(1000))
    free = make(CVAEConfig(network="mlp", latent_dim=4, kl_weight=1.0, free_bits=1e6))
    losses = free.loss(condition, chunk, mask)
    rest = losses["action_loss"] - losses["continuous_loss"] - 0.01 * losses["binary_loss"]
    assert float(rest) == pytest.approx(4e6)


def test_tokens_of_a_chunk_give_it_back_up_to_half_a_bin() -> None:
    chunk = chunks(6).clamp(-2, 2)
    steps = TokensHead(TokensConfig(bins=64, bound=4.0), width=16, shape=SHAPE)
    back = steps.detokenize(steps.tokenize(chunk))
    assert float((back - chunk)[..., :6].abs().max()) <= 4 / 64 + 1e-6
    assert torch.equal(back[..., 6].round(), chunk[..., 6])
    whole = TokensHead(TokensConfig(bins=4096, dct=5), width=16, shape=SHAPE)
    torch.testing.assert_close(whole.detokenize(whole.tokenize(chunk)), chunk, atol=5e-3, rtol=0)
    smooth = chunk.mean(1, keepdim=True).expand(-1, 5, -1)
    few = TokensHead(TokensConfig(bins=4096, dct=1), width=16, shape=SHAPE)
    assert few.num_queries == 7
    torch.testing.assert_close(few.detokenize(few.tokenize(smooth))[..., :6], smooth[..., :6], atol=5e-3, rtol=0)


def test_tokens_drawn_one_by_one_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read back through the trunk at once, the tokens of an answer are the likeliest everywhere."""
    model = make_model(small_config(head=TokensConfig(bins=8, dct=2, temperature=0.0)))
    head = model.head
    assert isinstance(head, TokensHead)
    context = make_context(model, make_batch(model.config))
    drawn: list[torch.Tensor] = []
    read = head.detokenize
    monkeypatch.setattr(head, "detokenize", lambda tokens: drawn.append(tokens) or read(tokens))
    with torch.no_grad():
        assert model.act(context).shape == (3, 5, 7)
    tokens = drawn[0]
    layout = model.layout(context, with_frames=False, with_action=True)
    x, mask = model.assemble(layout, context, None, head.inputs(tokens))
    y = model.gpt(x, mask, model.constants(layout)["action"])
    assert len(layout.positions("action")) == 14
    assert torch.equal(head.logits(y).argmax(-1), tokens)


def test_tokens_follow_their_distribution() -> None:
    head = TokensHead(TokensConfig(bins=4), width=16, shape=SHAPE)
    with torch.no_grad():
        head.logits.weight.zero_()
        head.logits.bias.copy_(torch.tensor([0.1, 0.4, 0.3, 0.2]).log())
        tokens = head.sample_token(torch.zeros(4000, 16), torch.randn(4000, generator=torch.Generator().manual_seed(0)))
        assert int(head.sample_token(torch.zeros(1, 16), None)) == 1  # the median
    shares = torch.bincount(tokens, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.4, 0.3, 0.2]), atol=0.03, rtol=0)


def test_noise_levels_and_times_are_ordered_and_distinct() -> None:
    signal = cosine_schedule(100)
    assert (signal.diff() < 0).all() and signal[0] > 0.99 and signal[-1] < 0.01
    features = time_features(torch.linspace(0, 1, 11))
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.1


TWO_WAYS = {
    "regression": (HeadOptions(kind="regression"), False),
    "cvae at z = 0": (HeadOptions(kind="cvae", sample_latent=False), False),
    "cvae with a learned prior": (HeadOptions(kind="cvae", prior="flow"), True),
    "flow": (HeadOptions(kind="flow", draws=1), True),
    "diffusion": (HeadOptions(kind="diffusion", draws=1), True),
    "tokens": (HeadOptions(kind="tokens"), True),
}


_SLOW = ("cvae with a learned prior", "diffusion", "tokens")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.nightly] * (n in _SLOW)) for n in TWO_WAYS])
def test_two_ways_round_a_tree(name: str) -> None:
    """Half of the demonstrations pass left, half right: an average hits the tree or knows one way only."""
    options, both = TWO_WAYS[name]
    result = judge(train_two_ways(options.apply(kinds.small()), seed=0), count=400, seed=1)
    if both:
        assert result.hits < 0.1 and min(result.left, result.right) > 0.25, result
    else:
        assert max(result.hits, result.left, result.right) > 0.99, result


@pytest.mark.nightly
def test_the_default_head_knows_two_ways_round_a_tree() -> None:
    """A latent without modes of its own has a seam between them, which grows narrow with training."""
    seam = judge(train_two_ways(kinds.small(), steps=800, seed=0), count=400, seed=1).hits
    result = judge(train_two_ways(kinds.small(), steps=3000, seed=0), count=400, seed=1)
    assert result.hits < min(0.12, seam) and min(result.left, result.right) > 0.4, result


def test_the_tree_stands_in_the_way() -> None:
    assert TREE.distance(np.zeros((1, 3, 2)) + [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])[0] < 0 < COLLAPSED_KL


def test_masked_steps_do_not_count() -> None:
    predicted, target = torch.randn(3, 4, 6), torch.randn(3, 4, 6)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()[..., None].expand(3, 4, 6)
    before = continuous_loss(predicted, target, mask, "smooth_l1")
    predicted = torch.where(mask, predicted, predicted + 100)
    assert continuous_loss(predicted, target, mask, "smooth_l1") == before
    assert masked_mean(torch.ones(2, 2), torch.zeros(2, 2).bool()) == 0
