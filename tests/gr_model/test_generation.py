"""Laws of sampling and of long rollouts: caches change nothing, nor does what stands beside a sample."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config
from scipy.stats import chisquare, kstest
from torch import Tensor

from gr2 import layers
from gr2.errors import ConfigError, ShapeError
from gr2.gr_model.model.context import Context, Targets
from gr2.gr_model.model.generation import FrameDecoder, imagine_frames, slide, stream_frames
from gr2.gr_model.model.objectives import read_targets
from gr2.gr_model.model.sampling import SampleNoise, SamplingConfig, guide, gumbel, probabilities, sample_codes
from gr2.gr_model.model.sequence import unpack_codes
from gr2.gr_model.model.world_model import WorldModel

MODES = pytest.mark.parametrize("decoding", ["masked", "raster", "queries"])
SAMPLED = SamplingConfig(temperature=1.0, choice_temperature=1.0, passes=3, seed=5)


def lively_model(decoding: Any, **changes: Any) -> WorldModel:
    """A model that does not copy, with scores far apart: wrong inputs show in the codes."""
    model = make_model(small_config(decoding, text_dropout=0.1, **changes))
    with torch.no_grad():
        model.copy_gate.bias.zero_()
        model.frame_codes.weight.mul_(8)
        model.embed.text.weight.mul_(10)
    return model


def start(model: WorldModel, frames: int | None = None) -> Context:
    """A context of three samples with different texts, cut to its newest frames, without robot states."""
    context = make_context(model, make_batch(model.config))
    h = frames or model.config.max_context
    codes = {name: values[:, -h:] for name, values in context.codes.items()}
    return Context(codes=codes, text=context.text, text_mask=context.text_mask)


def sample(context: Context, rows: list[int]) -> Context:
    """Some samples of a context."""
    codes = {name: values[rows] for name, values in context.codes.items()}
    cameras = context.camera_mask
    return replace(
        context,
        codes=codes,
        text=context.text[rows],
        text_mask=context.text_mask[rows],
        camera_mask=None if cameras is None else {name: mask[rows] for name, mask in cameras.items()},
    )


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def next_scores(decoder: FrameDecoder, packed: Tensor, index: int) -> Tensor:
    """Append one position of a frame and score the next."""
    return decoder.next_positions(packed[:, :, index : index + 1], index)[:, :, 0]


def uncached_logits(model: WorldModel, context: Context, packed: Tensor, hidden: Tensor | None) -> Tensor:
    """Score every position in one forward pass over the whole sequence."""
    _, features = model.predict(context, Targets(packed=packed, masked=hidden), with_actions=False)
    assert features is not None
    return model.frame_logits(features, model.reference(context).expand_as(packed))


def uncached_frames(model: WorldModel, context: Context, passes: int) -> dict[str, Tensor]:
    """Predict the likeliest target frames without any cache, spelled out."""
    newest = model.embed.arrange({name: codes[:, -1:] for name, codes in context.codes.items()})
    packed = torch.full_like(newest, model.embed.null_code).repeat(1, model.config.num_targets, 1, 1)
    tokens = [t for rows, columns in model.config.packed_grids for t in (False, *[True] * (rows * columns))]
    if model.config.decoding == "raster":
        for index in range(1, packed.shape[2]):
            if tokens[index]:
                packed[:, :, index] = uncached_logits(model, context, packed, None)[:, :, index - 1].argmax(-1)
    else:
        hidden = torch.tensor(tokens)[:, None].expand(packed.shape).clone()
        count = int(hidden[0, 0].sum())
        for step in range(1, passes + 1):
            score, codes = uncached_logits(model, context, packed, hidden).log_softmax(-1).max(-1)
            packed = torch.where(hidden, codes, packed)
            left = int(np.floor(count * np.cos(np.pi / 2 * step / passes)))
            for b, g in np.ndindex(*packed.shape[:2]):
                flat = score[b, g].masked_fill(~hidden[b, g], torch.inf).flatten()
                again = torch.zeros_like(flat, dtype=torch.bool)
                again[flat.argsort()[:left]] = True
                hidden[b, g] = again.view(hidden.shape[2:])
    frames, begin = {}, 0
    for camera, (rows, columns) in zip(model.config.cameras, model.config.packed_grids, strict=True):
        here = packed[:, :, begin + 1 : begin + 1 + rows * columns]
        begin += 1 + rows * columns
        frames[camera.name] = unpack_codes(here, camera.grid, model.config.token_packing)  # type: ignore[arg-type]
    return frames  # type: ignore[return-value]


@MODES
@pytest.mark.parametrize("targets", [1, 2])
def test_a_stream_equals_uncached_predictions_before_and_after_sliding(decoding: Any, targets: int) -> None:
    model = lively_model(decoding, max_context=3, num_targets=targets)
    context = start(model, frames=1)
    stream = stream_frames(model, context, sampling=SamplingConfig(passes=3))
    seen = set()
    with torch.no_grad():
        for _ in range(5):
            expected = uncached_frames(model, context, passes=1 if decoding == "queries" else 3)
            for g in range(targets):
                assert same(next(stream), {name: codes[:, g] for name, codes in expected.items()})
            context = slide(context, expected, 3)
            seen.add(expected["static"].numpy().tobytes())
            assert context.codes["static"].shape[1] <= 3
    assert len(seen) == 5, "the rollout stands still and proves little"


@MODES
def test_logits_after_sliding_equal_uncached_ones_with_the_kept_text(decoding: Any) -> None:
    model = lively_model(decoding, max_context=3)
    context, text_past = start(model), None
    packed = model.embed.arrange({name: codes[:, :1] + 0 for name, codes in context.codes.items()})
    hidden = (torch.rand(packed.shape) < 0.5) & (packed != model.embed.null_code)
    with torch.no_grad():
        for step in range(5):
            decoder = FrameDecoder(model, context, text_past)
            assert text_past is None or decoder.text_past is text_past
            text_past = decoder.text_past
            if decoding != "raster":
                everywhere = torch.ones(packed.shape[:3], dtype=torch.bool)
                got = decoder.score(packed, hidden, everywhere).view(*packed.shape, -1)
            else:
                got = torch.stack([next_scores(decoder, packed, i) for i in range(packed.shape[2])], dim=2)
            expected = uncached_logits(model, context, packed, hidden if decoding != "raster" else None)
            torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
            frame = {name: (codes[:, -1:] + step + 1) % 20 for name, codes in context.codes.items()}
            context = slide(context, frame, 3)


def test_hidden_positions_are_scored_as_among_all_and_a_pass_leaves_nothing_behind() -> None:
    model = lively_model("masked", num_targets=2)
    context = start(model)
    packed = model.embed.arrange({name: codes[:, :1] + 0 for name, codes in context.codes.items()}).repeat(1, 2, 1, 1)
    hidden = (torch.rand(packed.shape) < 0.3) & (packed != model.embed.null_code)
    wanted, everywhere = hidden.any(-1), torch.ones(packed.shape[:3], dtype=torch.bool)
    assert 0 < int(wanted.sum()) < wanted.numel() and not torch.equal(wanted[0], wanted[1])
    with torch.no_grad():
        decoder = FrameDecoder(model, context)
        first = decoder.score(packed, hidden, everywhere)
        decoder.score(torch.zeros_like(packed), ~hidden, everywhere)
        torch.testing.assert_close(decoder.score(packed, hidden, wanted), first[wanted.flatten()])
        assert torch.equal(decoder.score(packed, hidden, everywhere), first)
        assert decoder.score(packed, hidden, torch.zeros_like(wanted)).shape == (0, 4, 20)


def test_a_position_of_a_raster_frame_can_be_decoded_again() -> None:
    model = lively_model("raster")
    context = start(model)
    packed = model.embed.arrange({name: codes[:, :1] + 0 for name, codes in context.codes.items()})
    with torch.no_grad():
        decoder = FrameDecoder(model, context)
        first = [next_scores(decoder, packed, i) for i in range(packed.shape[2])]
        next_scores(decoder, (packed + 1) % 20, 3)
        for i in range(3, packed.shape[2]):
            assert torch.equal(next_scores(decoder, packed, i), first[i])


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED, replace(SAMPLED, guidance=1.5)])
@pytest.mark.parametrize(("targets", "missing"), [(1, ()), (2, (1,))])
@pytest.mark.parametrize("gate", [0.0, 40.0])
def test_drafts_change_no_code_and_save_passes_where_they_are_right(
    sampling: SamplingConfig, targets: int, missing: tuple[int, ...], gate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model("raster", max_context=2, num_targets=targets)
    torch.nn.init.constant_(model.copy_gate.bias, gate)  # 0: the newest frame is a wrong draft; 40: a right one
    context = start(model)
    present = torch.ones(3, dtype=torch.bool)
    present[list(missing)] = False
    context = replace(context, camera_mask={"static": present})
    widths: list[int] = []
    extend = FrameDecoder.next_positions

    def watched(decoder: FrameDecoder, packed: Tensor, start: int) -> Tensor:
        widths.append(packed.shape[2])
        return extend(decoder, packed, start)

    monkeypatch.setattr(FrameDecoder, "next_positions", watched)
    singly = imagine_frames(model, context, num_frames=4, sampling=replace(sampling, draft_rows=1))
    assert set(widths) == {1}
    passes = len(widths)
    for rows in (24, 1000):
        widths.clear()
        assert same(singly, imagine_frames(model, context, num_frames=4, sampling=replace(sampling, draft_rows=rows)))
        assert 1 < max(widths) <= rows and len(widths) <= passes
    assert gate == 0 or len(widths) < passes / 2


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_a_single_sample_is_drawn_alike_with_wide_weights_by_column(
    guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively_model("raster")
    lone, sampling = sample(start(model), [1]), replace(SAMPLED, guidance=guidance, draft_rows=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    by_row = imagine_frames(model, lone, num_frames=3, sampling=sampling)
    monkeypatch.setattr(layers, "_LARGE", 1)
    strides, linear = set(), layers._project

    def watched(layer: Any, x: Tensor, *rows: Any) -> Tensor:
        strides.add(layer.weight.stride(0))
        return linear(layer, x, *rows)

    monkeypatch.setattr(layers, "_project", watched)
    assert same(by_row, imagine_frames(model, lone, num_frames=3, sampling=sampling))
    assert 1 in strides
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) and after[name].is_contiguous() for name, tensor in before.items())
    strides.clear()
    imagine_frames(model, start(model), sampling=sampling)
    imagine_frames(model, lone, sampling=replace(sampling, draft_rows=8))
    assert 1 not in strides, "several samples, and drafts, take the weights as they are"


def test_only_the_keys_of_the_text_survive_a_slide() -> None:
    model = lively_model("raster", max_context=3)
    context = start(model)
    moved = slide(context, {name: codes[:, :1] + 0 for name, codes in context.codes.items()}, 3)
    with torch.no_grad():
        before, after = FrameDecoder(model, context), FrameDecoder(model, moved)
    layout, text = before.layout, before.layout.text_length
    step = layout.frame_length + 1
    for (old, _), (new, _) in zip(before.past, after.past, strict=True):
        torch.testing.assert_close(old[:, :, :text], new[:, :, :text], atol=1e-6, rtol=1e-5)
        kept = old[:, :, text + step : text + 3 * step - 1], new[:, :, text : text + 2 * step - 1]
        assert (kept[0] - kept[1]).abs().amax((1, 3)).min() > 1e-3


def test_changing_a_code_leaves_earlier_cached_logits_bit_identical() -> None:
    model = lively_model("raster")
    batch = make_batch(model.config)
    context = make_context(model, batch)
    packed, _ = read_targets(model, batch, context, 2)
    for place in (2, 8, 10):
        changed = packed.clone()
        changed[:, :, place] = (changed[:, :, place] + 1) % 20
        with torch.no_grad():
            one, two = FrameDecoder(model, context), FrameDecoder(model, context)
            equal = [
                torch.equal(next_scores(one, packed, i), next_scores(two, changed, i)) for i in range(packed.shape[2])
            ]
        assert equal == [i < place for i in range(packed.shape[2])]


@MODES
def test_asking_for_more_frames_leaves_earlier_frames_as_they_are(decoding: Any) -> None:
    model = lively_model(decoding, num_targets=2)
    few = imagine_frames(model, start(model), num_frames=3, sampling=SAMPLED)
    many = imagine_frames(model, start(model), num_frames=8, sampling=SAMPLED)
    assert few["static"].shape == (3, 3, 24) and many["gripper"].shape == (3, 8, 16)
    assert same(few, {name: codes[:, :3] for name, codes in many.items()})


@MODES
def test_an_endless_stream_goes_on_and_is_what_a_collected_one_is(decoding: Any) -> None:
    model = lively_model(decoding, max_context=1)
    frames = list(islice(stream_frames(model, start(model), sampling=SAMPLED), 9))
    collected = imagine_frames(model, start(model), num_frames=9, sampling=SAMPLED)
    assert same({name: torch.stack([f[name] for f in frames], dim=1) for name in frames[0]}, collected)
    assert all(int(codes.min()) >= 0 and int(codes.max()) < 20 for codes in collected.values())


@MODES
def test_padding_of_the_text_changes_nothing(decoding: Any) -> None:
    model = lively_model(decoding)
    context = start(model)
    text = torch.cat((context.text, 50 * torch.randn(3, 1, 12)), dim=1)
    padded = replace(context, text=text, text_mask=torch.cat((context.text_mask, torch.zeros(3, 1).bool()), dim=1))
    for sampling in (SamplingConfig(passes=3), SAMPLED, replace(SAMPLED, guidance=2.0)):
        first = imagine_frames(model, context, num_frames=3, sampling=sampling)
        assert same(first, imagine_frames(model, padded, num_frames=3, sampling=sampling))


@MODES
@pytest.mark.parametrize(("kept", "gone"), [("static", "gripper"), ("gripper", "static")])
def test_a_hidden_camera_is_an_absent_camera_whatever_it_shows(decoding: Any, kept: str, gone: str) -> None:
    model = lively_model(decoding)
    context = start(model)
    absent = replace(context, codes={kept: context.codes[kept]})
    other = {**context.codes, gone: (context.codes[gone] + 7) % 20}
    off = {gone: torch.zeros(3, dtype=torch.bool)}
    for sampling in (SamplingConfig(passes=3), SAMPLED):
        expected = imagine_frames(model, absent, num_frames=3, sampling=sampling)
        assert list(expected) == [kept]
        for codes in (context.codes, other):
            hidden = replace(context, codes=codes, camera_mask=off)
            got = imagine_frames(model, hidden, num_frames=3, sampling=sampling)
            assert torch.equal(got[kept], expected[kept])
            assert torch.equal(got[gone], codes[gone][:, -1:].expand(-1, 3, -1))
    with_both = imagine_frames(model, context, num_frames=3, sampling=SAMPLED)
    assert not torch.equal(with_both[kept], imagine_frames(model, absent, num_frames=3, sampling=SAMPLED)[kept])


@MODES
def test_hidden_old_frames_are_no_frames(decoding: Any) -> None:
    model = lively_model(decoding)
    hidden = replace(start(model), frame_mask=torch.tensor([[False, True]]).expand(3, -1))
    assert same(
        imagine_frames(model, hidden, sampling=SAMPLED), imagine_frames(model, start(model, frames=1), sampling=SAMPLED)
    )


@MODES
def test_permuting_the_texts_permutes_the_futures(decoding: Any) -> None:
    model = lively_model(decoding)
    context = start(model)
    alike = replace(context, codes={name: codes[:1].expand(3, -1, -1) for name, codes in context.codes.items()})
    order = [2, 0, 1]
    permuted = replace(alike, text=alike.text[order], text_mask=alike.text_mask[order])
    for sampling in (SamplingConfig(passes=3), SAMPLED, replace(SAMPLED, guidance=1.5)):
        first = imagine_frames(model, alike, num_frames=2, sampling=sampling)
        assert not torch.equal(first["static"][0], first["static"][1])
        again = imagine_frames(model, permuted, num_frames=2, sampling=sampling)
        assert same({name: codes[order] for name, codes in first.items()}, again)


@MODES
def test_a_sample_does_not_depend_on_its_batch(decoding: Any) -> None:
    model = lively_model(decoding)
    context = start(model)
    context = replace(context, camera_mask={"gripper": torch.tensor([True, False, True])})
    sampling = replace(SAMPLED, passes=50, top_k=9, top_p=0.95, guidance=1.5)
    together = imagine_frames(model, context, num_frames=3, sampling=sampling, seeds=[4, 5, 6])
    for row, seed in enumerate([4, 5, 6]):
        alone = imagine_frames(model, sample(context, [row]), num_frames=3, sampling=sampling, seeds=[seed])
        assert same({name: codes[row : row + 1] for name, codes in together.items()}, alone)


@MODES
def test_seeds_say_everything(decoding: Any) -> None:
    model = lively_model(decoding)
    twins = sample(start(model), [0, 0, 0])
    first = imagine_frames(model, twins, num_frames=2, sampling=SAMPLED)
    torch.rand(7)  # the global generator has no effect
    assert same(first, imagine_frames(model, twins, num_frames=2, sampling=SAMPLED))
    assert torch.equal(first["static"][0], first["static"][2])
    assert not same(first, imagine_frames(model, twins, num_frames=2, sampling=replace(SAMPLED, seed=6)))
    several = imagine_frames(model, twins, num_frames=2, sampling=SAMPLED, seeds=[5, 8, 5])
    assert torch.equal(several["static"][0], first["static"][0])
    assert torch.equal(several["static"][0], several["static"][2])
    assert not torch.equal(several["static"][0], several["static"][1])


@MODES
def test_the_narrowest_draws_are_the_likeliest_codes(decoding: Any) -> None:
    model = lively_model(decoding)
    likeliest = imagine_frames(model, start(model), num_frames=2, sampling=SamplingConfig(passes=3))
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-6}, {"temperature": 1e-42}):
        sampling = SamplingConfig(**{"passes": 3, "temperature": 1.0, **narrow})  # type: ignore[arg-type]
        assert same(likeliest, imagine_frames(model, start(model), num_frames=2, sampling=sampling)), narrow
    assert not same(
        likeliest, imagine_frames(model, start(model), num_frames=2, sampling=replace(SAMPLED, choice_temperature=0.0))
    )


def test_equal_scores_are_settled_as_argmax_settles_them() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 3.0]])
    for sampling in (SamplingConfig(), SamplingConfig(temperature=1.0, top_k=1)):
        assert probabilities(logits, sampling).tolist() == [[0.0, 1.0, 0.0, 0.0]]
        assert sample_codes(logits, sampling, torch.tensor([7])).tolist() == [1]
    assert sample_codes(logits, SamplingConfig(temperature=1.0, top_p=1e-9), torch.tensor([7])).tolist() == [1]
    assert probabilities(logits, SamplingConfig(temperature=1.0, top_k=2)).tolist() == [[0.0, 0.5, 0.5, 0.0]]


def expected_probabilities(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """Temperature, then the k likeliest, then the share p, spelled out for one distribution."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = list(np.argsort(-p))
    if top_k:
        order = order[:top_k]
    within = p[order] / p[order].sum()
    kept = [code for code, before in zip(order, np.cumsum(within) - within, strict=True) if before < top_p]
    result = np.zeros_like(p)
    result[kept] = p[kept] / p[kept].sum()
    return result


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.0, 5, 1.0), (1.5, 0, 0.8), (0.8, 7, 0.9)]
)
def test_draws_follow_their_distribution(temperature: float, top_k: int, top_p: float) -> None:
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    expected = expected_probabilities(logits.double().numpy(), temperature, top_k, top_p)
    np.testing.assert_allclose(probabilities(logits, sampling).numpy(), expected, atol=1e-9)
    seeds = SampleNoise([3]).seeds((40000,), torch.device("cpu"))
    counts = sample_codes(logits.expand(1, 40000, -1), sampling, seeds).flatten().bincount(minlength=12).numpy()
    assert counts[expected == 0].sum() == 0
    sampled = expected > 0
    assert chisquare(counts[sampled], 40000 * expected[sampled]).pvalue > 1e-3


def test_impossible_codes_are_never_drawn() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 4.0, -torch.inf]).expand(5000, -1)
    sampled = sample_codes(logits, SamplingConfig(temperature=1.0), torch.arange(5000))
    assert set(sampled.tolist()) == {1, 2}


def test_noise_is_that_of_splitmix64_and_of_gumbel() -> None:
    # The first outputs of the reference implementation for the seed 1234567.
    words = np.array([6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431], np.uint64)
    expected = -np.log(-np.log(((words >> np.uint64(41)).astype(float) + 0.5) / 2**23))
    np.testing.assert_allclose(gumbel(torch.tensor(1234567), 4).numpy(), expected, rtol=1e-5)
    numbers = gumbel(SampleNoise([3]).seeds((2000,), torch.device("cpu"))[0], 30)
    assert torch.isfinite(numbers).all()
    assert kstest(numbers.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    assert abs(np.corrcoef(numbers.numpy().T) - np.eye(30)).max() < 0.12


def test_close_logits_draw_the_same_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 50, generator=generator)
    near = logits + 0.1 * torch.randn(4000, 50, generator=generator)
    first, second = (sample_codes(x, SamplingConfig(temperature=1.0), torch.arange(4000)) for x in (logits, near))
    apart = (logits.softmax(-1) - near.softmax(-1)).abs().sum(-1).mean() / 2
    assert (first != second).float().mean() < 2 * apart


def test_drawn_frames_follow_the_softmax_of_the_model() -> None:
    model = lively_model("raster")
    with torch.no_grad():
        model.frame_codes.weight.mul_(0.3)
    context = sample(start(model), [0])
    with torch.no_grad():
        logits = next_scores(FrameDecoder(model, context), model.embed.arrange(context.codes)[:, -1:], 0)
    crowd = sample(context, [0] * 1500)
    sampling = SamplingConfig(temperature=1.0)
    codes = imagine_frames(model, crowd, sampling=sampling, seeds=range(1500))["static"][:, 0, 0]
    expected = 1500 * logits[0, 0, 0].double().softmax(-1).numpy()
    common = expected > 5
    counts = codes.bincount(minlength=20).numpy()
    counts = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    assert common.sum() >= 4
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


@MODES
def test_guidance_one_is_none_and_costs_no_second_pass(decoding: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively_model(decoding)
    plain = imagine_frames(model, start(model), num_frames=2, sampling=SAMPLED)
    sizes, extend = set(), model.gpt.extend

    def watched(x: Tensor, mask: Tensor, past: Any, read: Any = None) -> Any:
        sizes.add(len(x))
        return extend(x, mask, past, read)

    monkeypatch.setattr(model.gpt, "extend", watched)
    unguided = imagine_frames(model, start(model), num_frames=2, sampling=replace(SAMPLED, guidance=1.0))
    assert same(plain, unguided)
    assert sizes == {3}
    guided = imagine_frames(model, start(model), num_frames=2, sampling=replace(SAMPLED, guidance=3.0))
    assert sizes == {3, 6} and not same(plain, guided)


@MODES
def test_guidance_zero_is_the_future_without_text(decoding: Any) -> None:
    model = lively_model(decoding)
    context = start(model)
    without = replace(context, text_mask=torch.zeros_like(context.text_mask))
    expected = imagine_frames(model, without, num_frames=2, sampling=SAMPLED)
    assert same(expected, imagine_frames(model, context, num_frames=2, sampling=replace(SAMPLED, guidance=0.0)))
    assert not same(expected, imagine_frames(model, context, num_frames=2, sampling=SAMPLED))
    assert same(expected, imagine_frames(model, without, num_frames=2, sampling=replace(SAMPLED, guidance=4.0)))


def test_guidance_goes_from_the_prediction_without_text_through_the_one_with_it() -> None:
    with_text, without = torch.randn(2, 5), torch.randn(2, 5)
    both = torch.cat((with_text, without))
    torch.testing.assert_close(guide(both, 2.5), without + 2.5 * (with_text - without))
    assert guide(with_text, 1.0) is with_text


def test_the_models_mode_is_restored_between_frames_and_after_a_failure() -> None:
    model = lively_model("masked").train()
    stream = stream_frames(model, start(model), num_frames=2)
    next(stream)
    assert model.training and torch.is_grad_enabled()
    too_long = replace(start(model), codes={n: c.repeat(1, 2, 1) for n, c in start(model).codes.items()})
    with pytest.raises(ShapeError, match="1 to 2 frames"):
        imagine_frames(model, too_long)
    assert model.training


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5},
        {"guidance": -0.5}, {"guidance": float("inf")}, {"passes": 0}, {"choice_temperature": -1.0},
    ],
)  # fmt: skip
def test_senseless_sampling_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"SamplingConfig\.{next(iter(wrong))}: expected .*, got"):
        SamplingConfig(**wrong)


def test_senseless_roll_outs_are_refused_at_the_call() -> None:
    model = lively_model("masked")
    with pytest.raises(ConfigError, match="at least 1 frame, got 0"):
        stream_frames(model, start(model), num_frames=0)
    with pytest.raises(ConfigError, match="one for each of 3 samples, got 2"):
        stream_frames(model, start(model), seeds=[1, 2])
    with pytest.raises(ConfigError, match="text dropout"):
        stream_frames(make_model(small_config()), start(model), sampling=SamplingConfig(guidance=2.0))
