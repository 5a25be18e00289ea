"""Two processes never write one run folder; a lock that a killed process left blocks nobody."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.runs.lock import locked
from tests.support.tiny_runs import TINY, arguments, invoke

HOLD = """
import os, sys, time
from pathlib import Path
from cawa_fast.recipes.runs.lock import locked
with locked(Path(sys.argv[1]), "held", "wait"):
    if os.fork() == 0:  # as DataLoader workers, which may outlive a killed process for seconds
        print("locked", flush=True)  # the child says so: it has closed its copy of the file by now
    time.sleep(60)
"""


def enter(file: Path) -> None:
    with locked(file, "another process is at work", "wait for it"):
        pass


def holder(file: Path) -> subprocess.Popen[str]:
    """A process, and a child of it, that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_the_holder_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    process = holder(tmp_path / ".lock")
    try:
        message = rf"another process is at work: process {process.pid} on \S+, since \d{{4}}-\d\d-\d\d .*; wait for it"
        with pytest.raises(ValueError, match=message):
            enter(tmp_path / ".lock")
        process.kill()
        process.wait()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == process.pid  # left behind
        enter(tmp_path / ".lock")  # although the child of the killed process still runs
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()  # type: ignore[union-attr]


def test_threads_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path / ".lock", "a", "b"), ThreadPoolExecutor(1) as pool:
        error = pool.submit(enter, tmp_path / ".lock").exception()
    assert isinstance(error, ValueError)
    assert f"another process is at work: process {os.getpid()} on" in str(error)
    enter(tmp_path / ".lock")
    assert os.listdir(tmp_path) == []


def test_of_many_that_begin_together_one_wins(tmp_path: Path) -> None:
    """Also where the winner removes the file while the others have it open."""
    inside, most = [], 0

    def work(_: int) -> int:
        nonlocal most
        try:
            with locked(tmp_path / ".lock", "a", "b"):
                inside.append(1)
                most = max(most, len(inside))
                time.sleep(0.001)
                inside.pop()
                return 1
        except ValueError:
            return 0

    with ThreadPoolExecutor(8) as pool:
        entered = sum(pool.map(work, range(300)))
    assert entered >= 1
    assert most == 1


def links(file: Path) -> None:
    file.symlink_to(file.with_name("precious"))


def other_text(file: Path) -> None:
    file.write_text("notes of a user")


def hard_links(file: Path) -> None:
    os.link(file.with_name("precious"), file)


@pytest.mark.parametrize("make", [links, hard_links, other_text, Path.mkdir, os.mkfifo])
def test_what_is_no_lock_file_is_never_written(tmp_path: Path, make: Callable[[Path], object]) -> None:
    precious = tmp_path / "precious"
    precious.write_text('{"pid": 1}')
    make(tmp_path / ".lock")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / '.lock'} is ") + "(a link|not a lock file)"):
        enter(tmp_path / ".lock")
    assert precious.read_text() == '{"pid": 1}'
    if make is other_text:
        assert (tmp_path / ".lock").read_text() == "notes of a user"


def test_a_name_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    for text in ("", '{"pid": "x"}', '{"pid": ' + "[" * 900, '{"pid": 99999999999999999999, "host": "a", "since": 1}'):
        (tmp_path / ".lock").write_text(text)
        with (tmp_path / ".lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(ValueError, match=r"another process is at work.*; wait for it"):
                enter(tmp_path / ".lock")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_and_the_run_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level(logging.WARNING):
        enter(tmp_path / ".lock")
    assert f"{tmp_path}: this file system has no locks ({os.strerror(code)})" in caplog.text


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunFolder(folder).locked():
        for words in (["--resume"], []):
            result = invoke(*arguments(TINY, folder), *words)
            assert result.exit_code == 1
            text = " ".join(result.output.split())
            assert f"another process is training in {folder}: process {os.getpid()} on" in text
            assert "wait for it, stop it, or choose another --run-dir" in text
    assert not folder.exists()


def test_a_command_that_fails_leaves_no_folder(tmp_path: Path) -> None:
    result = invoke(*arguments(replace(TINY, batch_size=100), tmp_path / "a" / "b" / "run"))
    assert result.exit_code == 1
    assert "batch_size=100" in result.output
    assert os.listdir(tmp_path) == []
    (tmp_path / "mine").mkdir()
    invoke(*arguments(replace(TINY, batch_size=100), tmp_path / "mine"))
    assert os.listdir(tmp_path) == ["mine"]


@pytest.mark.slow
def test_two_runs_begun_together_in_one_folder(tmp_path: Path) -> None:
    """One trains, and its results are those of its own settings; the other one says who trains."""
    commands = [
        [sys.executable, "-m", "cawa_fast.cli", *arguments(replace(TINY, epochs=30, seed=seed), tmp_path / "run")]
        for seed in (1, 2)
    ]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], outputs
    loser, winner = codes.index(1), codes.index(0)
    assert re.search(rf"another process is training in \S+: process {processes[winner].pid} on", outputs[loser]) or (
        "already holds a run" in outputs[loser]
    )
    assert RunFolder(tmp_path / "run").read_config().seed == winner + 1
