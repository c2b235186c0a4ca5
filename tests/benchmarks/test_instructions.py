"""Instructions: every task has its own, and evaluation has some that no demonstration has."""

from __future__ import annotations

from contextlib import closing
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml

from gr2.benchmarks.calvin.evaluate import evaluate
from gr2.benchmarks.calvin.suite import EvaluationConfig
from gr2.benchmarks.demonstrations.record import record
from gr2.benchmarks.playtable.instructions import (
    Wording,
    evaluation_instructions,
    held_out_instruction,
    instructions_of,
    sample_instruction,
    training_annotations,
)
from gr2.benchmarks.playtable.tasks import ALL_TASKS
from gr2.errors import ConfigError


def test_no_instruction_names_two_tasks() -> None:
    all_of = {name: {*instructions_of(name), held_out_instruction(name)} for name in ALL_TASKS}
    assert not [(a, b) for a, b in combinations(ALL_TASKS, 2) if all_of[a] & all_of[b]]


def test_held_out_instructions_are_new_sentences_of_known_words() -> None:
    rng = np.random.default_rng(0)
    words = {word for name in ALL_TASKS for text in instructions_of(name) for word in text.split()}
    for name in ALL_TASKS:
        demonstrated = {sample_instruction(name, rng) for _ in range(100)}
        assert demonstrated == set(instructions_of(name)) and held_out_instruction(name) not in demonstrated
        assert set(held_out_instruction(name).split()) <= words


def test_evaluation_takes_either_wording(tmp_path: Path) -> None:
    assert evaluation_instructions()["open_drawer"] == "open the drawer"
    assert evaluation_instructions(wording="held-out")["push_red_block_left"] == "move the red block towards the left"
    with pytest.raises(ConfigError, match="held out already"):
        evaluate(out=tmp_path / "out", wording="held-out", calvin_root=tmp_path)
    assert not (tmp_path / "out").exists()


def test_demonstrations_beside_a_clone_speak_calvins_training_annotations(tmp_path: Path) -> None:
    folder = tmp_path / "calvin_models" / "conf" / "annotations"
    folder.mkdir(parents=True)
    texts = {task: [f"{task} {i}" for i in range(3)] for task in ALL_TASKS}
    (folder / "new_playtable.yaml").write_text(yaml.safe_dump(texts))
    (folder / "new_playtable_validation.yaml").write_text(yaml.safe_dump({t: [f"held out {t}"] for t in ALL_TASKS}))
    annotations, rng = training_annotations(tmp_path), np.random.default_rng(0)
    assert {sample_instruction("open_drawer", rng, annotations) for _ in range(40)} == set(texts["open_drawer"])
    assert evaluation_instructions(tmp_path)["open_drawer"] == "held out open_drawer"
    for broken in ({**texts, "open_drawer": []}, {**texts, "open_drawer": "open it"}, {"open_drawer": ["open it"]}):
        training_annotations.cache_clear()
        (folder / "new_playtable.yaml").write_text(yaml.safe_dump(broken))
        with pytest.raises(ConfigError, match="clone mees/calvin whole"):
            record(out=tmp_path / "out", calvin_root=tmp_path, chains=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("wording", "text"), [("trained", "open the drawer"), ("held-out", "move the drawer out")])
def test_a_suite_speaks_in_the_wording_of_its_evaluation(wording: Wording, text: str) -> None:
    config = EvaluationConfig(
        policy="scripted", weights="", scene="D", calvin_root="", executed_steps=5, max_steps=10, image_px=64,
        renderer="tiny", fast_drawing=False, backend="gr2", seed=0, wording=wording,
    )  # fmt: skip
    with closing(config.open_suite()) as suite:
        assert suite.instruction("open_drawer") == text
