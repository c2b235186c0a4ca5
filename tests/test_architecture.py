"""The shape of the repository, read from its syntax: imports, what needs torch, what the documents list."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gr2 import contracts

ROOT = Path(__file__).resolve().parents[1]
LEAVES = ("data_pipeline", "tokenizers", "cvae_head", "wbc")
FOLDERS = (*LEAVES, "gr_model", "benchmarks", "cli")
ROOTS = ("errors", "contracts", "embodiment", "fingerprints", "layers", "hub", "targets")
"""Modules beside `__init__.py`."""

# Who may import what, by the beginning of a module's path; the longest beginning decides. This table is the whole star.
TYPES = ("errors", "contracts", "embodiment", "fingerprints")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "__main__": ("cli.main",),
    "errors": (),
    "contracts": ("errors",),
    "embodiment": ("errors", "contracts"),
    "fingerprints": ("contracts",),
    "layers": ("errors", "contracts"),
    "hub": ("errors",),
    "targets": (),
    "data_pipeline": ("data_pipeline", "hub", *TYPES),
    "tokenizers": ("tokenizers", "layers", *TYPES),
    "cvae_head": ("cvae_head", "layers", *TYPES),
    "wbc": ("wbc", *TYPES),
    "gr_model.model": ("gr_model.model", *LEAVES, *ROOTS),
    "gr_model.train": ("gr_model.model", "gr_model.train", *LEAVES, *ROOTS),
    "gr_model.act": ("gr_model.model", "gr_model.train", "gr_model.act", *LEAVES, *ROOTS),
    "gr_model.serve": ("gr_model.train", "gr_model.act", "gr_model.serve", *LEAVES, *ROOTS),
    "gr_model": ("gr_model", *LEAVES, *ROOTS),
    "benchmarks.playtable": ("benchmarks.playtable", "benchmarks.simulation.simulator", *LEAVES, *ROOTS),
    "benchmarks": (*LEAVES, "gr_model", "benchmarks", *ROOTS),
    "cli": ("cli", "gr_model.train.preemption", *ROOTS),
}
ONLY_INSIDE_FUNCTIONS = {"cli.commands": FOLDERS}

WITHOUT_TORCH = (
    "errors",
    "contracts",
    "embodiment",
    "hub",
    "fingerprints",
    "wbc",
    "cli.main",
    "cli.commands",
    "cli.failures",
    "gr_model.act.opening",
    "gr_model.act.remote",
    "data_pipeline.video",
    "data_pipeline.store",
    "data_pipeline.tokens",
    "data_pipeline.readers",
    "data_pipeline.curation",
    "data_pipeline.inspection",
    "data_pipeline.statistics",
    "benchmarks.playtable",
    "benchmarks.libero",
    "benchmarks.metaworld",
    "benchmarks.simulation",
    "benchmarks.demonstrations",
    "benchmarks.doctor",
    "benchmarks.report",
)
TORCH_FAMILY = {
    "torch",
    "torchvision",
    "lightning",
    "pytorch_lightning",
    "open_clip",
    "taming",
    "einops",
    "jaxtyping",
}
OPTIONAL = {
    "h5py", "libero", "mediapipe", "metaworld", "msgpack", "mujoco", "peft", "ray", "rerun", "robosuite", "torchao",
    "torchcodec", "transformers", "triton", "vla_eval", "wandb", "websockets", "zarr",
}  # fmt: skip
"""Packages that a module uses only where they are installed."""
CENTRAL_TYPES = (
    "VideoClip",
    "Episode",
    "TokenSequence",
    "Observation",
    "ActionTrajectory",
    "JointCommand",
    "EvaluationReport",
)
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "base", "manager", "common", "misc"}
MAX_MODULE_LINES = 450
MAX_FUNCTION_LINES = 80


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported module: its dotted path from the root (or its absolute name) and where it is imported."""

    module: str
    line: int
    inside_function: bool
    relative: bool
    for_types: bool


def module_files() -> list[Path]:
    at_root = [file for file in ROOT.glob("*.py") if file.stem != "__init__"]
    return sorted([*at_root, *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))])


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


FILES = module_files()
TREES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in FILES}


def imports_of(name: str, tree: ast.Module) -> Iterator[Import]:
    """Yield what a module imports, everywhere in it."""

    def visit(node: ast.AST, inside_function: bool, for_types: bool) -> Iterator[Import]:
        for_types = for_types or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        targets: list[str] = []
        level = 0
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            level = node.level
            above = name.split(".")[:-level] if level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            whole = [f"{origin}.{alias.name}".strip(".") for alias in node.names]
            targets = [w for w in whole if w in TREES] or [origin]
        for target in targets:
            yield Import(
                module=target,
                line=node.lineno,  # type: ignore[attr-defined]
                inside_function=inside_function,
                relative=level > 0,
                for_types=for_types,
            )
        inner = inside_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner, for_types)

    return visit(tree, False, False)


def begins(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


@pytest.mark.parametrize("name", TREES)
def test_imports_follow_the_star(name):
    allowed = MAY_IMPORT[max((part for part in MAY_IMPORT if begins(name, part)), key=len)]
    lazily = ONLY_INSIDE_FUNCTIONS.get(name, ())
    for imported in imports_of(name, TREES[name]):
        where = f"{name.replace('.', '/')}.py:{imported.line}"
        top = imported.module.split(".")[0]
        assert top != "gr2" or imported.relative, f"{where}: inside the package, import relatively"
        assert imported.relative or top not in (*FOLDERS, *ROOTS) or top == "tokenizers", f"{where}: import relatively"
        if not imported.relative:
            continue
        fine = any(begins(imported.module, path) for path in allowed)
        fine = fine or (imported.inside_function and any(begins(imported.module, path) for path in lazily))
        assert fine, f"{where}: {name} must not import {imported.module}; it may import {allowed}"


def test_the_star_is_read_correctly():
    """Guard the reader itself: each kind of forbidden import is seen, each lazy one is marked."""
    source = "from ..wbc.robot.robots import panda\nfrom . import cvae\ndef f():\n    from ..benchmarks import demo\n"
    seen = list(imports_of("cvae_head.losses", ast.parse(source)))
    assert [(i.module, i.inside_function) for i in seen if i.module.startswith(("wbc", "benchmarks"))] == [
        ("wbc.robot.robots", False),
        ("benchmarks" if "benchmarks.demo" not in TREES else "benchmarks.demo", True),
    ]
    assert all(i.relative for i in seen)


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return a shortest circle through each module that imports itself by way of others."""
    found = []
    for name in imports:
        chains, seen = [[name]], {name}
        while chains:
            chain = chains.pop(0)
            if name in imports[chain[-1]]:
                found.append([*chain, name])
                break
            following = sorted(imports[chain[-1]] - seen)
            seen |= set(following)
            chains += [[*chain, module] for module in following]
    return found


def test_no_module_imports_itself_by_way_of_others():
    """Count imports inside functions and for type checkers too: they hide a circle, they do not cut it."""
    imports = {
        name: {i.module for i in imports_of(name, tree) if i.relative and i.module in TREES}
        for name, tree in TREES.items()
    }
    assert sum(map(len, imports.values())) > len(TREES), "the imports were not read"
    found = [" -> ".join(circle) for circle in circles(imports)]
    assert not found, "move what both need below both:\n" + "\n".join(found)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["b", "c", "b"], ["c", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def torch_chain(name: str, seen: set[str]) -> list[str] | None:
    """Return the chain of module-level imports from `name` to torch or its family, None without one."""
    seen.add(name)
    for imported in imports_of(name, TREES[name]):
        if imported.inside_function or imported.for_types:
            continue
        if not imported.relative and (
            imported.module.split(".")[0] in TORCH_FAMILY or imported.module == "safetensors.torch"
        ):
            return [name, imported.module]
        if imported.relative and imported.module in TREES and imported.module not in seen:
            chain = torch_chain(imported.module, seen)
            if chain is not None:
                return [name, *chain]
    return None


@pytest.mark.parametrize("name", [n for n in TREES if any(begins(n, part) for part in WITHOUT_TORCH)])
def test_runs_without_torch(name):
    chain = torch_chain(name, set())
    assert chain is None, f"imports torch at module level: {' -> '.join(chain or [])}"


def test_folders_have_no_init_and_are_at_most_two_deep():
    for folder in FOLDERS:
        assert not list((ROOT / folder).rglob("__init__.py")), f"{folder}: a folder with __init__.py breaks the layout"
    deep = [f for f in FILES if len(f.relative_to(ROOT).parts) > 3]
    assert not deep, f"folders at most two deep, got {deep}"


def test_root_holds_only_the_shared_modules():
    assert {name for name in TREES if "." not in name} == {*ROOTS, "__main__"}


ABOUT_THE_REPOSITORY = {
    "test_architecture",
    "test_packaging",
    "test_golden_curve",
    "test_public_names",
    "test_extend",
    "test_integrations",
}


def test_tests_mirror_the_folders():
    files = list((ROOT / "tests").rglob("test_*.py"))
    at_top = {f.stem for f in files if f.parent == ROOT / "tests"}
    assert at_top >= ABOUT_THE_REPOSITORY
    assert at_top <= ABOUT_THE_REPOSITORY | {f"test_{name}" for name in ROOTS}, "move these into the folder they test"
    inside = [f.relative_to(ROOT / "tests") for f in files if f.parent != ROOT / "tests"]
    assert {f.parts[0] for f in inside} == set(FOLDERS)
    assert not [f for f in inside if len(f.parts) != 2]
    strays = [str(f) for f in inside if f"gr2.{f.parts[0]}" not in (ROOT / "tests" / f).read_text(encoding="utf-8")]
    assert not strays, f"these tests import nothing of their folder: {strays}"


def test_setup_cfg_lists_exactly_the_folders_with_modules():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    listed = set(setup["options"]["packages"].split())
    present = {"gr2"} | {".".join(["gr2", *f.relative_to(ROOT).parent.parts]) for f in FILES}
    assert present <= listed, f"add to [options] packages: {sorted(present - listed)}"
    present |= {name.rsplit(".", 1)[0] for name in present if "." in name}  # gr_model holds weights beside its folders
    assert listed <= present, f"no module in these packages of setup.cfg: {sorted(listed - present)}"


DISTRIBUTION = {
    "PIL": "pillow",
    "open_clip": "open_clip_torch",
    "taming": "taming-transformers",
    "yaml": "pyyaml",
}
"""Distributions that are named otherwise than what they install."""


def test_setup_cfg_requires_what_the_modules_import():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = set(re.findall(r"^\s*([\w-]+)", setup["options"]["install_requires"], re.MULTILINE))
    absolute = {i.module.split(".")[0] for n in TREES for i in imports_of(n, TREES[n]) if not i.relative}
    wanted = {DISTRIBUTION.get(module, module) for module in absolute - set(sys.stdlib_module_names) - OPTIONAL}
    assert wanted <= required, f"add to [options] install_requires: {sorted(wanted - required)}"


@pytest.mark.parametrize("name", TREES)
def test_module_is_of_readable_size_and_says_what_it_is(name):
    tree = TREES[name]
    assert name.split(".")[-1] not in VAGUE_NAMES, f"{name}: name the concept"
    assert ast.get_docstring(tree), f"{name}: begins without a docstring"
    num_lines = len((ROOT / (name.replace(".", "/") + ".py")).read_text(encoding="utf-8").splitlines())
    assert num_lines <= MAX_MODULE_LINES, f"{name}: {num_lines} lines; split it by concept"


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for scope in scopes:
        for node in scope.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                yield node


@pytest.mark.parametrize("name", TREES)
def test_public_functions_are_described_short_and_take_no_stray_keywords(name):
    for node in public_functions(TREES[name]):
        where = f"{name}:{node.lineno} {node.name}"
        num_lines = (node.end_lineno or node.lineno) - node.lineno + 1
        overloaded = any("overload" in ast.unparse(d) for d in node.decorator_list)
        assert ast.get_docstring(node) or overloaded, f"{where}: no docstring"
        assert num_lines <= MAX_FUNCTION_LINES, f"{where}: {num_lines} lines"
        assert node.args.kwarg is None, f"{where}: a misspelt keyword vanishes in **{node.args.kwarg}"


@pytest.mark.parametrize("name", CENTRAL_TYPES)
def test_central_type_is_frozen_keyword_only_and_slotted(name):
    central = getattr(contracts, name)
    assert central.__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(central))
    assert "__slots__" in vars(central)
    document = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    assert f"`{name}`" in document, f"docs/architecture.md does not name {name}"


def listed_files(document: str) -> set[str]:
    """Return the paths that begin a table row of a document: | `path` | ... |."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return set(re.findall(r"^\| \[?`([\w./-]+)`", text, re.MULTILINE))


def test_file_maps_name_what_exists():
    paths = {p for p in listed_files("docs/architecture.md") if "/" in p or p.endswith((".py", ".md", ".cfg"))}
    assert paths, "docs/architecture.md has no file map"
    gone = sorted(p for p in paths if not (ROOT / p).exists())
    assert not gone, f"docs/architecture.md lists files that do not exist: {gone}"


def test_list_of_modules_says_what_the_modules_say():
    done = subprocess.run(
        [sys.executable, ROOT / "docs/file_map.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    listed = listed_files("docs/architecture.md")
    assert listed >= {str(f.relative_to(ROOT)) for f in FILES}


def test_every_folder_is_in_the_architecture():
    listed = listed_files("docs/architecture.md")
    assert {f"{folder}/" for folder in (*FOLDERS, "tests", "docs")} <= listed


def test_documents_link_only_to_files_that_exist():
    for document in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *(ROOT / "docs").glob("*.md"),
    ]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (document.parent / link).exists(), f"{document.name}: broken link {link}"
