"""The checks of ``cawa-fast doctor data`` on the statistics of a split's files.

``cawa-fast train`` makes the same checks before its first batch, on a sample; see :mod:`.preflight`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .. import FileDataset
from ..label_statistics import LabelRecord, LabelStatistics
from ..labels import IGNORE, code_names
from ..text_files import some

_FEW = 20  # label maps. In fewer, a value may be absent by chance.


@dataclass(frozen=True)
class Finding:
    """One kind of fault in a split.

    Attributes:
        severity: "error", "warning" or "note".
        rule: a short, stable name, for scripts.
        split: the split, or two of them.
        text: what is wrong, and what to do about it.
        files: all files with the fault, sorted; empty if it is not in single files.
        details: lines with values and pixel counts.
    """

    severity: str
    rule: str
    split: str
    text: str
    files: tuple[str, ...] = ()
    details: tuple[str, ...] = ()


@dataclass
class Findings:
    """Collects the findings of one split."""

    split: str
    list: list[Finding] = field(default_factory=list)

    def add(
        self, severity: str, rule: str, text: str, files: Iterable[object] = (), details: Sequence[str] = ()
    ) -> None:
        names = tuple(sorted(str(file) for file in files))
        self.list.append(Finding(severity, rule, self.split, text, names, tuple(details)))


def class_totals(dataset: FileDataset, labels: Sequence[LabelRecord]) -> tuple[np.ndarray, np.ndarray, int]:
    """Pixels per class, images per class, and ignored pixels. Unknown codes are not counted."""
    pixels = np.zeros(256, dtype=np.int64)
    images = np.zeros(256, dtype=np.int64)
    for record in labels:
        classes = [dataset.rule.classes.get(value) for value in record.values]
        for index, n in zip(classes, record.pixels, strict=True):
            if index is not None:
                pixels[index] += n
        images[list({index for index in classes if index is not None})] += 1
    return pixels[: dataset.num_classes], images[: dataset.num_classes], int(pixels[IGNORE])


def check_split(
    dataset: FileDataset,
    statistics: LabelStatistics,
    totals: tuple[np.ndarray, int],
    found: Findings,
    counted: np.ndarray | None = None,
) -> None:
    """All checks of a split.

    Args:
        dataset: the split, or the part of it that was looked at.
        statistics: of its files.
        totals: pixels per class and ignored pixels in these files.
        found: takes the findings.
        counted: pixels per class in the whole split, if ``dataset`` is a part of it.
    """
    _check_pairs(dataset, found)
    check_files(dataset, statistics, found)
    check_values(dataset, statistics, found)
    check_classes(dataset, statistics, totals, found, totals[0] if counted is None else counted)


def _check_pairs(dataset: FileDataset, found: Findings) -> None:
    """Files without a partner, files that are left out, and files that are listed twice."""
    for missing in ("image", "label", "both"):
        if lonely := [unpaired for unpaired in dataset.unpaired if unpaired.missing == missing]:
            text = {
                "image": "label maps without an image",
                "label": "images without a label map",
                "both": "listed pairs of which neither file exists",
            }[missing]
            found.add(
                "error",
                f"missing-{missing}",
                f"{len(lonely)} {text}, such as: {lonely[0].text}",
                [unpaired.file for unpaired in lonely],
            )
    if dataset.shadowed:
        file, used = dataset.shadowed[0]
        found.add(
            "warning",
            "same-stem",
            f"{len(dataset.shadowed)} files are not used, since others have the same name but for the suffix, such as "
            f"{file} beside {used.name}; remove those that are not meant",
            [shadowed.file for shadowed in dataset.shadowed],
        )
    if dataset.repeated:
        where, file = dataset.repeated[0]
        found.add(
            "warning",
            "listed-twice",
            f"{len(dataset.repeated)} lines of the list have an image that an earlier line has, such as {where}: "
            f"{file}; it counts twice. Remove the repetitions if they are not meant",
            [repeated.file for repeated in dataset.repeated],
        )


def check_files(dataset: FileDataset, statistics: LabelStatistics, found: Findings) -> None:
    """Files that cannot be read, sizes, and properties of images that training does not expect."""
    images = statistics.images or []
    if broken := [(pair.label, r.error) for pair, r in zip(dataset.pairs, statistics.labels, strict=True) if r.error]:
        found.add(
            "error",
            "unusable-label",
            f"{len(broken)} label files cannot be used, such as: {broken[0][1]}",
            [file for file, _ in broken],
        )
    if bad := [(pair.image, r.error) for pair, r in zip(dataset.pairs, images, strict=True) if r and r.error]:
        found.add(
            "error",
            "unusable-image",
            f"{len(bad)} images cannot be read, such as: {bad[0][1]}",
            [file for file, _ in bad],
        )
    whole = [
        (pair, image.header, label)
        for pair, image, label in zip(dataset.pairs, images, statistics.labels, strict=True)
        if image is not None and image.error is None and label.error is None
    ]
    if differ := [(pair, image, label) for pair, image, label in whole if label.size not in (image.size, image.stored)]:
        _, image, label = differ[0]
        found.add(
            "error",
            "size-differs",
            f"{len(differ)} label maps differ in size from their image, such as {_size(label.size)} for "
            f"{_size(image.size)}; use images and labels of the same version of the dataset",
            [pair.label for pair, _, _ in differ],
        )
    sizes = Counter(image.size for _, image, _ in whole)
    if len(sizes) > 1 and dataset.one_size is not False and dataset.resize is None:
        usual = sizes.most_common(1)[0][0]
        found.add(
            "error" if dataset.one_size else "note",
            "several-sizes",
            f"the images have {len(sizes)} sizes, mostly {_size(usual)}; train with --crop, or with --resize for one "
            "size. Without --resize, validation takes one image at a time",
            [pair.image for pair, image, _ in whole if image.size != usual],
        )
    if turned := [pair.image for pair, image, label in whole if image.orientation != 1 and label.size == image.stored]:
        found.add(
            "warning",
            "turned-image",
            f"{len(turned)} images are rotated or mirrored by their EXIF data, and so are their label maps, unless "
            "they have such data too; if label maps were drawn on the rotated images, rotate the pixels of the images "
            "and remove the tag",
            turned,
        )
    if several := [pair.image for pair, image, _ in whole if image.frames > 1]:
        found.add(
            "warning",
            "several-frames",
            f"{len(several)} images have several frames or pages, of which the first is used; save it as a file of its "
            "own",
            several,
        )
    if deep := [pair.image for pair, image, _ in whole if image.deep]:
        found.add(
            "warning",
            "deep-image",
            f"{len(deep)} images have more than 8 bits a channel and are read as 8 bits: 16-bit values are divided by "
            "257, so that images that use fewer of their bits become dark; floats and 32-bit integers must be in "
            "0..255. Convert them to 8 bits",
            deep,
        )
    modes = Counter(image.mode for _, image, _ in whole if not image.deep)
    if others := {mode: n for mode, n in modes.items() if mode != "RGB"}:
        found.add(
            "note",
            "image-mode",
            f"{sum(others.values())} images are not RGB and are converted "
            f"({', '.join(f'{n} {mode}' for mode, n in others.items())})",
            [pair.image for pair, image, _ in whole if image.mode in others],
        )


def check_values(dataset: FileDataset, statistics: LabelStatistics, found: Findings) -> None:
    """Codes that are no class, in one finding for each probable cause."""
    rule = dataset.rule
    pixels: Counter[int] = Counter()
    files: defaultdict[int, list[Path]] = defaultdict(list)
    for pair, record in zip(dataset.pairs, statistics.labels, strict=True):
        wrong = set(rule.unknown(record.values))
        for value, n in zip(record.values, record.pixels, strict=True):
            if value in wrong:
                pixels[value] += n
                files[value].append(pair.label)
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for value in sorted(pixels):
        groups[rule.hints[value].name if value in rule.hints else "label-value"].append(value)
    for name, values in groups.items():
        concerned = {file for value in values for file in files[value]}
        found.add(
            "error",
            name,
            f"{sum(pixels[value] for value in values)} pixels in {len(concerned)} of {len(dataset)} label maps have "
            f"values outside {rule.allowed}; {rule.advice(values)}",
            concerned,
            [
                f"{code_names([value])[1:-1]}: {pixels[value]} pixels in {len(files[value])} files"
                for value in sorted(values, key=lambda value: -pixels[value])
            ],
        )
    seen = {value for record in statistics.labels for value in record.values}
    zero_is_other = rule.classes.get(0) == IGNORE and rule.classes.get(1) == 0
    if zero_is_other and len(dataset) >= _FEW and 0 not in seen and 255 not in seen:
        found.add(
            "warning",
            "zero-reduced-twice",
            f"none of {len(dataset)} label maps has a 0, which means unlabelled; the values may have been reduced by "
            "one already, and reading them would reduce them again",
        )
    if seen == {0, 255} and rule.classes.get(255) == IGNORE and rule.classes.get(0) != IGNORE:
        found.add(
            "warning",
            "black-and-white",
            "the label maps have only 0 and 255, and 255 is ignored; if it is a class, give the class list colours, "
            "such as 'background 0 0 0' and 'object 255 255 255'",
        )


def check_classes(
    dataset: FileDataset,
    statistics: LabelStatistics,
    totals: tuple[np.ndarray, int],
    found: Findings,
    counted: np.ndarray,
) -> None:
    """Classes without pixels, a single class, and label maps without classes."""
    if not len(dataset):
        return
    pixels, ignored = totals
    if len(seen := [name for name, n in zip(dataset.class_names, counted, strict=True) if n]) == 1:
        advice = "give the class list the other classes too, such as 'background'"
        if dataset.num_classes > 1:
            advice = "compare the values in the label maps with the class list"
        found.add(
            "warning",
            "one-class",
            f"all labelled pixels are of one class, {seen[0]}: the loss becomes 0 and the IoU 1 whatever the network "
            f"learns; {advice}",
        )
    if never := [name for name, n in zip(dataset.class_names, counted, strict=True) if n == 0]:
        found.add(
            "warning",
            "class-never-seen",
            f"{len(never)} of {dataset.num_classes} classes have no pixel: {some(never)}",
        )
    empty = [
        pair.label
        for pair, record in zip(dataset.pairs, statistics.labels, strict=True)
        if record.error is None and not any(dataset.rule.classes.get(v, IGNORE) != IGNORE for v in record.values)
    ]
    if empty:
        found.add("warning", "nothing-labelled", f"{len(empty)} label maps have no labelled pixel", empty)
    total = ignored + int(pixels.sum())
    if ignored > total / 2:
        found.add("warning", "mostly-ignored", f"{100 * ignored / total:.1f} % of all pixels are ignored")


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
