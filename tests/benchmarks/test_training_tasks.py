"""What a policy was trained on, the words it does not know, and the ceiling that this sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from gr2.benchmarks.calvin.sequences import official_sequences
from gr2.benchmarks.calvin.training_tasks import ceiling, training_of, wordings
from gr2.benchmarks.playtable.instructions import evaluation_instructions, held_out_instruction, instructions_of
from gr2.benchmarks.playtable.tasks import ALL_TASKS, TASKS
from gr2.benchmarks.simulation.training_tasks import tasks_of, training_lines
from gr2.gr_model.model.release import release_folder


def test_the_ceiling_of_all_tasks_is_five_and_of_seventeen_the_known_one() -> None:
    sequences = official_sequences()
    assert ceiling(list(ALL_TASKS), sequences) == 5.0
    assert ceiling([], sequences) == 0.0
    assert ceiling(list(TASKS), sequences) == pytest.approx(1.69, abs=0.01)


def test_tasks_are_found_by_any_of_their_instructions() -> None:
    instructions = evaluation_instructions()
    names = ["open_drawer", "push_red_block_left", "turn_on_led"]
    stated = [
        instructions_of(names[0])[2],
        held_out_instruction(names[1]).upper(),
        f" {instructions[names[2]]} ",
        "dance",
    ]
    assert tasks_of(stated, wordings(instructions)) == [name for name in ALL_TASKS if name in names]


def write_release(folder: Path, instructions: list[str] | None) -> str:
    record = json.loads((release_folder("pretrained") / "config.json").read_text())
    record["provenance"]["instructions"] = instructions
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(record))
    return str(folder)


def test_a_release_states_what_it_was_trained_on(tmp_path: Path) -> None:
    instructions = evaluation_instructions() | {"open_drawer": "pull the handle to open the drawer"}
    policy = write_release(tmp_path / "policy", ["open the drawer", "close the drawer"])
    found = training_of(policy, instructions, official_sequences()[:100])
    assert found is not None and found["tasks"] == ["open_drawer", "close_drawer"] and len(found["untrained"]) == 32
    assert found["unknown_words"]["pull the handle to open the drawer"] == ["handle"]
    lines = list(training_lines(found))
    assert lines[0].startswith("trained on 2 of 34 tasks; not on ")
    assert lines[1] == f"with all of these and no other, the average length would be {found['ceiling']:.2f}"
    assert "the text encoder does not know handle in 'pull the handle to open the drawer'" in lines


def test_what_nobody_states_is_not_claimed(tmp_path: Path) -> None:
    instructions = evaluation_instructions()
    found = training_of(write_release(tmp_path / "policy", None), instructions, official_sequences()[:5])
    assert found is not None and found["tasks"] is None and found["ceiling"] is None
    for policy in ("scripted", "http://127.0.0.1:1", "a.py:Class"):
        assert training_of(policy, instructions) is None
    assert list(training_lines(None)) == []


def test_instructions_in_words_of_their_own_may_ask_for_any_task(tmp_path: Path) -> None:
    instructions = evaluation_instructions()
    policy = write_release(tmp_path / "policy", ["open the drawer", "tug at the drawer", "go push the red one"])
    found = training_of(policy, instructions, official_sequences()[:5])
    assert found is not None and found["other_texts"] == 2 and found["ceiling"] is None
    (line,) = training_lines(found)
    assert line.startswith("trained on 1 of 34 tasks at least; 2 of its instructions are in words of its own")
    folder = tmp_path / "calvin_models" / "conf" / "annotations"
    folder.mkdir(parents=True)
    texts = {task: [f"please {instructions_of(task)[0]}"] for task in ALL_TASKS} | {
        "open_drawer": ["tug at the drawer"]
    }
    (folder / "new_playtable.yaml").write_text(yaml.safe_dump(texts))
    beside = training_of(policy, instructions, official_sequences()[:5], tmp_path)
    assert beside is not None and beside["tasks"] == ["open_drawer"] and beside["other_texts"] == 1
    assert training_of(policy, instructions, (), tmp_path / "nowhere") is not None
