"""Faults of the disk: damaged checkpoints, full and unwritable disks, folders that go away, locked folders."""

from __future__ import annotations

import errno
import logging
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cawa_fast.recipes.files import atomic
from cawa_fast.recipes.report.report import write_report
from cawa_fast.recipes.runs.folder import RunFolder
from cawa_fast.recipes.training.trainer import Trainer
from tests.support.fake_runs import fake_run
from tests.support.tiny_runs import TINY, Silent, assert_same_run, invoke, run
from tests.torture import bit_flips

FILES = ("best.pt", "latest.pt", "metrics.jsonl", "confusion.json")  # in the order in which an epoch writes them


class StopAfter(Silent):
    """Ends the run after an epoch, or calls something there."""

    def __init__(self, epoch: int, then: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.epoch, self.then = epoch, then

    def epoch_done(self, record: dict[str, Any]) -> None:
        if record["epoch"] == self.epoch:
            if self.then is None:
                raise KeyboardInterrupt
            self.then()


def one_epoch(folder: Path) -> None:
    """The run of TINY, ended after the first of its two epochs."""
    with pytest.raises(KeyboardInterrupt):
        Trainer(TINY, RunFolder(folder), StopAfter(1)).fit()


def resume(folder: Path) -> tuple[int, str]:
    """Exit status and output on one line; anything but a message is an error of the test."""
    result = invoke("train", "--resume", "--run-dir", str(folder), "--no-tables")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, re.sub(r"\s+", " ", result.output)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of TINY."""
    path = tmp_path_factory.mktemp("whole")
    run(path)
    return path


# ------------------------------------------------------------------------------------------------ damaged checkpoints


def test_no_damaged_checkpoint_loads() -> None:
    assert bit_flips.run(0, 20).lost == []


@pytest.mark.slow
@pytest.mark.parametrize("checksum", [True, False])
def test_no_damaged_checkpoint_loads_however_it_was_saved(checksum: bool) -> None:
    assert bit_flips.run(1, 200, checksum=checksum).lost == []


def test_from_the_previous_checkpoint_it_ends_with_the_same_bits(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    os.truncate(tmp_path / "run" / "latest.pt", 5000)
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert "latest.pt is damaged (it is cut short or overwritten, or no checkpoint); restore it, or delete it" in output
    offered = f"previous.pt beside it is intact, of epoch 1; to continue from there: mv {tmp_path}/run/previous.pt "
    assert offered + f"{tmp_path}/run/latest.pt" in output
    (tmp_path / "run" / "previous.pt").rename(tmp_path / "run" / "latest.pt")
    assert resume(tmp_path / "run")[0] == 0
    assert_same_run(tmp_path / "run", whole)


def test_a_previous_checkpoint_is_offered_only_if_it_is_intact(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for name in ("latest.pt", "previous.pt"):
        with (tmp_path / "run" / name).open("r+b") as file:
            file.seek(3000)
            byte = file.read(1)
            file.seek(3000)
            file.write(bytes([byte[0] ^ 4]))
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert "(its SHA-256 checksum does not fit its content: bytes were lost or have changed)" in output
    assert "previous.pt" not in output


def test_without_the_latest_checkpoint_the_user_decides(tmp_path: Path, whole: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "latest.pt").unlink()
    status, output = resume(tmp_path / "run")
    assert status == 1
    assert "latest.pt is missing, but previous.pt is there; rename that to latest.pt" in output
    (tmp_path / "run" / "previous.pt").unlink()
    assert resume(tmp_path / "run")[0] == 0
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("links", [True, False])
def test_the_previous_checkpoint_is_that_of_the_epoch_before(
    tmp_path: Path, whole: Path, links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def link(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    one_epoch(tmp_path)
    assert not (tmp_path / "previous.pt").exists()
    first = (tmp_path / "latest.pt").read_bytes()
    run(tmp_path)
    assert (tmp_path / "previous.pt").read_bytes() == first
    assert torch.load(tmp_path / "latest.pt", weights_only=True)["epoch"] == 2  # PyTorch alone reads it, too
    assert_same_run(tmp_path, whole)
    assert not list(tmp_path.glob(".*"))


def bomb(file: Path) -> None:
    """A checkpoint of 1 MB that unpacks to 1 GB."""
    import zipfile

    torch.save({"model": {"x": torch.zeros(10)}}, file)
    with zipfile.ZipFile(file) as source:
        kept = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, data in kept.items():
            target.writestr(name, data if not name.endswith("/0") else b"\0" * 10_000_000)


@pytest.mark.parametrize(
    ("break_it", "reason"),
    [
        (bomb, "its content is compressed, as PyTorch never writes it"),
        (lambda file: file.write_bytes(b"PK\x05\x06" + bytes(18)), "damaged ("),
        (lambda file: (file.unlink(), os.mkfifo(file)), "it is no regular file"),
        (lambda file: (file.unlink(), file.symlink_to("/dev/zero")), "it is no regular file"),
    ],
)
def test_hostile_checkpoints_are_named(tmp_path: Path, break_it: Callable[[Path], object], reason: str) -> None:
    run(tmp_path, replace(TINY, epochs=1))
    break_it(tmp_path / "latest.pt")
    status, output = resume(tmp_path)
    assert status == 1
    assert f"{tmp_path}/latest.pt is damaged" in output
    assert reason in output


# --------------------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk; other tests limit the size of files")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_cleanly_and_it_goes_on_with_the_same_bits(small_disk: Path, whole: Path) -> None:
    folder = small_disk / "run"
    one_epoch(folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if "tfevents" not in file.name}
    filler = small_disk / "filler"
    free = os.statvfs(small_disk)
    filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 200_000))  # room for the text files
    status, output = resume(folder)
    assert status == 1
    assert re.search(
        rf"Error: {folder}/\w+.pt cannot be written \(No space left on device\); free space on that disk. "
        rf"The file that was there is unchanged. All earlier epochs are saved; then continue with: "
        rf"cawa-fast train --resume --run-dir {folder}",
        output,
    ), output
    assert before == {file.name: file.read_bytes() for file in folder.iterdir() if "tfevents" not in file.name}
    filler.unlink()
    assert resume(folder)[0] == 0
    assert_same_run(folder, whole)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["os.fsync", "os.replace"])
def test_a_file_that_cannot_be_written_is_named_and_loses_nothing(
    tmp_path: Path, whole: Path, name: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a disk that refuses one file of the second epoch."""
    one_epoch(tmp_path)
    before = {file: (tmp_path / file).read_bytes() for file in FILES}
    original = getattr(os, place.removeprefix("os."))

    def refuse(*args: Any) -> Any:
        # fsync gets a number, of which the system knows the name
        path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args[0])
        if f"/.{name}." in path and armed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    armed = False
    monkeypatch.setattr(place, refuse)
    trainer = Trainer(TINY, RunFolder(tmp_path), Silent())  # writes results again
    armed = True
    with pytest.raises(OSError, match=re.escape(f"{tmp_path}/{name} cannot be written (No space left on device)")):
        trainer.fit()
    assert (tmp_path / name).read_bytes() == before[name]
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert resume(tmp_path)[0] == 0
    assert_same_run(tmp_path, whole)


def test_a_limit_of_file_sizes_is_named(tmp_path: Path, whole: Path) -> None:
    """The error that ``torch.save`` raises for it says nothing."""
    one_epoch(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        status, output = resume(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert "pt cannot be written (File too large); raise the limit of file sizes (ulimit -f)" in output
    assert resume(tmp_path)[0] == 0
    assert_same_run(tmp_path, whole)


def test_a_run_goes_on_without_tensorboard(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RecordWriter, "write", write)
    with caplog.at_level(logging.WARNING):
        run(tmp_path)
    assert_same_run(tmp_path, whole)
    assert caplog.text.count("events cannot be written") == 1
    assert "(No space left on device); the run goes on without them" in caplog.text


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fake_run(tmp_path / "run", "uniform", checkpoint=False)
    page = write_report([folder], tmp_path / "page.html", images=0)
    before = page.read_bytes()

    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    result = invoke("report", str(folder), "--out", str(page), "--images", "0")
    assert result.exit_code == 1
    assert f"{page} cannot be written (No space left on device)" in result.output.replace("\n", "")
    assert page.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["page.html", "run"]


# ---------------------------------------------------------------------------------------------------------- folders


def test_a_run_folder_that_is_deleted_meanwhile_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(OSError, match=f"the run folder {folder} is gone: it was deleted or moved while the run wrote"):
        Trainer(TINY, RunFolder(folder), StopAfter(1, lambda: folder.rename(tmp_path / "elsewhere"))).fit()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: path.symlink_to("/no/such/folder"), "there is a file or a broken link of that name"),
        (lambda path: path.symlink_to("/dev/null"), "is a file"),
        (lambda path: path.parent.rmdir() or path.parent.write_text(""), "a part of its path is a file"),
    ],
)
def test_a_run_folder_that_is_none_is_named(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    (tmp_path / "runs").mkdir()
    folder = tmp_path / "runs" / "a"
    make(folder)
    result = invoke("train", "--run-dir", str(folder), "--epochs", "1", "--train-images", "8")
    assert result.exit_code in (1, 2)
    assert str(folder) in result.output.replace("\n", "")
    assert message in result.output


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = os.open

    def refuse(path: Any, flags: int, *rest: int, **more: Any) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT:
            raise OSError(code, os.strerror(code), str(path))
        return original(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    result = invoke("train", "--run-dir", str(tmp_path / "run"), "--epochs", "1", "--train-images", "8")
    assert result.exit_code == 1
    assert f"{tmp_path}/run/.lock cannot be written ({os.strerror(code)})" in result.output.replace("\n", "")
    assert "choose another place" in result.output
    assert os.listdir(tmp_path) == []


def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the umask of the process, which its other threads use, is never changed."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched, atomic(tmp_path / "file") as file:
            patched.setattr(os, "umask", None)
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_temporary_file_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cawa_fast.recipes.files.secrets.token_hex", lambda size: "guessed")
    (tmp_path / "precious").write_text("content")
    (tmp_path / ".file.guessed").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="cannot be written"), atomic(tmp_path / "file") as file:
        file.write(b"x")
    assert (tmp_path / "precious").read_text() == "content"
    assert (tmp_path / ".file.guessed").is_symlink()
