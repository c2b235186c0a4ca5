"""The command line `gr2`: find a command, build its parser, run it, print errors in one sentence."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .commands import COMMANDS, RENAMED_COMMANDS, Command
from .failures import UsageError, describe_failure, flatten_usage_error, plain_types, renamed_option, spelled
from .targets import Target, call, options_class

if TYPE_CHECKING:
    from argparse import Action
    from inspect import Parameter

    from jsonargparse import ArgumentParser


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
