"""Stopping and resuming: a run killed at any moment ends with the same bits; errors name damaged files."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import pytest
import torch
from torch.utils.data import DataLoader

from cawa_fast.recipes.files import atomic
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.loaders import end_workers
from cawa_fast.recipes.training.signals import SafePoints
from cawa_fast.recipes.training.trainer import Trainer
from tests.support.tiny_runs import TINY, Silent, arguments, assert_same_run, invoke, run, without_times
from tests.torture import kills


def test_a_run_repeats_to_the_bit(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    assert_same_run(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "c", replace(TINY, seed=1))
    assert without_times(tmp_path / "c") != without_times(tmp_path / "a")


def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    run(tmp_path / "a", replace(TINY, epochs=1))
    run(tmp_path / "b", replace(TINY, epochs=1, workers=2))
    assert_same_run(tmp_path / "a", tmp_path / "b")


def test_a_loader_whose_workers_were_ended_begins_new_ones() -> None:
    data = torch.arange(6.0)
    loader: DataLoader[Any] = DataLoader(cast(Any, data), 2, num_workers=1, persistent_workers=True)
    first = torch.cat(list(loader))
    workers = multiprocessing.active_children()
    assert workers
    end_workers(loader, None, DataLoader(cast(Any, data), 2))
    assert not any(worker.is_alive() for worker in workers)
    assert all(worker.exitcode == 0 for worker in workers)
    assert torch.equal(torch.cat(list(loader)), first)
    end_workers(loader)


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_it_ends_with_the_same_bits() -> None:
    assert kills.run(0, 6).lost == []


def _epochs(path: Path) -> int:
    try:
        return len((path / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_cleanly_and_says_how_to_resume(tmp_path: Path, number: int) -> None:
    command = [sys.executable, "-m", "cawa_fast.cli", *arguments(replace(TINY, epochs=500), tmp_path / "r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while _epochs(tmp_path / "r") == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    try:
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"cawa-fast train --resume --run-dir {tmp_path / 'r'}" in out.replace("\n", " ")
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_no_error_in_the_workers(tmp_path: Path) -> None:
    """As schedulers send it. DataLoader workers get it too, and must not end before the main process handles it."""
    config = replace(TINY, epochs=500, workers=2)
    command = [sys.executable, "-m", "cawa_fast.cli", *arguments(config, tmp_path / "r"), "--resume"]
    for life in range(3):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        before, deadline = _epochs(tmp_path / "r"), time.monotonic() + 60
        while _epochs(tmp_path / "r") == before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.03 * life)
        os.killpg(process.pid, signal.SIGTERM)
        try:
            out, error = process.communicate(
                timeout=60
            )  # ends only when the workers have ended, since they have the pipes open
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode == 130, error
        assert "Stopped; all finished epochs are saved" in out
        assert "Error" not in error


@pytest.mark.parametrize(
    "where", ["torch.save", "cawa_fast.recipes.training.trainer.log_scalars", "torch.Tensor.backward"]
)
def test_ctrl_c_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """If interrupted, torch.save would raise an error of its own, and TensorBoard's writer would hang."""
    module, _, name = where.rpartition(".")
    target = resolve_name(module)
    done = []

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if not done:
            signal.raise_signal(signal.SIGINT)
        result = original(*args, **kwargs)
        done.append(name)
        return result

    original = getattr(target, name)
    monkeypatch.setattr(target, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert len(done) == (2 if name == "save" else 1)  # best.pt and latest.pt of the same epoch
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert _epochs(tmp_path) == (0 if name == "backward" else 1)
    run(tmp_path)
    run(tmp_path / "whole")
    assert_same_run(tmp_path, tmp_path / "whole")


def test_a_second_ctrl_c_acts_at_once_and_so_does_a_third() -> None:
    with SafePoints():
        signal.raise_signal(signal.SIGINT)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_after_the_last_batch_is_not_lost() -> None:
    with pytest.raises(KeyboardInterrupt), SafePoints():
        signal.raise_signal(signal.SIGINT)


def test_signals_that_are_ignored_or_left_to_the_system_stay_so() -> None:
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in processes that a shell starts in the background
    default = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with SafePoints() as safe:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            safe.reached()
    finally:
        signal.signal(signal.SIGINT, ignored)
        signal.signal(signal.SIGTERM, default)


def test_a_signal_is_not_lost_to_another_error_nor_kept_for_the_next_run() -> None:
    """A signal to all processes may end DataLoader workers first, which is an error in the main process."""
    safe = SafePoints()

    def fit() -> None:
        with safe:
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("DataLoader worker exited unexpectedly")

    with pytest.raises(KeyboardInterrupt) as caught:
        fit()
    assert isinstance(caught.value.__context__, RuntimeError)
    with safe:
        safe.reached()
        with pytest.raises(RuntimeError, match=r"is fit\(\) running already"), safe:
            pass
    with ThreadPoolExecutor(1) as pool:
        pool.submit(safe.__enter__).result()
        pool.submit(safe.__exit__, None, None, None).result()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_forked_meanwhile_ends_at_once() -> None:
    with SafePoints():
        child = os.fork()
        if child == 0:
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt:
                os._exit(130)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def test_the_command_line_leaves_the_handlers_as_they_were(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert invoke(*arguments(replace(TINY, epochs=1), tmp_path)).exit_code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_run_in_a_thread_needs_no_signals(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(run, tmp_path, replace(TINY, epochs=1)).result()) == 1


def test_a_file_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def die_while_writing() -> None:
        with atomic(path) as file:
            file.write(b"half of the n")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        die_while_writing()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("rank", [0, 1])
def test_only_the_process_that_writes_removes_what_a_killed_one_left(
    tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the other processes it may be the file that rank 0 is writing."""
    run(tmp_path)
    half_written = tmp_path / ".dataset.json.abc"
    half_written.touch()
    monkeypatch.setattr("cawa_fast.recipes.training.distributed.rank", lambda: rank)
    Trainer(TINY, RunFolder(tmp_path), Silent())
    assert half_written.exists() == (rank == 1)


def test_metrics_that_ran_ahead_of_the_checkpoint_are_cut_back(tmp_path: Path) -> None:
    run(tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    truth = metrics.read_text()
    metrics.write_text(truth + '{"epoch": 3}\n')
    Trainer(TINY, RunFolder(tmp_path), Silent())
    assert metrics.read_text() == truth


def test_events_of_earlier_processes_are_written_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path)
    for events in tmp_path.glob("*tfevents*"):  # as if the process was killed before it flushed them
        events.unlink()
    for _ in range(2):  # the second time the events of the first are replaced
        run(tmp_path)
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        assert [event.step for event in events.Scalars("miou")] == [1, 2]


def test_stopped_while_reading_images_it_resumes_with_its_own_settings(tmp_path: Path) -> None:
    class Impatient(Silent):
        def prepare(self, what: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(replace(TINY, weighting="enet"), RunFolder(tmp_path), Impatient())
    assert invoke("train", "--resume", "--run-dir", str(tmp_path), "--no-tables").exit_code == 0
    assert RunFolder(tmp_path).read_config().weighting == "enet"
    assert len(without_times(tmp_path)) == 2


def test_interrupted_before_anything_was_begun_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cawa_fast.cli.train.TrainConfig", interrupt)
    result = invoke("train", "--run-dir", str(tmp_path / "r"))
    assert result.exit_code == 130
    assert "the run had not begun" in result.output


def test_a_checkpoint_without_settings_is_not_adopted(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "config.json").unlink()
    result = invoke(*arguments(replace(TINY, seed=7), tmp_path))
    assert result.exit_code == 1
    assert "latest.pt has no config.json beside it" in result.output.replace("\n", " ")


@pytest.mark.parametrize(("name", "content"), [("latest.pt", b"PK\x03\x04 cut"), ("config.json", b'{"epochs": "2"')])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run(tmp_path)
    (tmp_path / name).write_bytes(content)
    result = invoke("train", "--resume", "--run-dir", str(tmp_path))
    assert result.exit_code == 1
    assert f"{name} is damaged" in result.output
