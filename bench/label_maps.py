"""How fast label maps are read and counted: ``cawa-fast doctor data`` and the class index, beside what they stand on.

The maps are drawn: the labels of street scenes of Cityscapes' size, written by Pillow as Cityscapes' own scripts do.
Each contender is timed by the processor time of one process, the least of several rounds: what one core does.
"""

from __future__ import annotations

import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from PIL import Image

from cawa_fast.recipes.files import atomic

from .measure import machine

GOAL = 200  # maps a second and core
_SIZE = (1024, 2048)


def draw(folder: Path, count: int) -> list[Path]:
    """A tree of ``count`` pairs in Cityscapes' layout; returns the label files."""
    from cawa_fast.recipes.datasets.street.dataset import StreetDataset

    scenes = StreetDataset("train", length=count, size=_SIZE, cache=False)
    images, labels = folder / "leftImg8bit" / "train" / "town", folder / "gtFine" / "train" / "town"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    files = []
    for index in range(count):
        image, label = scenes.read(index)
        Image.fromarray(image).save(images / f"{index:06}_leftImg8bit.png", compress_level=1)
        files.append(labels / f"{index:06}_gtFine_labelTrainIds.png")
        Image.fromarray(label).save(files[-1])
    return files


def contenders(folder: Path, files: list[Path]) -> dict[str, Callable[[], object]]:
    """What is timed, by its name; each goes over all files once."""
    from cawa_fast.recipes.datasets import CityscapesDataset, labels
    from cawa_fast.recipes.datasets.label_statistics import collect_label_statistics

    data = CityscapesDataset(folder, "train")
    maps = [np.asarray(Image.open(file)) for file in files]
    streams = [_stream(file) for file in files]

    def census(images: bool, fast: bool) -> None:
        decoder = labels._fast_decoder
        if not fast:
            labels._fast_decoder = lambda: None  # type: ignore[assignment]
        try:
            collect_label_statistics(data, workers=1, cache=False, images=images)
        finally:
            labels._fast_decoder = decoder

    result: dict[str, Callable[[], object]] = {
        "doctor data: label maps and image headers": lambda: census(True, True),
        "the class index: label maps": lambda: census(False, True),
        "the class index without kornia_rs": lambda: census(False, False),
        "decoding alone, Pillow": lambda: [labels.open_image(file) for file in files],
        "inflating alone, zlib": lambda: [zlib.decompress(stream) for stream in streams],
        "counting alone, runs": lambda: [labels.code_histogram(codes) for codes in maps],
        "counting alone, np.bincount": lambda: [np.bincount(codes.reshape(-1), minlength=256) for codes in maps],
    }
    if labels._fast_decoder() is not None:
        result["decoding alone, kornia_rs"] = lambda: [labels._grey_png(file) for file in files]
    return result


def _stream(file: Path) -> bytes:
    """The compressed data of a PNG file."""
    content, place, parts = file.read_bytes(), 8, []
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] == b"IDAT":
            parts.append(content[place + 8 : place + 8 + length])
        place += length + 12
    return b"".join(parts)


@click.command()
@click.option("--maps", default=40, show_default=True, help="Label maps to draw.")
@click.option("--rounds", default=5, show_default=True, help="Times that each contender goes over them.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the table here, as Markdown.")
def label_maps(maps: int, rounds: int, out: Path | None) -> None:
    """Measure how many label maps of Cityscapes' size one core reads and counts in a second."""
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), maps)
        work = contenders(Path(folder), files)
        best = dict.fromkeys(work, float("inf"))
        for _ in range(rounds):
            for name, go in work.items():
                started = time.process_time()
                go()
                best[name] = min(best[name], (time.process_time() - started) / maps)
        size = sum(file.stat().st_size for file in files) / maps / 1024
    system = machine(1)
    lines = [
        f"{maps} label maps of {_SIZE[0]}x{_SIZE[1]}, {size:.0f} KiB each; least of {rounds} rounds; "
        f"goal: {GOAL} a second and core; {system['cpu']}, {system['date']}",
        "",
        "| | ms | a second and core |",
        "|---|---|---|",
    ]
    for name, seconds in best.items():
        mark = "" if not name.startswith("doctor") else " ✓" if 1 / seconds >= GOAL else " ✗"
        lines.append(f"| {name} | {1000 * seconds:.2f} | {1 / seconds:.0f}{mark} |")
    click.echo("\n".join(lines))
    if out is not None:
        with atomic(out) as file:
            head = "# Label maps read and counted\n\nMade by `python -m bench label-maps`. "
            file.write((head + "\n".join(lines) + "\n").encode())
