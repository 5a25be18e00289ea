"""Damaged, edited and hostile run folders: every command ends with a result or a message, never with a traceback.

The message names the file, or the setting in it that has an impossible value.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

from cawa_fast.recipes.config import TrainConfig
from tests.support.fake_runs import ablation, fake_run
from tests.support.tiny_runs import TINY, arguments, invoke
from tests.support.tiny_runs import run as train
from tests.torture.outcome import Outcome

_SECONDS = 30  # for a command; the longest takes two
_FILES = ("config.json", "dataset.json", "metrics.jsonl", "confusion.json")
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 0.5, -0.5, 2**31, 2**63, 10**400, 1e308, float("nan"), float("inf")),
    *("", "x", "0", "nan", "../..", "\x1b[31m", "\ud800", "[bold]", "<b>", "x" * 10_000),
    *([], [[]], [None], {}, {"x": {}}, [0.5] * 10, list(range(1000)), ["a"] * 10),
)


def run(seed: int, n: int) -> Outcome:
    """Damage one file of a run ``n`` times, each time another way, and give the folder to a command."""
    numbers = random.Random(seed)
    lost = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        whole = _make(Path(name, "whole"))
        stack.enter_context(_quick())
        for case in range(n):
            folder = Path(name, "case")
            shutil.copytree(whole, folder)
            command, file = numbers.choice(_CASES)
            how = _damage(folder / file, numbers)
            if problem := _problem(_COMMANDS[command](folder), file):
                lost.append(f"case {case}, {command}, {file}, {how}: {problem}")
            shutil.rmtree(folder)
    return Outcome(n, n - len(lost), lost)


def _make(path: Path) -> Path:
    """A finished run, a run with another weighting, and an ablation of both."""
    result = ablation(path)
    settings = {name: value for name, value in TINY.as_dict().items() if name not in ("seed", "weighting")}
    (path / "ablation.json").write_text(json.dumps(result | {"settings": settings | {"epochs": 1}}))
    train(path / "uniform-s0", replace(TINY, weighting="uniform", epochs=1))
    fake_run(path / "cawa-s0", "cawa", checkpoint=False)
    return path


_COMMANDS: dict[str, Callable[[Path], list[str]]] = {
    "report": lambda path: ["report", str(path / "uniform-s0"), "--images", "0", "--out", str(path / "page.html")],
    "report of two": lambda path: [
        *("report", str(path / "cawa-s0"), str(path), "--images", "0", "--out", str(path / "page.html")),
    ],
    "resume": lambda path: ["train", "--resume", "--run-dir", str(path / "uniform-s0"), "--no-tables"],
    "ablate": lambda path: [
        *("ablate", "--out", str(path), "--rows", "uniform", "--seeds", "0", "--dry-run", "--jobs", "1"),
        *_SETTINGS,
    ],
}
_SETTINGS = arguments(replace(TINY, epochs=1), Path())[4:]
for _name in ("--weighting", "--seed"):
    del _SETTINGS[_SETTINGS.index(_name) : _SETTINGS.index(_name) + 2]
_CASES = [
    *(("report", f"uniform-s0/{file}") for file in _FILES),
    *(("report of two", f"cawa-s0/{file}") for file in _FILES),
    *(("report of two", "ablation.json") for _ in _FILES),
    *(("resume", f"uniform-s0/{file}") for file in _FILES),
    ("ablate", "ablation.json"),
    ("ablate", "uniform-s0/config.json"),
    ("ablate", "uniform-s0/metrics.jsonl"),
]


@contextmanager
def _quick() -> Iterator[None]:
    """Figures are made but not drawn, and a run that would go on ends at its next epoch."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch("cawa_fast.recipes.report.figure_writer.to_svg", return_value=b"<svg></svg>"))
        stop = mock.Mock(side_effect=KeyboardInterrupt)
        stack.enter_context(mock.patch("cawa_fast.recipes.training.trainer.Trainer._epoch", stop))
        yield


def _damage(file: Path, numbers: random.Random) -> str:
    """Damage a file; returns how."""
    if numbers.random() < 0.6:
        return _edit(file, numbers)
    data = file.read_bytes()
    place = numbers.randrange(len(data))
    ways: dict[str, Callable[[], object]] = {
        f"bit {place}": lambda: file.write_bytes(
            data[:place] + bytes([data[place] ^ 1 << numbers.randrange(8)]) + data[place + 1 :]
        ),
        f"cut at {place}": lambda: file.write_bytes(data[:place]),
        f"bytes at {place}": lambda: file.write_bytes(data[:place] + numbers.randbytes(20) + data[place:]),
        "empty": lambda: file.write_bytes(b""),
        "deep": lambda: file.write_bytes(b"[" * 100_000),
        "deep object": lambda: file.write_bytes(b'{"a":' * 100_000),
        "digits": lambda: file.write_bytes(re.sub(rb"\d+", b"9" * 5000, data, count=1)),
        "twice": lambda: file.write_bytes(2 * data),
        "mark": lambda: file.write_bytes(b"\xef\xbb\xbf" + data),
        "UTF-16": lambda: file.write_bytes(data.decode().encode("utf-16")),
        "huge": lambda: os.truncate(file, 1 << 40),
        "pipe": lambda: (file.unlink(), os.mkfifo(file)),
        "device": lambda: (file.unlink(), file.symlink_to("/dev/zero")),
        "folder": lambda: (file.unlink(), file.mkdir()),
        "gone": lambda: file.unlink(),
    }
    how = numbers.choice(list(ways))
    ways[how]()
    return how


def _edit(file: Path, numbers: random.Random) -> str:
    """Replace or delete one value of a JSON file, or of a line of it."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    line = numbers.randrange(len(lines))
    content = json.loads(lines[line])
    original, holder, key, path = copy.deepcopy(content), None, None, ""
    value = content
    while isinstance(value, (dict, list)) and value and (holder is None or numbers.random() < 0.75):
        holder, key = value, numbers.choice(list(value) if isinstance(value, dict) else range(len(value)))
        value, path = value[key], f"{path}.{key}"
    assert holder is not None
    if numbers.random() < 0.2:
        del holder[key]
        how = f"without {path}"
    else:
        new = numbers.choice(_VALUES)
        holder[key] = new
        how = f"{path} = {new!r:.60}"
    if content == original:
        how += " (as it was)"
    lines[line] = json.dumps(content)
    file.write_text("\n".join(lines) + "\n")
    return how


class _Late(BaseException):
    pass


def _problem(arguments: list[str], file: str) -> str | None:
    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        result = invoke(*arguments)
    except _Late:
        return "it does not end"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"{result.exception!r:.300}"
    settings = [setting.name for setting in fields(TrainConfig)]
    words = [
        Path(file).name,
        "different classes",
        *(settings if file.endswith(("config.json", "ablation.json")) else []),
    ]
    output = result.output.replace("\n", "")
    if result.exit_code == 1 and not any(word in output for word in words):
        return f"the message names no file: {output[-300:]}"
    return None if result.exit_code in (0, 1, 130) else f"status {result.exit_code}: {output[-300:]}"
