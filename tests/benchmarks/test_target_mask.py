"""The camera that shows what a task is about: drawn, recorded, trained with, and shown to a policy that sees it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from gr2.benchmarks.calvin.episodes import task_start
from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.playtable.cameras import static_pixels
from gr2.benchmarks.playtable.environment import CAMERAS, PlayTable
from gr2.benchmarks.playtable.targets import TARGET_MASK, target_parts
from gr2.benchmarks.simulation.fit import show_what_it_sees
from gr2.cvae_head.kinds import HeadOptions
from gr2.data_pipeline.curation.ingest import write_video_shards
from gr2.data_pipeline.store.episodes import list_episodes, read_episode
from gr2.errors import ConfigError
from gr2.gr_model.act.loading import load_policy
from gr2.gr_model.train.options import FinetuneOptions
from gr2.gr_model.train.stages import finetune
from gr2.gr_model.train.tokenizer_stages import tokens

pytestmark = pytest.mark.usefixtures("workers_at_once")


def test_the_mask_shows_the_part_that_is_named() -> None:
    with closing(PlayTable("D", render_mode=None)) as env:
        assert not env.draw(TARGET_MASK, px=64).any()  # no task was begun
        task_start(env, "lift_red_block_table", 0, 0)
        env.begin("lift_red_block_table")
        image = env.draw(TARGET_MASK, px=64)
        assert image.shape == (64, 64, 3) and set(np.unique(image)) == {0, 255}
        rows, columns = np.nonzero(image[..., 0])
        place = static_pixels(env.world_state().blocks["red"][0], px=64)
        assert np.abs(np.array([columns.mean(), rows.mean()]) - place).max() < 3
        covered = {}
        for task in ("open_drawer", "turn_on_led", "turn_on_lightbulb", "move_slider_left", "stack_block"):
            env.begin(task)
            covered[task] = env.draw(TARGET_MASK, px=64)[..., 0] > 0
            assert (covered[task].any() and not (covered[task] & (image[..., 0] > 0)).any()) or task == "stack_block"
        assert covered["stack_block"][rows, columns].all()  # any block may be the one
        start = env.world_state()
        assert target_parts("place_in_drawer", start) == [("table", "drawer_link")]
        assert len(target_parts("push_into_drawer", start)) >= 1


def test_a_policy_that_was_trained_with_the_mask_is_shown_it(tmp_path: Path) -> None:
    common = {"scenes": "D", "chains": 2, "num_workers": 1, "play_share": 0.0}
    record(out=tmp_path / "record", target_mask=True, **common)
    record(out=tmp_path / "plain", **common)
    for one, other in zip(list_episodes(tmp_path / "record"), list_episodes(tmp_path / "plain"), strict=True):
        masked, plain = read_episode(one), read_episode(other)
        assert list(masked.images) == [*CAMERAS, TARGET_MASK] and list(plain.images) == list(CAMERAS)
        assert np.array_equal(masked.actions, plain.actions)
        assert masked.images[TARGET_MASK].max() > 200 and masked.images[TARGET_MASK].mean() < 60
    write_video_shards(source=tmp_path / "record", out=tmp_path / "shards", num_workers=1)
    tokens(shards=tmp_path / "shards", out=tmp_path / "tokens")
    small = {"steps": 2, "batch_size": 4, "threads": 1, "frame_fraction": 0.0}
    finetune(FinetuneOptions(tokens=[str(tmp_path / "tokens")], out=tmp_path / "policy",
                             head=HeadOptions(kind="flow"), **small))  # fmt: skip
    policy = load_policy(tmp_path / "policy")
    assert policy.cameras == [*CAMERAS, TARGET_MASK]
    with closing(PlayTable("D", render_mode=None)) as env:
        show_what_it_sees(policy, env)
        task_start(env, "open_drawer", 0, 0)
        env.begin("open_drawer")
        assert list(env.observe("open the drawer").images) == [*CAMERAS, TARGET_MASK]
    evaluate(policy=str(tmp_path / "policy"), out=tmp_path / "act", sequences=0, starts=1, tasks="open_drawer",
             max_steps=6, num_workers=1)  # fmt: skip
    with pytest.raises(ConfigError, match="CALVIN's layout has no place"):
        record(out=tmp_path / "calvin", layout="calvin", target_mask=True, **common)
