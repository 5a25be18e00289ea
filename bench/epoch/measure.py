"""Measures one row. All variants compute each batch in turn, so that a slow phase of the machine affects them all."""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import cawa_fast as cf
from cawa_fast.recipes.models import WITH_AUXILIARY, build_model
from cawa_fast.recipes.training.stopwatch import Stopwatch

from .. import cases
from ..libraries import import_torchvision
from ..measure import without_garbage_collection
from .networks import TORCHVISION, TorchvisionNetwork
from .rows import EpochRow
from .variants import Batch, Ours, OursAdaptive, Plain, PlainAdaptive, naive_counts, quiet

_AWA = ("observe", "step")
_SCENES = 2  # drawn; the others are their mirror images

_VARIANTS = {"a": Plain, "d": Ours, "e": OursAdaptive}

Parts = dict[str, float]
Advance = Callable[[int], None]


@functools.lru_cache(maxsize=8)
def _drawn(classes: int, size: tuple[int, int]) -> cases.Problem:
    return cases.make("realistic", classes, (size[0] // 4, size[1] // 4), size, images=_SCENES)


def batches(row: EpochRow, size: tuple[int, int], images: int, device: torch.device) -> list[Batch]:
    """Two batches of drawn scenes; each class has a colour, and noise is added."""
    labels = cases.repeat(_drawn(row.data.classes, size), min(images, 4 * _SCENES), device).labels
    labels = labels.repeat(-(-images // len(labels)), 1, 1)[:images]
    generator = torch.Generator().manual_seed(cases.SEED)
    colours = torch.randn(256, 3, generator=generator).to(device)
    pictures = colours[labels.long()].movedim(-1, 1)
    found = []
    for _ in range(2):
        noise = torch.randn(pictures.shape, generator=generator).to(device)
        found.append(Batch(pictures + 0.5 * noise, labels.contiguous()))
        pictures, labels = pictures.flip(-1), labels.flip(-1)
    return found


class Epoch:
    """All variants of a row, and its batches.

    Args:
        row: what to measure.
        device: where.
        names: of the variants.
    """

    def __init__(self, row: EpochRow, device: torch.device, names: str = "acde") -> None:
        self.row, self.device = row, device
        with contextlib.suppress(ImportError):
            import_torchvision()  # the networks' libraries import it, even if it is broken
        torch.manual_seed(0)
        classes = row.data.classes
        options = {"auxiliary": 0} if row.model in WITH_AUXILIARY else {}
        if row.model in TORCHVISION:
            network: nn.Module = TorchvisionNetwork(row.model, classes)
        else:
            network = build_model(row.model, classes, backbone=row.backbone, **options)
        self.train_batches = batches(row, row.crop, row.batch, device)
        self.val_batches = batches(row, row.val, row.val_batch, device)
        contiguous = self._best_layout_for_plain(network)
        self.choices = {"contiguous logits": contiguous}
        self.variants: dict[str, Plain] = {}
        for name in names:
            if name == "c":
                present = self.choices["count present classes alone"] = self._best_way_to_count(network, contiguous)
                self.variants[name] = PlainAdaptive(network, classes, device, contiguous, present)
            else:
                self.variants[name] = _VARIANTS[name](network, classes, device, contiguous)

    def _best_layout_for_plain(self, network: nn.Module) -> bool:
        """Whether plain PyTorch is faster with contiguous logits."""
        plains = {flag: Plain(network, self.row.data.classes, self.device, flag) for flag in (True, False)}
        seconds: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(4):
            for flag, plain in plains.items():
                found = self._timed(plain.train, self.train_batches[0])
                seconds[flag].append(found["loss"] + found["backward"])  # whose layout follows from that of the loss
        return min(seconds[True][1:]) < min(seconds[False][1:])

    def _best_way_to_count(self, network: nn.Module, contiguous: bool) -> bool:
        """Whether plain PyTorch counts faster class by class."""
        counting: dict[bool, list[float]] = {True: [], False: []}
        for flag in (True, False):
            adaptive = PlainAdaptive(network, self.row.data.classes, self.device, contiguous, flag)
            for _ in range(2):
                counting[flag].append(self._timed(adaptive.validate, self.val_batches[0])["observe"])
        return counting[True][-1] < counting[False][-1]

    def _timed(self, call: Callable[[Batch, Stopwatch], None], batch: Batch) -> Parts:
        watch = Stopwatch(self.device)
        call(batch, watch)
        return watch.seconds()

    def samples(self) -> int:
        """Steps of one round, all variants together."""
        train, val = self._per_round()
        return len(self.variants) * (train + val)

    def _per_round(self) -> tuple[int, int]:
        row = self.row
        return row.train_batches or row.steps, row.val_batches or round(row.val_steps + 0.499)

    def round(self, turn: int, advance: Advance) -> dict[str, Parts]:
        """Seconds of a whole epoch by part, of each variant; ``total`` is wall time."""
        names = list(self.variants)
        train, val = self._per_round()
        rotated = itertools.cycle(names)
        for _ in range(turn):
            next(rotated)
        found: dict[str, Parts] = {name: defaultdict(float) for name in names}
        for index in range(train + val):
            training = index < train
            source = self.train_batches if training else self.val_batches
            share = self.row.steps / train if training else self.row.val_steps / val
            for _ in names:
                name = next(rotated)
                variant = self.variants[name]
                call = variant.train if training else variant.validate
                for part, value in self._timed(call, source[index % 2]).items():
                    found[name][part] += value * share
                advance(1)
            next(rotated)
        for name, variant in self.variants.items():
            watch = Stopwatch(self.device)
            variant.step(watch)
            for part, value in watch.seconds().items():
                found[name][part] += value
        return {name: dict(parts) for name, parts in found.items()}

    def naive(self) -> tuple[float, int]:
        """Seconds an image of pytorch-grad-cam for each of its classes, and on how many images that was measured."""
        variant = self.variants["a"]
        batch = self.val_batches[0]
        one = Batch(batch.images[:1], batch.bytes[:1])
        classifier = cf.cam.find_classifier(variant.network, self.row.data.classes)
        with quiet():
            naive_counts(variant.network, classifier, one, self.row.data.classes)  # warm-up
            begin = time.perf_counter()
            naive_counts(variant.network, classifier, one, self.row.data.classes)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - begin, 1


def measure_epoch(row: EpochRow, device: torch.device, rounds: int, until: float, advance: Advance) -> dict[str, Any]:
    """The result of one row except for memory.

    Args:
        row: what.
        device: where.
        rounds: at least 1.
        until: after this value of ``time.monotonic()`` no round begins, except the first three.
        advance: called with 1 after every step.
    """
    epoch = Epoch(row, device)
    with without_garbage_collection():
        epoch.round(0, lambda steps: None)  # compiles, and touches memory for the first time
        found = []
        for turn in range(rounds):
            if turn >= 3 and time.monotonic() > until:
                break
            found.append(epoch.round(turn, advance))
    return epoch_summary(row, found) | {"choices": epoch.choices} | _naive(epoch, row)


def _naive(epoch: Epoch, row: EpochRow) -> dict[str, Any]:
    try:
        seconds, images = epoch.naive()
    except ImportError as error:
        return {"naive": None, "naive_failed": str(error)}
    return {"naive": {"seconds_an_image": seconds, "images": images, "epoch": seconds * row.data.val_images}}


def epoch_summary(row: EpochRow, rounds: Sequence[dict[str, Parts]]) -> dict[str, Any]:
    """Medians of the rounds: seconds by part, and the ratios of what was measured in the same round."""

    def over_rounds(value: Callable[[dict[str, Parts]], float]) -> dict[str, float]:
        values = sorted(value(found) for found in rounds)
        return {"median": statistics.median(values), "least": values[0], "most": values[-1]}

    def added(name: str) -> Callable[[dict[str, Parts]], float]:
        def share(found: dict[str, Parts]) -> float:
            awa = sum(found[name].get(part, 0.0) for part in _AWA)
            return awa / (found[name]["total"] - awa)

        return share

    names = list(rounds[0])
    parts = {
        name: {part: statistics.median(found[name][part] for found in rounds) for part in rounds[0][name]}
        for name in names
    }
    return {
        "key": row.key,
        "network": row.title,
        "data": row.data.title,
        "classes": row.data.classes,
        "crop": list(row.crop),
        "val": list(row.val),
        "scale": row.scale,
        **{name: getattr(row, name) for name in ("batch", "val_batch", "train_batches", "val_batches")},
        "train_images": row.data.train_images,
        "val_images": row.data.val_images,
        "rounds": len(rounds),
        "seconds": parts,
        "marginal": over_rounds(added("e")),
        "marginal_by_difference": over_rounds(lambda found: found["e"]["total"] / found["d"]["total"] - 1),
        "net": over_rounds(lambda found: found["e"]["total"] / found["a"]["total"] - 1),
    } | ({"eager_marginal": over_rounds(added("c"))} if "c" in names else {})


def step_of(row: EpochRow, device: torch.device, name: str) -> Callable[[], Tensor]:
    """A training and a validation step of one variant, for :mod:`bench.epoch.memory`; returns a result to keep."""
    epoch = Epoch(row, device)
    variant = epoch.variants[name]
    epoch.variants.clear()

    def run() -> Tensor:
        variant.train(epoch.train_batches[0], Stopwatch(device))
        variant.validate(epoch.val_batches[0], Stopwatch(device))
        variant.step(Stopwatch(device))
        return variant.matrix

    return run
