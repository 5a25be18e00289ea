"""The structure of the code: imports follow the layers, there are no import cycles, and names are unique."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

LAYERS = (
    {"cli"},
    {"recipes", "integrations"},
    {"cawa"},
    {"region_losses"},
    {"pixel_losses"},
    {"adaptive", "calibration", "cam", "nn", "sampling", "estimation", "evaluation", "metrics", "rules", "weighting"},
    {"_listener"},
    {"_recorder"},
    {"_output_check", "_wrappers", "_closed_form"},
    {"_classifier"},
    {"functional"},
    {"_region"},
    {"_ops"},
    {"reference_region"},
    {"reference", "_validate", "_label_check", "_rules", "_state", "_collective", "_plots"},
    {"kernels"},
)
"""The parts of ``cawa_fast`` from top to bottom. A file imports from its own layer and from those below it."""


def files(*folders: str) -> dict[str, Path]:
    """Module names and their files; the modules of ``kernels/`` have the names under which they are installed."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if relative.parts[:2] == ("cawa_fast", "kernels"):
                continue  # a link with which the source tree runs without being installed
            parts = [*(("cawa_fast",) if folder == "kernels" else ()), *relative.with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, modules: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Which of ``modules`` the file imports, also inside functions, with line numbers."""
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                target = f"{module}.{alias.name}"
                if target in modules:
                    yield target, node.lineno
                elif module in modules and module != name:
                    yield module, node.lineno


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components with more than one file (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            place = stack.index(node)
            component = stack[place:]
            del stack[place:]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_there_are_no_import_cycles() -> None:
    modules = files("cawa_fast", "kernels", "bench", "tests")
    graph = {name: {other for other, _ in imports(name, path, modules)} for name, path in modules.items()}
    assert len(graph) > 200
    assert cycles(graph) == []


def test_import_cycles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}
    assert cycles(graph) == [["b", "c"]]


def layer_of(module: str) -> int | None:
    """The index of the module's layer; None for the package itself, which re-exports the public names."""
    parts = module.split(".")
    if len(parts) == 1:
        return None
    return next(number for number, layer in enumerate(LAYERS) if parts[1] in layer)


def test_imports_point_down() -> None:
    modules = files("cawa_fast", "kernels")
    against = []
    for name, path in modules.items():
        mine = layer_of(name)
        for other, line in imports(name, path, modules):
            theirs = layer_of(other)
            if mine is not None and (mine > theirs if theirs is not None else mine > 1):
                against.append(f"{path.relative_to(ROOT)}:{line} imports {other}")
    assert against == []


def test_kernels_import_nothing_from_above() -> None:
    for path in sorted((ROOT / "kernels").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name}:{node.lineno}"
                names = [node.module or ""]
            assert not [name for name in names if name.startswith(("cawa_fast", "bench", "tests"))], path.name


SAME_EVERYWHERE = {
    # an operator has the same name in every layer: public function, implementation, reference, kernel
    *("cross_entropy", "cross_entropy_backward", "confusion_matrix", "cam_counts", "label_histogram"),
    "reduction_scale",
    *("region_sums", "region_sums_backward"),
    "main",  # the entry point of a process
    *("CawaCallback", "CawaMixin", "CawaTrainer"),  # of each framework
}
"""Names that several files of a package may define, because they mean the same thing."""


@pytest.mark.parametrize("folders", [("cawa_fast", "kernels"), ("bench",)], ids=lambda folders: folders[0])
def test_top_level_names_are_unique(folders: tuple[str, ...]) -> None:
    """No two functions or classes at the top of a package's files share a name."""
    defined = defaultdict(list)
    for path in files(*folders).values():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined[node.name].append(str(path.relative_to(ROOT)))
    twice = {name: where for name, where in defined.items() if len(where) > 1 and name not in SAME_EVERYWHERE}
    assert {name: where for name, where in twice.items() if not name.startswith("_")} == {}


def test_every_package_is_installed() -> None:
    """``pyproject.toml`` lists every folder with Python files, since setuptools leaves out what it does not list."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'"([\w.]+)"', text[text.index("\npackages = [") : text.index("\npackage-dir")]))
    modules = files("cawa_fast", "kernels").items()
    assert listed == {name if path.stem == "__init__" else name.rpartition(".")[0] for name, path in modules}
