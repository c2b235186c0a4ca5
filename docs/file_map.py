"""Rewrite the list of modules in docs/architecture.md from the first line of each module (`make docs`)."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cli", "gr_model", "tokenizers", "data_pipeline", "cvae_head", "wbc", "benchmarks")
HEADING = "## Every module\n"


def first_sentence(file: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    document = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return document.partition("\n")[0].rstrip(".").replace("|", "\\|")


def file_map() -> str:
    """Return a table for the root and one for each folder, one row for each module."""
    at_root = [file for file in sorted(ROOT.glob("*.py")) if file.stem != "__init__"]
    tables = [_table("Beside `__init__.py`", at_root)]
    for folder in FOLDERS:
        files = sorted((ROOT / folder).rglob("*.py"), key=lambda f: (len(f.parts), str(f)))
        tables.append(_table(f"{folder}/", files))
    return "\n\n".join(tables) + "\n"


def _table(title: str, files: list[Path]) -> str:
    rows = [f"| `{file.relative_to(ROOT)}` | {first_sentence(file)} |" for file in files]
    return "\n".join([f"### {title}", "", "| module | what |", "|---|---|", *rows])


def main(*, check: bool) -> int:
    """Rewrite the list, or with `check` only check whether it is true; return an exit status."""
    page = ROOT / "docs" / "architecture.md"
    text = page.read_text(encoding="utf-8")
    wanted = text.partition(HEADING)[0] + HEADING + "\n" + file_map()
    if text == wanted:
        return 0
    if check:
        print(
            "docs/architecture.md: the list of modules is not what the modules state; run `make docs`.",
            file=sys.stderr,
        )
        return 1
    temporary = page.with_suffix(".md.new")
    temporary.write_text(wanted, encoding="utf-8")
    os.replace(temporary, page)
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
