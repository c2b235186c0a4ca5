"""The command line: light to start, exact about what it accepts, one sentence for what a user can fix."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from gr2.cli.main import COMMANDS, Command, build_parser, main, without_secrets
from gr2.errors import DataError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Stand-in for a configuration dataclass.

    Args:
        rate: Learning rate.
    """

    rate: float = 1e-3


calls: list[dict[str, object]] = []


def train(
    *,
    out: Path = Path("runs/a"),
    preset: Literal["tiny", "small"] = "tiny",
    steps: int = 3,
    limit: float | None = None,
    optimizer: OptimizerConfig = OptimizerConfig(),
    compile: bool = False,
) -> Path:
    """Pretend to train.

    Args:
        out: Folder of the run.
        preset: Size of the model.
        steps: Number of optimizer steps.
        limit: Longest run [s].
        optimizer: Optimizer options.
        compile: Compile the model.
    """
    calls.append({"out": out, "preset": preset, "steps": steps, "optimizer": optimizer, "compile": compile})
    return out


def status_of(*, status: int = 0) -> int:
    """Return a status.

    Args:
        status: What to return.
    """
    return status


def failing(error: BaseException) -> Command:
    def fail() -> int:
        raise error

    return Command(words="fail", target=lambda: fail, group="tests")


STAND_INS = (
    Command(words="train", target=lambda: train, group="tests"),
    Command(words="data count", target=lambda: status_of, group="tests"),
    Command(words="data clean", target=lambda: status_of, group="tests"),
)


def run_gr2(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gr2", *argv],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture(autouse=True)
def _forget_calls():
    calls.clear()


def test_help_lists_every_command_and_loads_nothing_heavy():
    done = run_gr2("--help")
    assert done.returncode == 0
    assert all(command.words in done.stdout and command.summary in done.stdout for command in COMMANDS)
    loaded = {line.split("|")[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "gr2" in loaded
    assert not loaded & {"torch", "numpy", "lightning", "jsonargparse", "scipy", "av", "decord", "pybullet"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.words)
def test_options_of_a_real_command_are_typed_and_described(command):
    try:
        target = command.target()
    except ImportError as error:
        if not (error.name or "").startswith("gr2."):
            raise
        pytest.skip(f"{command.words}: its module is missing ({error})")
    parser = build_parser(command, target)
    shown = parser.format_help()
    assert "--config" in shown
    assert "<class" not in shown
    undescribed = [action.dest for action in parser._actions if not action.help and action.dest != "help"]
    assert not undescribed, f"{command.words}: describe {undescribed} under Args in the docstring"


def test_options_reach_the_target_with_their_types(capsys):
    argv = ["train", "--steps", "7", "--optimizer.rate", "0.5", "--compile", "--out", "runs/b"]
    assert main(argv, STAND_INS) == 0
    assert calls == [
        {
            "out": Path("runs/b"),
            "preset": "tiny",
            "steps": 7,
            "optimizer": OptimizerConfig(rate=0.5),
            "compile": True,
        }
    ]
    assert capsys.readouterr().out == "runs/b\n"


def test_printed_configuration_read_back_gives_the_same_call(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--steps", "9", "--preset", "small", "--print_config"], STAND_INS)
    assert stop.value.code in (0, None)
    assert calls == []
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--config", str(tmp_path / "config.yaml")], STAND_INS) == 0
    assert (calls[0]["steps"], calls[0]["preset"]) == (9, "small")
    assert main(["train", "--config", str(tmp_path / "config.yaml"), "--steps", "4"], STAND_INS) == 0
    assert (calls[1]["steps"], calls[1]["preset"]) == (4, "small")


@pytest.mark.parametrize("status", [0, 1, 3])
def test_integer_result_is_the_exit_status(status):
    assert main(["data", "count", "--status", str(status)], STAND_INS) == status


def test_help_and_errors_spell_options_with_hyphens(capsys):
    def act(*, max_steps: int = 1, num_workers: int = 1) -> None:
        """Act.

        Args:
            max_steps: A number.
            num_workers: A number.
        """

    command = Command(words="act", target=lambda: act, group="tests")
    with pytest.raises(SystemExit):
        main(["act", "--help"], (command,))
    shown = capsys.readouterr().out
    assert "--max-steps MAX_STEPS" in shown and "--print-config" in shown and "--max_steps" not in shown
    assert main(["act", "--max_stepps", "3"], (command,)) == 2
    assert "unknown option '--max-stepps'; did you mean '--max-steps'?" in capsys.readouterr().err
    assert main(["act", "--max_steps", "many"], (command,)) == 2
    assert "--max-steps: Expected a int" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["demo", "--workers", "2"], "--workers is now --num-workers."),
        (["data", "record", "--workers=2"], "--workers is now --num-workers."),
        (["data", "record", "--image_px", "64"], "--image-px is now --image-size."),
        (["imagine", "--scene-name", "D"], "--scene-name is now --scene."),
        (["rollout", "--scene_name", "D", "--pretrained"], "--scene-name is now --scene."),
        (["benchmark", "calvin", "--image-px=0"], "--image-px is now --image-size."),
        (["benchmark", "calvin", "speed", "--out", "a.json"], "--out is now --json."),
        (["benchmark", "data", "--out", "a.json"], "--out is now --json."),
        (["rollout", "--pretrained", "--out", "a.mp4"], "--out is now --video."),
        (["benchmark", "calvin", "images", "--out", "a.png"], "--out is now --image."),
        (["report", "--run", "runs/demo", "--out", "a.html"], "--out is now --html."),
        (["benchmark", "wbc", "pick", "--workers", "1"], "--workers is now --num-workers."),
        (["benchmark", "calvin", "--films", "failed"], "--films is now --videos."),
        (["pretrain", "--model.code-renaming", "0.5"], "--model.code-renaming is now --model.code-permutation."),
        (["benchmark", "calvin", "pictures"], "gr2 benchmark calvin pictures is now gr2 benchmark calvin images."),
        (["benchmark", "wbc-pick", "--trials", "1"], "gr2 benchmark wbc-pick is now gr2 benchmark wbc pick."),
    ],
)
def test_old_spellings_get_one_hint_and_status_2(argv, message, capsys):
    assert main(argv) == 2
    assert capsys.readouterr().err == f"gr2: {message}\n"


def test_an_old_key_in_the_configuration_file_gets_the_hint(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("workers: 3\n")
    assert main(["demo", "--config", str(tmp_path / "config.yaml")]) == 2
    assert "'workers' in the configuration file is now 'num_workers'." in capsys.readouterr().err


def test_every_command_spells_alike():
    """Guard the words: one name for one idea, over all commands."""
    import inspect

    old = {"workers", "scene_name", "image_px"}
    for command in COMMANDS:
        names = set(inspect.signature(command.target()).parameters)
        assert not names & old, f"{command.words}: {names & old}"


def test_hyphens_in_options_are_underscores():
    def act(*, max_steps: int = 1, calvin_root: str = "", fast_drawing: bool = False) -> None:
        """Note what came.

        Args:
            max_steps: A number.
            calvin_root: A folder.
            fast_drawing: A switch.
        """
        calls.append({"max_steps": max_steps, "calvin_root": calvin_root, "fast_drawing": fast_drawing})

    command = Command(words="act", target=lambda: act, group="tests")
    assert main(["act", "--max-steps=7", "--calvin-root", "a-b/c-d", "--fast-drawing"], (command,)) == 0
    assert calls == [{"max_steps": 7, "calvin_root": "a-b/c-d", "fast_drawing": True}]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian': did you mean 'train'?"),
        (["data", "cuont"], "unknown command 'data cuont': did you mean 'data count'?"),
        (["data"], "gr2 data needs one more word: data count, data clean."),
        (["train", "--stepps", "3"], "unknown option '--stepps'; did you mean '--steps'?"),
        (["train", "--step", "3"], "unknown option '--step'; did you mean '--steps'?"),
        (
            ["train", "--optimizer.rat=3"],
            "unknown option '--optimizer.rat'; did you mean '--optimizer.rate'?",
        ),
        (["train", "--preset", "tinny"], "--preset cannot be 'tinny'; did you mean 'tiny'?"),
        (["train", "--steps", "many"], "--steps: Expected a int. Got value: many"),
        (["train", "--limit", "long"], "--limit cannot be 'long'; expected float or null."),
        (["train", "extra"], "unexpected argument 'extra'"),
        (["train", "--config", "absent.yaml"], "absent.yaml"),
    ],
)
def test_misspelt_words_get_one_sentence_and_status_2(argv, message, capsys):
    assert main(argv, STAND_INS) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert calls == []


def test_unknown_key_in_the_configuration_file_is_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("stepss: 3\n")
    assert main(["train", "--config", str(tmp_path / "config.yaml")], STAND_INS) == 2
    assert "unknown option 'stepss' in the configuration file; did you mean 'steps'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (
            DataError("shards: expected 3, got 2;\n  record again."),
            1,
            "shards: expected 3, got 2; record again.",
        ),
        (KeyboardInterrupt(), 130, "stopped by the keyboard."),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 1, "permission denied for '/root/x'"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            1,
            "no space left on the disk of '/tmp/x'",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "a.tar"),
            1,
            "no such file or directory: 'a.tar'",
        ),
        (
            ModuleNotFoundError("No module named 'pybullet'", name="pybullet"),
            1,
            "'pybullet' is not installed",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), 1, "no CUDA device can be used"),
        (MemoryError(), 1, "out of memory"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_user_can_fix_is_one_sentence_without_traceback(error, status, message, capsys, monkeypatch):
    monkeypatch.delenv("GR2_DEBUG", raising=False)
    assert main(["fail"], (failing(error),)) == status
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    with pytest.raises(type(error)):
        main(["fail", "--debug"], (failing(error),))
    monkeypatch.setenv("GR2_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["fail"], (failing(error),))


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        main(["fail"], (failing(ZeroDivisionError()),))


FLOOD = """
import sys
import time
from gr2.cli.main import Command, main

def flood() -> int:
    print("x\\n" * 1_000_000)
    return 0

sys.exit(main(["flood"], (Command(words="flood", target=lambda: flood, group="tests"),)))
"""


def test_a_reader_that_goes_away_ends_the_command_quietly():
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as flood:
        assert flood.stdout is not None and flood.stderr is not None
        assert flood.stdout.readline() == "x\n"
        flood.stdout.close()
        assert flood.stderr.read() == ""
        assert flood.wait(timeout=60) == 1


def test_the_first_word_may_stand_for_the_option_that_the_command_names(tmp_path, capsys):
    seen = []

    def look(*, folder: Path, deep: bool = False) -> int:
        seen.append((folder, deep))
        return 0

    commands = (Command(words="data deep look", target=lambda: look, group="tests", bare="folder"),)
    assert main(["data", "deep", "look", str(tmp_path), "--deep"], commands) == 0
    assert main(["data", "deep", "look", "--folder", str(tmp_path)], commands) == 0
    assert seen == [(tmp_path, True), (tmp_path, False)]


WORKER = """
import sys, time
from pathlib import Path
from gr2.cli.main import Command, main

def work(*, out: Path, seconds: float = 60.0) -> None:
    \"\"\"Work.

    Args:
        out: folder.
        seconds: how long [s].
    \"\"\"
    (out / "begun").touch()
    time.sleep(seconds)

sys.exit(main(sys.argv[1:], (Command(words="work", target=lambda: work, group="tests"),)))
"""


@pytest.fixture
def worker(tmp_path):
    """Return what starts `gr2 work` in a process of its own; all are killed afterwards."""
    started = []

    def start(*argv):
        process = subprocess.Popen([sys.executable, "-c", WORKER, "work", *argv], stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")


def test_a_second_process_on_a_folder_is_refused_until_the_first_is_gone(worker, tmp_path):
    out = tmp_path / "runs" / "a"
    first = worker("--out", str(out))
    wait_for(out / "begun")
    second = worker("--out", str(out))
    message = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert f"`gr2 work` (process {first.pid} on" in message and "choose another --out" in message
    assert "Traceback" not in message

    (out / f".half.json.{first.pid}.tmp").touch()
    first.kill()
    first.wait()
    third = worker("--out", str(out), "--seconds", "0.01")
    assert third.communicate(timeout=60)[1] == "" and third.returncode == 0
    assert [path.name for path in out.iterdir()] == ["begun"]


def test_a_command_that_is_refused_leaves_no_folder(tmp_path):
    def refuse(*, out: Path) -> None:
        """Refuse.

        Args:
            out: folder.
        """
        raise DataError("nothing to do.")

    command = Command(words="refuse", target=lambda: refuse, group="tests")
    assert main(["refuse", "--out", str(tmp_path / "runs" / "a")], (command,)) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "-5"], "--steps: expected 1 or more, got -5."),
        (["--steps", str(10**30)], "--steps: expected 1 or more, up to 2147483647, got 10000000... (31 digits)."),
        (["--limit", ".nan"], "--limit: expected a finite number, got nan."),
        (["--limit", "-1"], "--limit: expected 0 or more, got -1.0."),
        (["--optimizer.rate", "0"], "--optimizer.rate: expected a number above 0, got 0.0."),
        (["--out", ""], "--out: expected a file or folder, got nothing; leave the option out, or name one."),
    ],
)
def test_numbers_and_paths_that_no_option_can_hold_are_refused_before_the_work(argv, message, capsys):
    assert main(["train", *argv], STAND_INS) == 2
    assert capsys.readouterr().err == f"gr2: {message}\n"
    assert calls == []


def test_several_words_after_an_option_are_its_list():
    got: list[object] = []

    def take(*, tokens: list[str], shares: list[float] | None = None, name: str = "") -> None:
        """Take lists.

        Args:
            tokens: folders.
            shares: numbers.
            name: a word.
        """
        got.append((tokens, shares, name))

    commands = (Command(words="take", target=lambda: take, group="tests"),)
    for argv in (
        ["--tokens", "a", "b c", "--shares", "1", "0.5", "--name", "x"],
        ["--tokens", '["a", "b c"]', "--shares", "[1, 0.5]", "--name", "x"],
        ['--tokens=["a", "b c"]', "--shares=[1, 0.5]", "--name=x"],
    ):
        assert main(["take", *argv], commands) == 0
        assert got.pop() == (["a", "b c"], [1.0, 0.5], "x")
    assert main(["take", "--tokens", "a"], commands) == 0
    assert main(["take", "--tokens=a"], commands) == 0
    assert got == [(["a"], None, "")] * 2


def test_keys_are_not_printed():
    text = without_secrets("policy: pretrained\napi_key: abc def\nport: 8000\n")
    assert text == "policy: pretrained\napi_key: (hidden)\nport: 8000\n"
    assert without_secrets("api_key: ''\n") == "api_key: ''\n"
