"""Pages that `make site` makes anew: the start page from the README, and the reference of the public names."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=_inside(readme.replace("](docs/", "]("))))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead links to files beside the documents to the repository's page."""
    return _inside(markdown.replace("](../", "]("))


def _inside(markdown: str) -> str:
    """Name files that the site does not have by their path alone."""
    outside = r"\[([^\]]+)\]\(((?:examples/|integrations/|tests/|CONTRIBUTING|Dockerfile|LICENSE|CHANGELOG)[^)]*)\)"
    return re.sub(outside, r"`\2`", markdown)


def _reference() -> str:
    """Write what `import gr2` offers: signatures and docstrings, methods too."""
    import gr2

    parts = ["# Reference", "What `import gr2` offers."]
    for name in (name for name in gr2.__all__ if not name.startswith("_")):
        found = getattr(gr2, name)
        parts += [f"## {name}", _signature(f"gr2.{name}", found), _described(inspect.getdoc(found) or "")]
        for method, value in vars(found).items() if inspect.isclass(found) else ():
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            documented = inspect.getdoc(value) or ""
            if method.startswith("_") or not documented:
                continue
            if isinstance(value, property):
                parts += [f"### {name}.{method}", documented]
            elif inspect.isfunction(function):
                parts += [f"### {name}.{method}", _signature(method, function), _described(documented)]
    return "\n\n".join(parts) + "\n"


def _signature(name: str, found: Any) -> str:
    try:
        signature = str(inspect.signature(found, eval_str=False)).replace("'", "")
    except (TypeError, ValueError):
        signature = "(...)"
    if len(signature) > 90:
        signature = re.sub(r", (?=[\w*]+[:=,)]|\*)", ",\n    ", signature.replace("(", "(\n    ", 1))
    return f"```python\n{name}{signature}\n```"


def _described(docstring: str) -> str:
    """Turn the sections of a docstring into lists, `name: text` into items."""
    lines = []
    for line in docstring.splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            lines += ["", f"**{line[:-1]}**", ""]
        elif re.match(r"    \w[\w, *]*: ", line):
            names, _, words = line.strip().partition(": ")
            lines.append(f"- `{names}`: {words}")
        else:
            lines.append(line.strip() if not line.startswith("        ") else "  " + line.strip())
    return "\n".join(lines)
