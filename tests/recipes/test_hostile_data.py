"""Files of a dataset that somebody else made: no file hangs, fills the memory, runs code or ends in a traceback."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cawa_fast.recipes.datasets import FolderDataset
from cawa_fast.recipes.datasets.class_list import read_class_list
from cawa_fast.recipes.datasets.image_files import read_header, read_rgb
from cawa_fast.recipes.datasets.label_statistics import collect_label_statistics
from cawa_fast.recipes.datasets.labels import LabelRule, read_codes
from cawa_fast.recipes.datasets.text_files import read_text
from tests.support import trees

RULE = LabelRule({0: 0}, "0", "remap them")
SECONDS = 5  # at most, for what takes milliseconds


@pytest.fixture(autouse=True)
def soon() -> object:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS


@pytest.mark.parametrize("count", [4000, 100_000])
@pytest.mark.parametrize("line", ["sky{0}x", "sky{0}1", "1{0}x", "sky{0}=>{0}", "sky 1{0}2 x", "a{0}#00ff00"])
def test_class_lists_with_many_blanks(tmp_path: Path, count: int, line: str) -> None:
    (tmp_path / "classes.txt").write_text("road 7\n" + line.format(" " * count) + "\n")
    with contextlib.suppress(ValueError):
        assert len(read_class_list(tmp_path / "classes.txt").names) == 2


@pytest.mark.parametrize(
    ("line", "entry"),
    [
        ("sky  7", ("sky", 7)),
        ("sky : 7", ("sky", 7)),
        ("sky -> 7", ("sky", 7)),
        ("7  =>  sky", ("sky", 7)),
        ("7)  sky  blue", ("sky  blue", 7)),
        ("7  sky", ("sky", 7)),
        ("sky\t=\t7", ("sky", 7)),
    ],
)
def test_blanks_around_numbers_mean_what_they_did(tmp_path: Path, line: str, entry: tuple[str, int]) -> None:
    (tmp_path / "classes.txt").write_text(f"{line}\n{line.replace('7', '8').replace('sky', 'sea')}\n")
    found = read_class_list(tmp_path / "classes.txt")
    assert found.names == (entry[0], entry[0].replace("sky", "sea"))
    assert [value for value in found.rule.classes if value != 255] == [7, 8]


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(8)
)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.json", "[" * 100_000, "nested too deeply"),
        ("classes.json", '{"names":' * 5000 + "1" + "}" * 5000, "nested too deeply"),
        ("classes.yaml", "names: " + "[" * 3000, "nested too deeply"),
        ("classes.yaml", "names: &a [*a]", "is not YAML"),
        ("classes.yaml", "&a {names: *a}", "is not YAML"),
        ("classes.yaml", ALIASES + "names: *i", "has no name"),
        ("classes.yaml", '!!python/object/apply:os.system ["touch pwned"]', "is not YAML"),
        ("classes.json", '[{"name": "a", "color": [Infinity, 1, 2]}]', "is not a colour"),
        ("classes.json", '[{"name": "a", "color": [1e999, 1, 2]}]', "is not a colour"),
        ("classes.json", '[{"name": "a", "id": ' + "9" * 5000 + "}]", "is no id and no colour"),
        ("classes.csv", "name,r,g,b\n" + "a" * 200_000 + ",1,2,3\n", r"line 2: no line of a table \(field larger"),
    ],
)
def test_class_lists_that_nobody_would_write(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_class_list(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not Path("pwned").exists()


def test_names_with_half_a_character_are_kept(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(r'["road", "\ud800"]')
    assert read_class_list(tmp_path / "classes.json").names == ("road", "\ud800")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [pipe, device])
@pytest.mark.parametrize("read", [lambda file: read_codes(file, RULE), read_header, read_rgb, read_text])
def test_pipes_and_devices_are_refused(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path], object]
) -> None:
    file = tmp_path / "a.png"
    make(file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is a pipe or a device, not a file")):
        read(file)


def test_a_text_file_of_a_terabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").touch()
    os.truncate(tmp_path / "train.txt", 1 << 40)
    with pytest.raises(ValueError, match="has 1099511627776 bytes, too many for a text file"):
        read_text(tmp_path / "train.txt")


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    trees.folder(tmp_path, "val", [trees.stripes([k]) for k in range(2)])
    for name in ("a", "b"):
        (tmp_path / "images" / "val" / name).symlink_to(".")
        (tmp_path / "masks" / "val" / name).symlink_to("..")
    assert len(FolderDataset(tmp_path, "val")) == 2


def test_a_folder_that_is_linked_twice_counts_twice(tmp_path: Path) -> None:
    """It is no circle, and the user may have meant it."""
    trees.folder(tmp_path, "val", [trees.stripes([k]) for k in range(2)])
    for kind in ("images", "masks"):
        (tmp_path / kind / "val").rename(tmp_path / kind / "all")
        (tmp_path / kind / "val").mkdir()
        for name in ("a", "b"):
            (tmp_path / kind / "val" / name).symlink_to(tmp_path / kind / "all")
    assert len(FolderDataset(tmp_path, "val")) == 4


def grey_png(width: int, height: int) -> bytes:
    """A PNG of zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(width + 1)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_an_image_of_gigabytes_in_a_small_file_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(grey_png(20_000, 20_000))
    assert file.stat().st_size < 500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"a\.png is too large for Pillow \(Image size \(400000000 pixels\)"):
        read_codes(file, RULE)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_large_map_within_the_limit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(grey_png(9000, 9000))
    assert read_codes(file, RULE).shape == (9000, 9000)


def test_a_matlab_file_of_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    io = pytest.importorskip("scipy.io")
    io.savemat(tmp_path / "a.mat", {"S": np.zeros((20, 30), dtype=np.uint8)}, do_compression=True)
    assert read_codes(tmp_path / "a.mat", RULE).shape == (20, 30)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ValueError, match="S has 20x30 pixels, more than any image"):
        read_codes(tmp_path / "a.mat", RULE)


@pytest.mark.parametrize("name", ["counts", "values", "sizes", "ends"])
def test_an_edited_cache_of_statistics_is_not_believed(tmp_path: Path, name: str) -> None:
    trees.folder(tmp_path, "val", [trees.stripes(range(4)) for _ in range(3)])
    first = collect_label_statistics(FolderDataset(tmp_path, "val"))
    assert first.cache_file is not None
    with np.load(first.cache_file) as stored:
        arrays = dict(stored)
    arrays[name] = arrays[name][::-1] if name in ("values", "ends") else arrays[name] + 1
    np.savez_compressed(first.cache_file, **arrays)
    again = collect_label_statistics(FolderDataset(tmp_path, "val"))
    assert again.labels == first.labels
    assert again.read > 0


def test_a_cache_that_unpacks_to_gigabytes_is_not_read(tmp_path: Path) -> None:
    import zipfile

    trees.folder(tmp_path, "val", [trees.stripes(range(4))])
    file = collect_label_statistics(FolderDataset(tmp_path, "val")).cache_file
    assert file is not None
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("names.npy", b"x")
    content = file.read_bytes()
    place = content.index(b"PK\x01\x02") + 24  # the size that the directory states
    file.write_bytes(content[:place] + struct.pack("<I", 0xFFFFFFF0) + content[place + 4 :])
    assert collect_label_statistics(FolderDataset(tmp_path, "val")).read == 1
