"""The command line `gr2`: find a command, build its parser, run it, print errors in one sentence."""

from __future__ import annotations

import difflib
import io
import os
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..targets import Target, call, options_class
from .commands import COMMANDS, RENAMED_COMMANDS, Command
from .failures import (
    UsageError,
    describe_failure,
    flatten_usage_error,
    plain_types,
    renamed_option,
    shorten_words,
    spelled,
)
from .ranges import check_numbers

if TYPE_CHECKING:
    from argparse import Action
    from contextlib import AbstractContextManager
    from inspect import Parameter

    from jsonargparse import ArgumentParser, Namespace


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


def join_lists(words: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return `words` with lists as the parser wants them: `--tokens a b` and `--tokens a` are `--tokens=["a","b"]`."""
    import json

    kinds = {f"--{action.dest}": str(getattr(action, "_typehint", "")) for action in parser._actions}
    joined: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        kind = kinds.get(option, "")
        if "list[" not in kind and "tuple[" not in kind:
            joined.append(word)
            continue
        values = [value] if equals else []
        while not equals and rest and not rest[0].startswith("--"):
            values.append(rest.pop(0))
        plain = len(values) != 1 or not (values[0].startswith("[") or values[0] in ("", "null"))
        if plain and values:
            numbers = "int" in kind or "float" in kind
            joined.append(f"{option}=[{', '.join(values)}]" if numbers else f"{option}={json.dumps(values)}")
        else:
            joined += [option, *values] if not equals else [word]
    return joined


def _underscored(word: str) -> str:
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _expanded(value: Any) -> Any:
    """Return a path with `~` as the home folder, which a shell does not put there after `--option=`."""
    from pathlib import Path

    if isinstance(value, list):
        return [_expanded(part) for part in value]
    return value.expanduser() if isinstance(value, Path) else value


def _parsed(parser: ArgumentParser, words: Sequence[str], names: Sequence[str]) -> Namespace:
    """Parse the options.

    Raises:
        UsageError: a word, a value or a configuration file that cannot be used.
    """
    from argparse import ArgumentError

    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise UsageError(flatten_usage_error(str(error), names)) from error
    except (UnicodeError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else "is no text"
        raise UsageError(f"a configuration file {reason}; expected yaml, as --print-config writes it.") from error


def _folder_of(out: object, command: str) -> AbstractContextManager[None]:
    """Keep other commands off the output folder of a command that has one."""
    from contextlib import nullcontext
    from pathlib import Path

    from .locks import locked

    return locked(out, command) if isinstance(out, Path) else nullcontext()


def without_secrets(options: str) -> str:
    """Return printed options with keys hidden, since logs are kept and shared."""
    return re.sub(r"(?m)^(\s*\w*api_key: )(?!''$).+$", r"\1(hidden)", options)


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Parse `argv`, call the target and return the exit status; print a path that it returns."""
    target = command.target()
    parser = build_parser(command, target)
    names = [key for key in parser.get_defaults().keys() if key != "config"]  # noqa: SIM118 (a Namespace)
    paths = {p.name for p in _parameters(target).values() if "Path" in str(p.annotation)}
    if command.bare and argv and not argv[0].startswith("-"):
        argv = _name_bare(command.bare, argv, target)
    words = join_lists(spell_options(argv, target), parser)
    for word in words:
        name = word.removeprefix("--").partition("=")[0] if word.startswith("--") else ""
        if new := renamed_option(name, names):
            raise UsageError(f"{spelled(name)} is now {spelled(new)}.")
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.removeprefix("--").partition("=")
        if name in paths and not (value if equals else following):
            raise UsageError(
                f"{spelled(name)}: expected a file or folder, got nothing; leave the option out, or name one."
            )
    parsed = _parsed(parser, words, names)
    check_numbers(vars(parsed.as_flat()), vars(parser.get_defaults().as_flat()))
    if command.prints_options:
        print(f"gr2 {command.words}\n{without_secrets(parser.dump(parsed)).rstrip()}", file=sys.stderr)
    values = parser.instantiate(parsed).as_dict()
    values.pop("config", None)
    values = {name: _expanded(value) for name, value in values.items()}
    with _folder_of(values.get("out") if command.writes_folder else None, f"gr2 {command.words}"):
        result = call(target, values)
    if isinstance(result, os.PathLike):
        print(os.fspath(result))
    return result if isinstance(result, int) and not isinstance(result, bool) else 0


def main(argv: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run `gr2` and return its exit status: 0 done, 1 failed, 2 misused, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and isinstance(sys.stdout, io.TextIOWrapper):  # names of files need be no UTF-8, terminals neither
        sys.stdout.reconfigure(errors="backslashreplace")
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
            print(f"gr2: {shorten_words(sentence)}", file=sys.stderr)
        return status
