"""No file of a user becomes code: what the package never calls, read from its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NEVER = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"),
    *("pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "yaml.unsafe_load", "yaml.full_load"),
    *("yaml.load_all", "yaml.unsafe_load_all", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load"),
    *("torch.jit.load", "torch.package.PackageImporter", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("runpy.run_path", "runpy.run_module", "code.interact", "pandas.read_pickle", "tempfile.mktemp"),
}


def forbidden(source: str) -> Iterator[str]:
    """What a file calls that could run what a user's file says, with its line."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    loaders = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and {called(base, names) for base in node.bases} & loaders:
            loaders.add(node.name)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node.func, names)
        options = {word.arg: word.value for word in node.keywords}

        def is_constant(option: str, value: object, options: dict[str | None, ast.expr] = options) -> bool:
            given = options.get(option)
            return isinstance(given, ast.Constant) and given.value is value

        bad = name in NEVER
        bad |= name == "torch.load" and not is_constant("weights_only", True)
        bad |= name in ("numpy.load", "np.load") and not is_constant("allow_pickle", False)
        bad |= name == "yaml.load" and not {called(a, names) for a in (*node.args[1:], *options.values())} & loaders
        bad |= "shell" in options and not is_constant("shell", False)
        if bad:
            yield f"{node.lineno}: {name}"


def called(node: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of a function, as it was imported; "" if it has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{called(node.value, names)}.{node.attr}"
    return ""


def test_nothing_runs_what_a_file_says() -> None:
    files = [path for folder in ("cawa_fast", "kernels") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = [f"{path.relative_to(ROOT)}:{line}" for path in files for line in forbidden(path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "eval(text)",
        "import torch\ntorch.load(file)",
        "from torch import load\nload(file, weights_only=False)",
        "import torch\ntorch.load(file, weights_only=flag)",
        "from pickle import loads as read\nread(data)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.load(text)",
        "import subprocess as sp\nsp.run(words, shell=True)",
        "import os\nos.system(text)",
        "import numpy as np\nnp.load(file)",
    ],
)
def test_what_would_run_it_is_found(source: str) -> None:
    assert len(list(forbidden(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(file, weights_only=True)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(text, L)",
        "model.eval()\nre.compile(text)\ntorch.compile(model)",
        "import subprocess\nsubprocess.run(words)",
    ],
)
def test_what_is_harmless_is_not_found(source: str) -> None:
    assert list(forbidden(source)) == []
