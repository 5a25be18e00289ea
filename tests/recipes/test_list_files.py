"""Lists of files as people and tools write them: encodings, quotes, blanks, backslashes, errors that name a line."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from pathlib import Path

import pytest

from cawa_fast.recipes.datasets import CamVidDataset, COCOStuff10kDataset, FolderDataset, VOCDataset
from cawa_fast.recipes.datasets.text_files import read_lines, split_words
from tests.support import trees
from tests.support.tiny_runs import invoke

PAIRS = "images/val/0.jpg masks/val/0.png\nimages/val/1.jpg masks/val/1.png\n"


@pytest.fixture
def root(tmp_path) -> Path:
    trees.folder(tmp_path, "val", [trees.stripes([k]) for k in range(4)])
    return tmp_path


def labels(root: Path, listing: str | bytes, cls=FolderDataset) -> list[int]:
    """The class that each listed label map shows."""
    (root / "val.txt").write_bytes(listing if isinstance(listing, bytes) else listing.encode())
    data = cls(root, "val")
    return [int(data.read(k)[1][0, 0]) for k in range(len(data))]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(root, encoding, end):
    assert labels(root, PAIRS.replace("\n", end).encode(encoding)) == [0, 1]


@pytest.mark.parametrize(
    "listing",
    [
        "# image mask\n\nimages/val/2.jpg masks/val/2.png\n  \n",
        "images/val/2.jpg\tmasks/val/2.png",
        "\"images/val/2.jpg\" 'masks/val/2.png'\n",
        "images/val/2.jpg,masks/val/2.png\n",
        "images/val/2.jpg ; masks/val/2.png\n",
        "images\\val\\2.jpg masks\\val\\2.png\n",
        "C:\\data\\images\\val\\2.jpg\tD:\\old masks\\masks\\val\\2.png\n",
        "/elsewhere/images/val/2.jpg /elsewhere/masks/val/2.png\n",
        "./images/val/2.jpg ./masks/../masks/val/2.png\n",
    ],
)
def test_forms_of_a_line(root, listing):
    assert labels(root, listing) == [2]
    (root / "images" / "val").rename(root / "val")
    (root / "masks" / "val").rename(root / "valannot")
    listing = listing.replace("images\\val", "val").replace("images/val", "val")
    listing = listing.replace("masks\\val", "valannot").replace("masks/val", "valannot").replace("masks/../", "")
    assert labels(root, listing, CamVidDataset) == [2]


@pytest.mark.parametrize(
    "line", ['"{0}" "{1}"', "{0}\t{1}", "{0} {1}", "'{0}' '{1}'", "{0}, {1}", '{0} "{1}"', "{0}\t'{1}'"]
)
def test_names_with_blanks(root, line):
    folder = root / "my images"
    folder.mkdir()
    for kind, file in (("images", "3.jpg"), ("masks", "3.png")):
        shutil.copy(root / kind / "val" / file, folder / f"it's 1 of {file}")
    assert labels(root, line.format("my images/it's 1 of 3.jpg", "my images/it's 1 of 3.png")) == [3]


@pytest.mark.parametrize("name", ["{0}/{1}", "../outside/{1}", "images/../../outside/{1}"])
@pytest.mark.parametrize("cls", [FolderDataset, CamVidDataset])
def test_files_outside_the_root_need_permission(tmp_path, name, cls):
    root, other = tmp_path / "inner" / "root", tmp_path / "inner" / "outside"
    trees.folder(root, "val", [trees.stripes([k]) for k in range(4)])
    trees.folder(other, "val", [trees.stripes([3])])
    (root / "images").mkdir(exist_ok=True)
    image, mask = name.format(other, "images/val/0.jpg"), name.format(other, "masks/val/0.png")
    (root / "val.txt").write_text(f"{image} {mask}\n")
    message = rf"val\.txt, line 1: '{re.escape(image)}' is outside {root}; .* with --allow-outside-root"
    with pytest.raises(ValueError, match=message):
        cls(root, "val")
    data = cls(root, "val", allow_outside_root=True)
    assert int(data.read(0)[1][0, 0]) == 3


def test_an_absolute_path_under_the_root_is_taken_as_it_is(root):
    assert labels(root, f"{root}/images/val/3.jpg {root}/masks/val/3.png\n") == [3]


def test_links_under_the_root_may_lead_elsewhere(root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    trees.folder(other, "val", [trees.stripes([3])])
    (root / "more").symlink_to(other)
    assert labels(root, "more/images/val/0.jpg more/masks/val/0.png\n") == [3]


def test_a_line_of_many_blanks_ends_soon(root):
    start = time.monotonic()
    for line in ("a " * 30_000, "x" * 70_000 + " b.png", "images/val/0.jpg" + " " * 50_000 + "masks/val/0.png"):
        (root / "val.txt").write_text(line)
        with contextlib.suppress(FileNotFoundError, ValueError):
            FolderDataset(root, "val")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("images/val/0.jpg\n", r"val\.txt, line 1: expected 'image annotation', found 'images/val/0\.jpg'; put names"),
        (PAIRS + "\n# more\na b c.jpg x y.png\n", r"val\.txt, line 5: expected 'image annotation', found 'a b c\.jpg"),
        ("# nothing\n\n", r"val\.txt lists no pairs; complete it, or delete it"),
        ("", r"val\.txt lists no pairs"),
        ("\ufeff", r"val\.txt lists no pairs"),
        (PAIRS.encode() + "Stra\u00dfe.jpg b.png\n".encode("latin-1"), r"val\.txt is not a text file .*\(line 3: "),
        (b"PK\x03\x04\x00\x00\x08\x00", r"val\.txt is not a text file"),
    ],
)  # fmt: skip
def test_lines_that_cannot_be_read_are_named(root, listing, message):
    with pytest.raises(ValueError, match=message):
        labels(root, listing)


@pytest.mark.parametrize(
    ("line", "absent"),
    [
        ("images/val/9.jpg masks/val/0.png", "images/val/9.jpg"),
        ("images/val/0.jpg,masks/val/9.png", "masks/val/9.png"),
        ('"my images/0.jpg" masks/val/0.png', "my images/0.jpg"),
        ("image mask", "image"),
    ],
)
def test_files_that_do_not_exist_are_named_with_their_line(root, line, absent):
    with pytest.raises(FileNotFoundError, match=rf"val\.txt, line 3: '{absent}' is not under .*\(1 such files\)"):
        labels(root, PAIRS + line)


def test_repeated_lines_are_kept_and_known(root):
    (root / "val.txt").write_text(PAIRS + "\nimages/val/1.jpg\tmasks/val/1.png\nimages/val/1.jpg masks/val/2.png\n")
    data = FolderDataset(root, "val")
    assert len(data) == 4
    assert [repeated.where for repeated in data.repeated] == [f"{root}/val.txt, line {k}" for k in (4, 5)]


def test_label_maps_in_jpeg_are_named_where_there_are_no_others(root):
    for file in list((root / "masks" / "val").iterdir()):
        file.rename(file.with_suffix(".jpg"))
    with pytest.raises(FileNotFoundError, match=r"holds no label maps \(\*\.png, .*\); JPEG cannot hold labels"):
        FolderDataset(root, "val")


def test_a_label_map_in_jpeg_is_no_partner(root):
    (root / "masks" / "val" / "2.png").rename(root / "masks" / "val" / "2.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"2\.jpg has no partner named 2\.\* in .*; 2\.jpg cannot hold labels, since"
    ):
        FolderDataset(root, "val")


# -- lists of names -------------------------------------------------------------------------------------------------


def voc_with(root: Path, listing: bytes) -> VOCDataset:
    trees.voc(root, "val", [trees.stripes([k]) for k in range(3)])
    base = root / "VOCdevkit" / "VOC2012"
    for folder, suffix in (("JPEGImages", ".jpg"), ("SegmentationClass", ".png")):
        shutil.copy(base / folder / f"val_000002{suffix}", base / folder / f"my photo{suffix}")
    (base / "ImageSets" / "Segmentation" / "val.txt").write_bytes(listing)
    return VOCDataset(root, "val")


@pytest.mark.parametrize(
    ("listing", "names"),
    [
        ("\ufeffval_000001\r\nval_000000\r\n".encode(), ["val_000001", "val_000000"]),
        ("val_000001\n".encode("utf-16"), ["val_000001"]),
        (b"# mine\nval_000001  1\nval_000002 -1\n", ["val_000001", "val_000002"]),
        (b"val_000000.jpg\n'val_000001'\n", ["val_000000", "val_000001"]),
        (b'my photo\n"my photo"\nmy photo\t1\n', ["my photo"] * 3),
    ],
)
def test_lists_of_names(tmp_path, listing, names):
    data = voc_with(tmp_path, listing)
    assert [pair.image.stem for pair in data.pairs] == names
    assert len(data.repeated) == len(names) - len(set(names))


def test_names_that_are_not_there_are_named_with_their_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val\.txt, line 3: 'gone' is listed, but neither .*gone\.jpg nor "):
        voc_with(tmp_path, b"val_000000\n\ngone\n")
    with pytest.raises(ValueError, match=r"val\.txt is not a text file in UTF-8 \(line 2"):
        voc_with(tmp_path, "val_000000\nStra\u00dfe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"val\.txt lists no images"):
        voc_with(tmp_path, b"# all gone\n")


def test_coco_lists(tmp_path):
    trees.coco_stuff10k(tmp_path, "val", [trees.stripes([1, 2])])
    listing = tmp_path / "imagesLists" / "test.txt"
    listing.write_bytes(listing.read_text().replace("\n", "\r\n").encode("utf-16"))
    assert len(COCOStuff10kDataset(tmp_path, "val")) == 1


# -- the parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b", ["a", "b"]),
        ("'a b' \"c d\"", ["a b", "c d"]),
        ("it's b", ["it's", "b"]),
        ("'a b\tc d", ["'a b", "c d"]),
        ('"" b', ["b"]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


def test_lines_know_their_place(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("\n# no\n x \n\ny")
    assert [(line.where, line.text) for line in read_lines(file)] == [
        (f"{file}, line 3", "x"),
        (f"{file}, line 5", "y"),
    ]


def test_the_command_line_gives_permission(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for split in ("train", "val"):
        trees.folder(other, split, [trees.stripes(range(4)) for _ in range(2)])
        trees.folder(root, split, [trees.stripes(range(4))])
        names = [f"../other/images/{split}/{k}.jpg ../other/masks/{split}/{k}.png" for k in range(2)]
        (root / f"{split}.txt").write_text("\n".join(names))
    words = ["--dataset", "folder", "--root", str(root), "--device", "cpu", "--epochs", "1", "--batch-size", "2"]
    words = ["train", "--run-dir", str(tmp_path / "run"), "--no-tables", "--crop", "32", "--workers", "0", *words]
    assert "'../other/images/train/0.jpg' is outside" in invoke(*words).output.replace("\n", "")
    assert not (tmp_path / "run").exists()
    shown = invoke(*words, "--allow-outside-root")
    assert shown.exit_code == 0, shown.output
    shown = invoke("train", "--resume", "--run-dir", str(tmp_path / "run"))  # it is a setting of the run
    assert shown.exit_code == 0, shown.output

    checked = ["doctor", "data", "--dataset", "folder", "--root", str(root), "--no-picture"]
    assert "--allow-outside-root" in invoke(*checked).output
    assert "2 images" in invoke(*checked, "--allow-outside-root").output
    message = "'street' reads no lists of files; leave it out"
    assert message in invoke("train", "--run-dir", str(tmp_path / "x"), "--allow-outside-root").output
