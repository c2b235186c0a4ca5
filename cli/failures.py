"""What the command line prints when a command fails: a sentence and an exit status for what a user can fix."""

from __future__ import annotations

import ast
import errno
import os
import re
import sys
from collections.abc import Sequence

from ..errors import ConfigError, Gr2Error, did_you_mean
from ..gr_model.train.preemption import EXIT_STATUS, Preempted

_CUDA_MISSING = (
    "Torch not compiled with CUDA enabled",
    "No CUDA GPUs are available",
    "Found no NVIDIA driver",
    "CUDAAccelerator can not run on your system",
    "No supported gpu backend found",
)
"""Pieces of the messages with which torch and Lightning refuse a machine without a usable CUDA device."""


RENAMED_OPTIONS = {
    "workers": ("num_workers",), "scene_name": ("scene",), "image_px": ("image_size",), "films": ("videos",),
    "out": ("json", "video", "image", "html"), "model.code_renaming": ("model.code_permutation",),
}  # fmt: skip
"""Old names of options; a hint is given where a command has a new one and no longer the old one."""


class UsageError(ConfigError):
    """A command, option or choice that does not exist."""


def spelled(option: str) -> str:
    """Return an option as users write it: `num_workers` is `--num-workers`."""
    return f"--{option.replace('_', '-')}"


def renamed_option(option: str, options: Sequence[str]) -> str | None:
    """Return the new name of an option that a command had before, None where it never had one or has it still."""
    if option in options:
        return None
    return next((new for new in RENAMED_OPTIONS.get(option, ()) if new in options), None)


def flatten_usage_error(message: str, options: Sequence[str]) -> str:
    """Turn a parser's message into one sentence with a suggestion.

    Args:
        message: What jsonargparse reports, possibly over several lines.
        options: The command's options, without dashes.
    """
    if unknown := re.search(r"unrecognized arguments: (\S+)", message):
        word = unknown[1].split("=")[0]
        if word.startswith("-"):
            word = spelled(word.removeprefix("--")) if word.startswith("--") else word
            return f"unknown option '{word}'{did_you_mean(word, [spelled(option) for option in options])}"
        return f"unexpected argument '{word}'; every value follows the name of its option, as in --out runs/a."
    if unknown := re.search(r"Option '([^']+)' is not accepted", message):
        if new := renamed_option(unknown[1], options):
            return f"'{unknown[1]}' in the configuration file is now '{new}'."
        return f"unknown option '{unknown[1]}' in the configuration file{did_you_mean(unknown[1], options)}"
    if wrong := re.search(r'key "([^"]+)":.*?Literal\[([^]]*)\].*Got value: (.*)', message, re.DOTALL):
        choices = [str(choice) for choice in ast.literal_eval(f"[{wrong[2]}]")]
        return f"{spelled(wrong[1])} cannot be '{wrong[3].strip()}'{did_you_mean(wrong[3].strip(), choices)}"
    if "Subtypes:" in message and (wrong := re.search(r'key "([^"]+)":.*Given value: (.*)', message, re.DOTALL)):
        wanted = [plain_types(name) for name in re.findall(r"Expected a (.+)", message)]
        return f"{spelled(wrong[1])} cannot be '{wrong[2].strip()}'; expected {' or '.join(dict.fromkeys(wanted))}."
    if wrong := re.search(r'key "([^"]+)":\s*(.*)', message, re.DOTALL):
        return f"{spelled(wrong[1])}: {plain_types(' '.join(wrong[2].split()))}"
    return " ".join(message.split())


def shorten_words(sentence: str) -> str:
    """Return `sentence` with the middle of words of more than 300 characters left out."""
    return re.sub(r"(\S{150})\S{50,}(\S{100})", r"\1...\2", sentence)


def plain_types(text: str) -> str:
    """Return `text` with `<class 'pathlib.Path'>` written as `Path`."""
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "null")


def describe_failure(error: BaseException) -> tuple[str, int] | None:
    """Return (sentence, exit status) for a failure that a user can fix, None for a fault of the program."""
    if isinstance(error, UsageError):
        return str(error), 2
    if isinstance(error, Preempted):
        return str(error), EXIT_STATUS
    if isinstance(error, Gr2Error):
        return " ".join(str(error).split()), 1
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the keyboard.", 130
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushing at exit must not fail again
        return "", 1
    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, ImportError) and error.name is not None:
        return _describe_import_error(error, error.name)
    message = str(error)
    if isinstance(error, RecursionError):
        return "a file is nested too deeply to be read; check the files that the options name (--debug shows where).", 1
    if "Could not determine home directory" in message:
        return "a path begins with ~ and the name of nobody on this machine; write the folder out.", 1
    if any(piece in message for piece in _CUDA_MISSING):
        return (
            "no CUDA device can be used on this machine; choose the CPU, or fix the driver (`gr2 doctor`).",
            1,
        )
    if isinstance(error, MemoryError) or "out of memory" in message:
        return "out of memory; use a smaller batch size or preset.", 1
    return None


def _describe_os_error(error: OSError) -> tuple[str, int] | None:
    name = f" '{os.fspath(error.filename)}'" if isinstance(error.filename, str | os.PathLike) else ""
    if isinstance(error, PermissionError):
        return (
            f"permission denied for{name or ' a file'}; choose another folder or change its permissions.",
            1,
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left on the disk{' of' + name if name else ''}; free some, or choose another folder.",
            1,
        )
    if name and error.strerror:
        return f"{error.strerror.lower()}:{name}; check the path (--debug shows where).", 1
    return None


def _describe_import_error(error: ImportError, name: str) -> tuple[str, int]:
    if name.split(".")[0] == "gr2":
        return f"this command needs {name}, which is missing or incomplete; install a complete gr2.", 1
    if isinstance(error, ModuleNotFoundError):
        return f"the package '{name}' is not installed; run `gr2 doctor` to see what is missing.", 1
    return f"the package '{name}' cannot be loaded ({error}); run `gr2 doctor` to see what is missing.", 1
