"""Every option of every command, found by introspection, takes any value of its type: done, or refused in a sentence.

Each command is kept from its work by an input that is not there, so that only reading options and inputs is tested.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
from argparse import Action
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gr2.cli import main as command_line
from gr2.cli.failures import UsageError
from gr2.cli.main import COMMANDS, Command, main
from gr2.cli.ranges import check_numbers

NUMBERS = ("-1", "0", "-9223372036854775809", "1" + 21 * "0", "1e400", "nan", "-inf", "", "x", "1.5", "[1]", "null")
WORDS = ("", "[", "{", "nul: [", "-5", "*", "ftp://x/y", "a\udcffb", 300 * "a")
LISTS = ("[]", "[[]]", "{}", "[null]", "[-1]", '["x"]', '[""]', "[nan]")
GROUPS = ("", "{}", "[]", "x", '{"nope": 1}', "@binary", "@deep")
FILES = (
    "@missing",
    "@binary",
    "@empty",
    "@deep",
    "@folder",
    "@below",
    "@closed",
    "~nobody_here/x",
    5000 * "a",
    "a\udcff",
)

STOPS: dict[str, dict[str, str]] = {
    "demo": {"out": "@below", "videos": "@missing/videos"},
    "doctor": {"plan": "true", "gpu": "nothing"},
    "data record": {"out": "@below", "tasks": "nothing"},
    "data inspect": {"source": "@missing"},
    "data statistics": {"source": "@missing"},
    "data shards": {"source": "@missing", "out": "@below"},
    "data curate": {"shards": "@missing", "out": "@below"},
    "data caption": {"shards": "@missing", "out": "@below", "model": "x", "endpoint": "http://127.0.0.1:9"},
    "data tokens": {"shards": "@missing", "out": "@below"},
    "data push": {"shards": "@missing", "to": "nobody here/no name"},
    "push": {"release": "@missing", "to": "nobody here/no name"},
    "data export": {"source": "@missing", "out": "@below"},
    "view": {"source": "@missing", "policy": "@missing", "out": "@below"},
    "data report": {"folder": "@missing"},
    "caption train": {"shards": "@missing", "out": "@below", "language_model": "@missing"},
    "tokenizer train": {"shards": "@missing", "out": "@below"},
    "text train": {"shards": "@missing", "out": "@below"},
    "pretrain": {"tokens": '["@missing"]', "out": "@below"},
    "finetune": {"tokens": '["@missing"]', "out": "@below"},
    "improve": {"policy": "@missing", "tokens": '["@missing"]', "out": "@below"},
    "imagine": {"policy": "@missing", "out": "@below"},
    "rollout": {"policy": "@missing", "video": "@below/a.mp4"},
    "serve": {"policy": "@missing", "port": "0", "host": "192.0.2.1"},
    "benchmark actions": {"policy": "@missing", "tokens": '["@missing"]'},
    "benchmark claims": {"out": "@below", "claims": "nothing"},
    "benchmark policies": {"tokens": '["@missing"]', "out": "@below", "policies": "nothing"},
    "benchmark calvin": {"policy": "@missing", "out": "@below"},
    "benchmark metaworld": {"policy": "@missing", "out": "@below"},
    "benchmark libero": {"policy": "@missing", "out": "@below"},
    "benchmark calvin verify": {"folder": "@missing"},
    "benchmark calvin images": {"calvin_root": "@missing", "image": "@below/a.png"},
    "benchmark calvin speed": {"calvin_root": "@missing", "num_workers": "0"},
    "benchmark data": {"videos": "@missing", "rounds": "0"},
    "benchmark speed": {"policy": "@missing", "tokens": "@missing", "only": "nothing"},
    "benchmark video": {"policy": "@missing", "tokens": "@missing"},
    "benchmark wbc": {"files": '["@missing"]', "only": "nothing"},
    "benchmark wbc pick": {"trials": "0", "num_workers": "0"},
    "wbc track": {"file": "@missing", "case": "nothing"},
    "report": {"run": "@missing"},
}
"""Options that keep a command from its work: two of them where an option under test takes the place of one."""


def values_of(action: Action) -> tuple[str, ...]:
    """Return values to try for an option, by the types in its annotation."""
    kind = str(getattr(action, "_typehint", None) or action.type)
    if action.dest == "config":
        return FILES
    found: list[str] = []
    for words, values in (
        (("int", "float", "bool"), NUMBERS),
        (("Path",), FILES),
        (("str",), (*WORDS, "@binary", "@folder")),
        (("Literal",), ("", "nope", "[]")),
        (("list",), LISTS),
        (("dict",), ("{}", '{"": ""}', '{"static": "@binary"}')),
    ):
        if any(word in kind for word in words):
            found += values
    return tuple(dict.fromkeys(found or GROUPS))


@dataclass(frozen=True)
class Places:
    """Files and folders that stand for the words with an @."""

    root: Path

    def fill(self, value: str) -> str:
        """Put paths in the place of the words."""
        for name in ("missing", "binary", "empty", "deep", "folder", "closed"):
            value = value.replace(f"@{name}", str(self.root / name))
        return value.replace("@below", str(self.root / "binary" / "below"))


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """Import what commands import, so that no time limit ends within an import."""
    for name in ("torch", "lightning", "open_clip", "pybullet", "taming.modules.diffusionmodules.model"):
        pytest.importorskip(name, exc_type=ImportError)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("values")
    (root / "binary").write_bytes(bytes(range(255, 0, -1)) * 16)
    (root / "empty").touch()
    (root / "deep").write_text(1500 * "[")
    (root / "folder").mkdir()
    (root / "closed").mkdir(mode=0o500)
    return Places(root)


class TooLong(BaseException):
    """A command began its work although it was to be kept from it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(argv: list[str], seconds: float) -> str:
    """Run a command; return what is wrong with how it ends, nothing where it is done or refused in a sentence."""
    out, err = io.StringIO(), io.StringIO()
    status: object
    try:
        with time_limit(seconds), redirect_stdout(out), redirect_stderr(err):
            status = main(argv)
    except SystemExit as stop:
        status = stop.code or 0
    except TooLong:
        return f"still at work after {seconds} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    sentences = [line for line in err.getvalue().splitlines() if line.startswith("gr2: ")]
    if "Traceback" in err.getvalue():
        return "printed a traceback"
    if status == 0:
        return ""
    return "" if len(sentences) == 1 and len(sentences[0]) < 2000 else f"{len(sentences)} sentences: {sentences[:1]}"


def cases(command: Command, places: Places, most: int | None = None) -> Iterator[list[str]]:
    """Yield command lines: each option with each value, beside what keeps the command from its work.

    most: values of each option, other ones for the same option of another command; None takes all.
    """
    for action in command_line.build_parser(command, command.target())._actions:
        if action.dest in ("help", "print_config"):
            continue
        values = values_of(action)
        chosen = random.Random(f"{command.words} {action.dest}").sample(values, min(most or len(values), len(values)))
        for value in chosen:
            words = {**STOPS[command.words], action.dest: value}
            yield [*command.words.split(), *(f"--{name}={places.fill(text)}" for name, text in words.items())]


def shortened(argv: list[str]) -> str:
    return json.dumps([word if len(word) < 120 else f"{word[:100]}..." for word in argv])


def check(command: Command, places: Places, most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.words in STOPS, f"state in STOPS which inputs keep `gr2 {command.words}` from its work"
    parser = command_line.build_parser(command, command.target())
    monkeypatch.setattr(command_line, "build_parser", lambda *_: parser)
    here = places.root / "here"
    here.mkdir(exist_ok=True)
    monkeypatch.chdir(here)
    found = ((argv, outcome(argv, 60.0)) for argv in cases(command, places, most))
    wrong = [f"{shortened(argv)}: {problem}" for argv, problem in found if problem]
    assert not wrong, "\n".join(wrong)
    assert not os.listdir(here), f"a refused command left {os.listdir(here)}"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_a_value_of_an_option_is_used_or_refused_in_a_sentence(
    command: Command, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(command, places, 2, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.words)
def test_any_value_of_an_option_is_used_or_refused_in_a_sentence(
    command: Command, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(command, places, None, monkeypatch)


def test_zero_stands_for_several_image_sizes_where_there_is_no_default() -> None:
    check_numbers({"image_size": 0}, {"image_size": None})
    with pytest.raises(UsageError, match="--image-size: expected 1 or more, up to"):
        check_numbers({"image_size": 0}, {"image_size": 64})
    with pytest.raises(UsageError, match="--image-size: expected 0 or more, got -1"):
        check_numbers({"image_size": -1}, {"image_size": None})
