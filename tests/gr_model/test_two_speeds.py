"""Two speeds: a small controller acts on the newest image and on a thought that is late, of the age that it is told."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_cases import make_batch, make_context, make_model, small_config

from gr2.benchmarks.simulation.episodes import asking_period
from gr2.contracts import Observation
from gr2.cvae_head import kinds
from gr2.cvae_head.kinds import HeadOptions
from gr2.gr_model.act.policy import GR2Policy
from gr2.gr_model.act.thoughts import Thoughts
from gr2.gr_model.model.context import random_ages, step_before
from gr2.gr_model.model.objectives import training_losses
from gr2.gr_model.model.world_model import WorldModel

FAST = HeadOptions(kind="flow", network="fast", width=16).apply(kinds.small())


def make_fast(**changes: object) -> WorldModel:
    """A model at two speeds whose layers of zeros are drawn."""
    model = make_model(small_config(head=FAST, max_context=3, **changes))
    for parameter in model.head.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def done(number: float) -> Future[torch.Tensor]:
    future: Future[torch.Tensor] = Future()
    future.set_result(torch.tensor([number]))
    return future


def test_a_thought_arrives_late_and_the_next_one_waits_for_it() -> None:
    thoughts = Thoughts(0.2, frame_seconds=0.1)
    acted_on = []
    for step in range(7):
        now = 0.1 * step
        if thoughts.is_free(now):
            thoughts.begin(done(step), now)
        output, age = thoughts.newest(now)
        acted_on.append((float(output), round(age, 6)))
    # the first is waited for; that of step 2 arrives at step 4, that of step 4 at step 6
    assert acted_on == [(0, 0), (0, 1), (0, 2), (0, 3), (2, 2), (2, 3), (4, 2)]
    instant = Thoughts(0.0, frame_seconds=0.1)
    for step in range(3):
        assert instant.is_free(step)
        instant.begin(done(step), step)
        assert instant.newest(step) == (torch.tensor([float(step)]), 0)


def test_a_step_before_is_the_one_of_each_sample() -> None:
    model = make_fast()
    context = make_context(model, make_batch(model.config, size=3))
    ages = torch.tensor([0, 2, 1])
    before = step_before(context, ages)
    for row, age in enumerate(ages.tolist()):
        assert torch.equal(before.codes["static"][row, 0], context.codes["static"][row, 2 - age])
        assert context.states is not None and before.states is not None
        assert torch.equal(before.states[row, 0], context.states[row, 2 - age])
    only_newest = torch.tensor([[False, False, True]]).expand(3, -1)
    assert not random_ages(replace(context, frame_mask=only_newest)).any()
    drawn = torch.cat([random_ages(context) for _ in range(50)])
    assert set(drawn.tolist()) == {0, 1, 2}


def test_it_acts_on_the_newest_image_the_thought_and_its_age() -> None:
    model = make_fast()
    context = make_context(model, make_batch(model.config))
    with torch.no_grad():
        thought = model.think(step_before(context, torch.full((3,), 2)))
        act = lambda context, thought: model.act(context, thought=thought)  # noqa: E731
        first = act(context, thought)
        older = {name: torch.cat((codes[:, :2].flip(1), codes[:, 2:]), 1) for name, codes in context.codes.items()}
        newer = {name: (codes + (torch.arange(3) == 2)[:, None]) % 20 for name, codes in context.codes.items()}
        assert torch.equal(act(replace(context, codes=older), thought), first)
        assert not torch.allclose(act(replace(context, codes=newer), thought), first)
        assert not torch.allclose(act(context, replace(thought, output=thought.output + 1)), first)
        assert not torch.allclose(act(context, replace(thought, age=thought.age + 2)), first)
        fresh = model.think(step_before(context, torch.zeros(3, dtype=torch.long)))
        torch.testing.assert_close(act(context, fresh), model.act(context))


def test_in_training_thoughts_have_random_ages(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_fast().train()
    ages: list[float] = []
    condition = model.head.velocity.condition  # type: ignore[union-attr,operator]

    def watch(seen: object) -> torch.Tensor:
        ages.extend(seen.age.tolist())  # type: ignore[attr-defined]
        return condition(seen)  # type: ignore[no-any-return,operator]

    monkeypatch.setattr(model.head.velocity, "condition", watch)
    batch = make_batch(model.config, size=8)
    for _ in range(4):
        training_losses(model, batch, with_actions=True, with_frames=False)["action_loss"].backward()
    assert set(ages) == {0.0, 1.0, 2.0}
    assert model.gpt.blocks[0].attention.qkv.weight.grad is not None  # type: ignore[union-attr]


def make_policy(model: WorldModel, latency: float | None) -> GR2Policy:
    return GR2Policy(
        model, encode_images=lambda images: (images.reshape(len(images), -1)[:, ::3] % 20).astype(np.int64),
        encode_text=lambda texts: (np.zeros((len(texts), 2, 12), np.float32), np.ones((len(texts), 2), bool)),
        control_hz=30.0, executed_steps=2, latency=latency, frame_step=5,
    )  # fmt: skip


def see(number: int, now: float) -> Observation:
    rng = np.random.default_rng(number)
    return Observation(
        images={"static": rng.integers(0, 255, (4, 6, 3), np.uint8)}, tool_position=np.zeros(3), time=now,
        tool_quaternion=np.array([0.0, 0.0, 0.0, 1.0]), joint_positions=np.zeros(7), instruction="go",
    )  # fmt: skip


def test_a_policy_thinks_beside_acting() -> None:
    model = make_fast()
    slow, instant, threaded = (make_policy(model, latency) for latency in (0.2, 0.0, None))
    assert slow.chunk_latency == 0.0 and asking_period(2, slow.chunk_latency, 30.0) == 2  # chunks are not late
    first = [policy.act(see(0, 0.0)).positions for policy in (slow, instant, threaded)]
    assert np.array_equal(first[0], first[1]) and np.allclose(first[0], first[2])
    second = [policy.act(see(1, 0.1)).positions for policy in (slow, instant)]
    assert not np.allclose(*second)  # one acts on the first thought still
    for _ in range(100):  # in the thread the second thought arrives when it is done
        threaded.act(see(1, 0.1))
        assert threaded.thoughts is not None
        if threaded.thoughts.newest(0.1)[1] == 0.0:
            break
        time.sleep(0.01)
    assert np.allclose(threaded.act(see(1, 0.1)).positions, second[1])
    slow.reset()
    assert np.array_equal(slow.act(see(0, 0.0)).positions, first[0])
