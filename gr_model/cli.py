"""The command line `gr2`: find a command, build its parser, run it, print errors in one sentence."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .failures import UsageError, describe_failure, flatten_usage_error, plain_types, renamed_option, spelled
from .targets import Target, call, options_class

if TYPE_CHECKING:
    from argparse import Action
    from inspect import Parameter

    from jsonargparse import ArgumentParser


def _demo() -> Target:
    """Run the whole chain at laptop size and write the report."""
    from ..benchmarks.demo import demo

    return demo


def _data_record() -> Target:
    """Record scripted demonstrations in the simulator."""
    from ..benchmarks.demonstrations.record import record

    return record


def _data_inspect() -> Target:
    """Report what a dataset holds, what is broken, and what to fix."""
    from ..data_pipeline.inspection.inspect import inspect_source

    return inspect_source


def _data_statistics() -> Target:
    """Measure states and actions without touching video and report what looks wrong."""
    from ..data_pipeline.statistics.table import statistics

    return statistics


def _data_shards() -> Target:
    """Filter videos and episodes and write them as webdataset shards."""
    from ..data_pipeline.curation.ingest import write_video_shards

    return write_video_shards


def _data_curate() -> Target:
    """Cut clips at scene cuts and drop what teaches nothing, with a reason for each."""
    from ..data_pipeline.curation.curate import curate

    return curate


def _data_caption() -> Target:
    """Describe every clip with a vision-language model and keep the caption it had."""
    from ..data_pipeline.curation.caption import caption

    return caption


def _data_report() -> Target:
    """Write one HTML page about what was kept and dropped, with images of both."""
    from ..data_pipeline.curation.report_page import write_data_report

    return write_data_report


def _data_tokens() -> Target:
    """Encode the shards' images and texts into token shards."""
    from .train.tokenizer_stages import tokens

    return tokens


def _tokenizer_train() -> Target:
    """Train the VQGAN image tokenizer."""
    from .train.tokenizer_stages import train_tokenizer

    return train_tokenizer


def _text_train() -> Target:
    """Train the small CLIP text tower."""
    from .train.tokenizer_stages import train_text

    return train_text


def _pretrain() -> Target:
    """Train the GPT to predict future frames."""
    from .train.stages import pretrain

    return pretrain


def _finetune() -> Target:
    """Train frames and trajectories together on robot episodes."""
    from .train.stages import finetune

    return finetune


def _improve() -> Target:
    """Measure a policy, correct it where it fails, finetune it, over rounds."""
    from ..benchmarks.improve import improve

    return improve


def _imagine() -> Target:
    """Predict future frames of recorded episodes, an image or a video."""
    from ..benchmarks.imagine.run import imagine

    return imagine


def _rollout() -> Target:
    """Act in the simulator and measure success."""
    from ..benchmarks.rollout import rollout

    return rollout


def _serve() -> Target:
    """Answer observations with trajectories over HTTP."""
    from .act.serving import serve

    return serve


def _benchmark_actions() -> Target:
    """Measure predicted chunks on held-out episodes of any robot, beside holding still and the mean."""
    from ..benchmarks.actions.run import benchmark

    return benchmark


def _benchmark_calvin() -> Target:
    """Run the CALVIN chains and print average length with its interval."""
    from ..benchmarks.calvin.evaluate import evaluate

    return evaluate


def _benchmark_calvin_verify() -> Target:
    """Compare tasks, sequences and starts with recordings of the official CALVIN."""
    from ..benchmarks.calvin.verify import verify

    return verify


def _benchmark_calvin_images() -> Target:
    """Draw scenes A to D with each set of assets and renderer on one sheet."""
    from ..benchmarks.calvin.gallery import images

    return images


def _benchmark_calvin_speed() -> Target:
    """Time an evaluation beside CALVIN's own loop: physics, images, the whole."""
    from ..benchmarks.calvin.speed import speed

    return speed


def _benchmark_data() -> Target:
    """Time shards, decoding and curation beside webdataset and decord, and report who waits for whom."""
    from ..benchmarks.data.run import benchmark

    return benchmark


def _benchmark_speed() -> Target:
    """Time training, generation, the tokenizer and a control cycle beside HuggingFace, PyTorch and taming."""
    from ..benchmarks.speed.run import speed

    return speed


def _benchmark_video() -> Target:
    """Measure predicted video of held-out clips with intervals, beside copying the last frame and the mean frame."""
    from ..benchmarks.video.run import benchmark

    return benchmark


def _benchmark_wbc() -> Target:
    """Follow smooth, hard and noisy motions; print errors, limits, distances and times."""
    from ..benchmarks.wbc.run import benchmark

    return benchmark


def _benchmark_wbc_pick() -> Target:
    """Pick a block among obstacles in a simulator with dynamics; print success, limits, contacts."""
    from ..benchmarks.wbc.picking import benchmark

    return benchmark


def _wbc_track() -> Target:
    """Follow one motion and write a video and a page of plots."""
    from ..benchmarks.wbc.track import track

    return track


def _report() -> Target:
    """Write the HTML report of a run folder."""
    from ..benchmarks.report.page import write_report

    return write_report


def _doctor() -> Target:
    """Check this machine: packages, video codecs, renderer, GPU, disk."""
    from ..benchmarks.doctor import doctor

    return doctor


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A row of the command table.

    Args:
        words: What the user types after `gr2`.
        target: Import and return the function that does the work.
        group: Heading in the help.
        prints_options: Print the resolved options to stderr before the work begins.
        bare: The option that may be given first without its name, as in `gr2 data inspect PATH`; several values where
            it is a list.
    """

    words: str
    target: Callable[[], Target]
    group: str
    prints_options: bool = False
    bare: str = ""

    @property
    def summary(self) -> str:
        """Return the line that the help shows."""
        return (self.target.__doc__ or "").strip().partition("\n")[0]


COMMANDS = (
    Command(words="demo", target=_demo, group="start", prints_options=True),
    Command(words="doctor", target=_doctor, group="start"),
    Command(words="data record", target=_data_record, group="data", prints_options=True),
    Command(words="data inspect", target=_data_inspect, group="data", bare="source"),
    Command(words="data statistics", target=_data_statistics, group="data", bare="source"),
    Command(words="data shards", target=_data_shards, group="data", prints_options=True),
    Command(words="data curate", target=_data_curate, group="data", prints_options=True),
    Command(words="data caption", target=_data_caption, group="data", prints_options=True),
    Command(words="data tokens", target=_data_tokens, group="data", prints_options=True),
    Command(words="data report", target=_data_report, group="data", bare="folder"),
    Command(words="tokenizer train", target=_tokenizer_train, group="training", prints_options=True),
    Command(words="text train", target=_text_train, group="training", prints_options=True),
    Command(words="pretrain", target=_pretrain, group="training", prints_options=True),
    Command(words="finetune", target=_finetune, group="training", prints_options=True),
    Command(words="improve", target=_improve, group="training", prints_options=True),
    Command(words="imagine", target=_imagine, group="results", prints_options=True),
    Command(words="rollout", target=_rollout, group="results", prints_options=True),
    Command(words="serve", target=_serve, group="results", prints_options=True),
    Command(words="benchmark actions", target=_benchmark_actions, group="results"),
    Command(words="benchmark calvin", target=_benchmark_calvin, group="results", prints_options=True),
    Command(words="benchmark calvin verify", target=_benchmark_calvin_verify, group="results", bare="folder"),
    Command(words="benchmark calvin images", target=_benchmark_calvin_images, group="results"),
    Command(words="benchmark calvin speed", target=_benchmark_calvin_speed, group="results"),
    Command(words="benchmark data", target=_benchmark_data, group="results"),
    Command(words="benchmark speed", target=_benchmark_speed, group="results"),
    Command(words="benchmark video", target=_benchmark_video, group="results", prints_options=True),
    Command(words="benchmark wbc", target=_benchmark_wbc, group="results", bare="files"),
    Command(words="benchmark wbc pick", target=_benchmark_wbc_pick, group="results"),
    Command(words="wbc track", target=_wbc_track, group="results", bare="file"),
    Command(words="report", target=_report, group="results"),
)


RENAMED_COMMANDS = {"benchmark wbc-pick": "benchmark wbc pick", "benchmark calvin pictures": "benchmark calvin images"}
"""Old words of commands."""


def help_text(commands: Sequence[Command] = COMMANDS) -> str:
    """Return the list of commands under their headings."""
    lines = ["usage: gr2 COMMAND [--option value ...]", ""]
    width = max(len(command.words) for command in commands) + 2
    for group in dict.fromkeys(command.group for command in commands):
        lines.append(f"{group}:")
        lines += [f"  {c.words:<{width}}{c.summary}" for c in commands if c.group == group]
        lines.append("")
    lines += [
        "gr2 COMMAND --help lists options; --config FILE reads them from yaml, --print-config prints them.",
        "gr2 --version prints the version; --debug (or GR2_DEBUG=1) shows tracebacks.",
    ]
    return "\n".join(lines)


def find_command(argv: Sequence[str], commands: Sequence[Command] = COMMANDS) -> tuple[Command, list[str]]:
    """Return the command that `argv` begins with, and the remaining arguments.

    Raises:
        UsageError: No command has these words.
    """
    for num_words in (3, 2, 1):
        words = " ".join(argv[:num_words])
        if new := RENAMED_COMMANDS.get(words):
            raise UsageError(f"gr2 {words} is now gr2 {new}.")
        for command in commands:
            if command.words == words:
                return command, list(argv[num_words:])
    inside = [c.words for c in commands if c.words.split()[0] == argv[0]]
    typed = " ".join([argv[0], *[word for word in argv[1:2] if not word.startswith("-")]])
    if inside and typed == argv[0]:
        raise UsageError(f"gr2 {argv[0]} needs one more word: {', '.join(inside)}.")
    names = {c.words: c.words for c in commands}
    names |= {c.words.split()[-1]: c.words for c in commands if c.words.split()[-1] not in ("train", *names)}
    near = [names[n] for word in (typed, argv[0]) for n in difflib.get_close_matches(word, names, n=1)]
    hint = f"did you mean '{near[0]}'?" if near else "run `gr2 --help` for the list."
    raise UsageError(f"unknown command '{typed}': {hint}")


def build_parser(command: Command, target: Target) -> ArgumentParser:
    """Build the parser of one command from the signature and docstring of its target."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class PlainHelp(DefaultHelpFormatter):
        """Show types by their names and options with hyphens."""

        def _expand_help(self, action: Action) -> str:
            return plain_types(super()._expand_help(action))

        def format_help(self) -> str:
            """Return the help of all options."""
            return re.sub(r"(?<![\w-])--[a-z][\w.]*", lambda found: found[0].replace("_", "-"), super().format_help())

    parser = ArgumentParser(
        prog=f"gr2 {command.words}",
        description=command.summary,
        formatter_class=PlainHelp,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="Read options from a yaml file.")
    options = options_class(target)
    if options is None:
        parser.add_function_arguments(target, as_group=False, fail_untyped=True)
    else:
        parser.add_class_arguments(options, nested_key=None, as_group=False, fail_untyped=True)
    return parser


def _parameters(target: Target) -> Mapping[str, Parameter]:
    """Return the parameters that are options on the command line."""
    import inspect

    return inspect.signature(options_class(target) or target).parameters


def spell_options(argv: Sequence[str], target: Target) -> list[str]:
    """Return `argv` as the parser wants it: `--flag` alone is `--flag=true`, `--an-option` is `--an_option`."""
    argv = [_underscored(word) if word.startswith("--") else word for word in argv]
    flags = {f"--{p.name}" for p in _parameters(target).values() if p.annotation in (bool, "bool")}
    followers = [*argv[1:], "--"]
    alone = [word in flags and next_word.startswith("--") for word, next_word in zip(argv, followers, strict=False)]
    return [f"{word}=true" if flag else word for word, flag in zip(argv, alone, strict=True)]


def _name_bare(option: str, argv: Sequence[str], target: Target) -> list[str]:
    """Put the option's name before the word that `argv` begins with, before all such words where it is a list."""
    import itertools
    import json

    if not str(_parameters(target)[option].annotation).startswith("list["):
        return [f"--{option}", *argv]
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    return [f"--{option}={json.dumps(words)}", *argv[len(words) :]]


def _underscored(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Parse `argv`, call the target and return the exit status; print a path that it returns."""
    from argparse import ArgumentError

    target = command.target()
    parser = build_parser(command, target)
    names = [key for key in parser.get_defaults().keys() if key != "config"]  # noqa: SIM118 (a Namespace)
    if command.bare and argv and not argv[0].startswith("-"):
        argv = _name_bare(command.bare, argv, target)
    words = spell_options(argv, target)
    for word in words:
        name = word.removeprefix("--").partition("=")[0] if word.startswith("--") else ""
        if new := renamed_option(name, names):
            raise UsageError(f"{spelled(name)} is now {spelled(new)}.")
    try:
        parsed = parser.parse_args(words)
    except ArgumentError as error:
        raise UsageError(flatten_usage_error(str(error), names)) from error
    if command.prints_options:
        print(f"gr2 {command.words}\n{parser.dump(parsed).rstrip()}", file=sys.stderr)
    values = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    result = call(target, values)
    if isinstance(result, os.PathLike):
        print(os.fspath(result))
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run `gr2` and return its exit status: 0 done, 1 failed, 2 misused, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or os.environ.get("GR2_DEBUG", "0") not in ("", "0")
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(help_text(commands))
            return 0
        if arguments[0] == "--version":
            from importlib.metadata import version

            print(f"gr2 {version('gr2')}")
            return 0
        inside = [c for c in commands if c.words.split()[0] == arguments[0]]
        if inside and arguments[1:2] in (["-h"], ["--help"]) and arguments[0] != inside[0].words:
            print(help_text(inside))
            return 0
        return run_command(*find_command(arguments, commands))
    except (Exception, KeyboardInterrupt) as error:
        failure = describe_failure(error)
        if debug or failure is None:
            raise
        sentence, status = failure
        if argv is None:  # a second Ctrl-C must not break the end of the process
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sentence:
            print(f"gr2: {sentence}", file=sys.stderr)
        return status


if __name__ == "__main__":
    sys.exit(main())
