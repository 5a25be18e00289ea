"""What a run is trained on, in a form that can be kept and compared in words."""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..datasets import FileDataset, SegmentationDataset
from ..datasets.labels import IGNORE, code_names
from ..json_values import anything, listed, parse_json

_SHOWN = 3  # names of each kind of difference

_Files = list[list[Any]]  # of each pair: image, its size in bytes, label, its size


def describe_data(
    train_set: SegmentationDataset, val_set: SegmentationDataset, test_set: SegmentationDataset | None = None
) -> dict[str, Any]:
    """What a run is trained on, as plain values for ``dataset.json`` and the checkpoint. Reads no file.

    ``class_names``, ``palette``, ``ignore_index``, ``train_images``, ``val_images`` and, with test images,
    ``test_images``; for datasets of files also

    - ``labels``: the class of each value or colour in the label files, None if it is ignored;
    - ``files``: for each split the pairs in their order, relative to the root so that the folder may be moved, with
      the size of each file. Packed (JSON, zlib, base64), since COCO-Stuff has 236,574 training files.
    """
    sets = {"train": train_set, "val": val_set} | ({} if test_set is None else {"test": test_set})
    described: dict[str, Any] = {
        "class_names": list(train_set.class_names),
        "palette": [list(colour) for colour in train_set.palette],
        "ignore_index": train_set.ignore_index,
        **{f"{split}_images": len(dataset) for split, dataset in sets.items()},
    }
    files = {split: dataset for split, dataset in sets.items() if isinstance(dataset, FileDataset)}
    if isinstance(train_set, FileDataset) and len(files) == len(sets):
        classes = train_set.rule.classes
        described["labels"] = {
            code_names([code])[1:-1]: None if classes[code] == IGNORE else classes[code] for code in sorted(classes)
        }
        described["files"] = {split: _pack(_listing(dataset)) for split, dataset in files.items()}
    return described


def data_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, how two results of :func:`describe_data` differ; empty if they do not. Only what both hold counts.

    Example:
        >>> data_differences({"class_names": ["a", "b"]}, {"class_names": ["b", "a"]})
        ["the classes have another order: 'b' was class 1 and is now class 0, 'a' was class 0 and is now class 1"]
        >>> data_differences({"train_images": 7}, {"train_images": 8, "val_images": 2})
        ['train had 7 images and has 8']
    """
    both = then.keys() & now.keys()
    found = class_differences(then["class_names"], now["class_names"]) if "class_names" in both else []
    if "ignore_index" in both and then["ignore_index"] != now["ignore_index"]:
        found.append(f"ignore_index was {then['ignore_index']} and is now {now['ignore_index']}")
    if "labels" in both and not found:  # with other classes every value means something else
        found += _label_differences(then["labels"], now["labels"], now["class_names"])
    for split in ("train", "val", "test"):
        images, pixels = f"{split}_images", f"{split}_pixels"
        listed = []
        kept = "files" in both and split in then["files"] and split in now["files"]
        if kept and then["files"][split] != now["files"][split]:
            listed = _file_differences(split, _unpack(then["files"][split]), _unpack(now["files"][split]))
        if not listed and images in both and then[images] != now[images]:
            listed = [f"{split} had {then[images]} images and has {now[images]}"]
        if not (found or listed) and pixels in both and then[pixels] != now[pixels]:
            changes = [
                f"{name!r} had {before} and has {after}"
                for name, before, after in zip(now["class_names"], then[pixels], now[pixels], strict=True)
                if before != after
            ]
            listed = [f"the labels of {split} have other pixels: {_some(changes)}"]
        found += listed
    return found


def class_differences(then: Sequence[str], now: Sequence[str]) -> list[str]:
    """In words, how two lists of class names differ; empty if they do not.

    Example:
        >>> class_differences(["road", "car"], ["road", "car", "pole"])
        ["the class list has gained 'pole' as class 2"]
    """
    found = []
    same_length = len(then) == len(now)
    renamed = {k for k in range(len(now)) if same_length and now[k] not in then and then[k] not in now}
    if renamed:
        found.append(_some([f"class {k} was {then[k]!r} and is now {now[k]!r}" for k in sorted(renamed)]))
    if added := [f"{name!r} as class {k}" for k, name in enumerate(now) if name not in then and k not in renamed]:
        found.append(f"the class list has gained {_some(added)}")
    if gone := [f"{name!r}, class {k}" for k, name in enumerate(then) if name not in now and k not in renamed]:
        found.append(f"the class list has lost {_some(gone)}")
    if [name for name in then if name in now] != [name for name in now if name in then]:
        moved = [
            f"{name!r} was class {then.index(name)} and is now class {k}"
            for k, name in enumerate(now)
            if name in then and then.index(name) != k
        ]
        found.append(f"the classes have another order: {_some(moved)}")
    return found


def removed_files(then: Mapping[str, Any], root: Path) -> list[str]:
    """In words, which files of a run are no longer under the root, for each split."""
    found = []
    for split, packed in then.get("files", {}).items():
        if gone := [name for name in _sizes(_unpack(packed)) if not (root / name).exists()]:
            found.append(f"{_counted(gone)} of {split}")
    return found


def _label_differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    def meaning(labels: Mapping[str, Any], code: str) -> str:
        if code not in labels:
            return "not allowed"
        return "ignored" if labels[code] is None else repr(names[labels[code]])

    changes = [
        f"{code} was {meaning(then, code)} and is now {meaning(now, code)}"
        for code in dict.fromkeys([*then, *now])
        if meaning(then, code) != meaning(now, code)
    ]
    return [f"values in the label files have another meaning: {_some(changes)}"] if changes else []


def _file_differences(split: str, then: _Files, now: _Files) -> list[str]:
    before, after = _sizes(then), _sizes(now)
    found = []
    if new := [name for name in after if name not in before]:
        found.append(f"{split} has gained {_counted(new)}")
    if gone := [name for name in before if name not in after]:
        found.append(f"{split} has lost {_counted(gone)}")
    sized = [name for name in after if name in before and before[name] != after[name]]
    if sized:
        texts = [f"{name!r} had {before[name]} bytes and has {after[name]}" for name in sized]
        found.append(f"files of {split} have changed: {_some(texts)}")
    if found:
        return found
    first = next(k for k in range(len(now)) if then[k] != now[k])
    if then[first][0] != now[first][0]:
        return [f"{split} has another order: image {first} was {then[first][0]!r} and is now {now[first][0]!r}"]
    return [f"{split} has other pairs: the label of {now[first][0]!r} was {then[first][2]!r} and is {now[first][2]!r}"]


def _counted(names: Sequence[str]) -> str:
    listed = _some([repr(name) for name in names])
    return f"the file {listed}" if len(names) == 1 else f"{len(names)} files: {listed}"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more


def _sizes(files: _Files) -> dict[str, int | None]:
    return {
        name: size for image, image_size, label, size_ in files for name, size in ((image, image_size), (label, size_))
    }


def _listing(dataset: FileDataset) -> Iterable[list[Any]]:
    prefix = f"{dataset.root}{os.sep}"
    for pair in dataset.pairs:
        image, label = (str(file).removeprefix(prefix).replace(os.sep, "/") for file in pair)
        yield [image, _size(pair.image), label, _size(pair.label)]


def _size(file: Path) -> int | None:
    try:
        return os.stat(file).st_size
    except OSError:  # an error where the file is read
        return None


def _pack(listing: Iterable[list[Any]]) -> str:
    return base64.b64encode(zlib.compress(json.dumps(list(listing)).encode())).decode()


_LARGEST = 1 << 28  # bytes of a list of files; that of COCO-Stuff has 20 million


def _unpack(packed: str) -> _Files:
    """Raises a ``ValueError`` if this is no result of :func:`_pack`."""
    try:
        unpacker = zlib.decompressobj()
        listing = unpacker.decompress(base64.b64decode(packed), _LARGEST)
        if unpacker.unconsumed_tail:
            raise ValueError(f"it unpacks to more than {_LARGEST} bytes")
        files = parse_json(listing.decode())
        _LISTING(files, "files")
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the list of files that the run keeps is damaged ({error}); restore dataset.json") from error
    if any(len(pair) != 4 or not isinstance(pair[0], str) or not isinstance(pair[2], str) for pair in files):
        raise ValueError("the list of files that the run keeps is damaged (a pair is no pair); restore dataset.json")
    return files


_LISTING = listed(listed(anything))
