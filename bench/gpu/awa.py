"""The cost of adaptive weights in validation: ``observe`` and ``step``, compared with the batch's forward pass."""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

import cawa_fast as cf
from cawa_fast.recipes.models.libraries import without_source_tree

from .. import cases
from ..baselines import Implementation
from ..libraries import import_torchvision
from .timing import Machine, UncapturableError, replayed, samples

CLASSES = 19
PASS_IMAGES = 500
"""Images of a validation pass (Cityscapes), after which one step follows."""


def segformer(machine: Machine, rehearse: bool) -> tuple[nn.Module, str]:
    """SegFormer-B0 with random weights, and its name.

    Raises:
        ImportError: transformers is not installed. (A rehearsal then uses three convolutions.)
    """
    torch.manual_seed(0)
    try:
        with without_source_tree():
            with contextlib.suppress(ImportError):
                import_torchvision()  # transformers imports it where it is installed, even if it is broken
            from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError:
        if not rehearse:
            raise
    else:
        sizes = {"hidden_sizes": [8, 8, 16, 16], "decoder_hidden_size": 16} if rehearse else {}
        # the default sizes are those of B0
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES, **sizes))
        return model.to(machine.device).eval(), "SegFormer-B0"
    layers = (nn.Conv2d(3, 8, 3, stride=4, padding=1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))
    return nn.Sequential(*layers).to(machine.device).eval(), "three layers in its place"


@torch.no_grad()
def measure_adaptive(machine: Machine, rehearse: bool) -> dict[str, Any]:
    """Seconds of the forward pass (in float32 and under bfloat16 autocast), of ``observe`` and of ``step``."""
    images, high = (2, (32, 64)) if rehearse else (8, (512, 1024))  # the smallest that a SegFormer accepts
    model, name = segformer(machine, rehearse)
    low = (high[0] // 4, high[1] // 4)
    labels = cases.repeat(cases.make("realistic", CLASSES, low, high), images, machine.device).labels
    batch = torch.randn(images, 3, *high, device=machine.device)
    cawa = cf.CAWA(model, CLASSES, ignore_index=cases.IGNORE)

    def forward() -> tuple[Tensor, ...]:
        model(batch)
        return ()

    def autocast_forward() -> tuple[Tensor, ...]:
        with torch.autocast(machine.device.type, torch.bfloat16):
            model(batch)
        return ()

    def observe() -> tuple[Tensor, ...]:
        cawa.weights.observe(cawa.maps(), labels)  # as cawa.observe(labels) does, which takes each forward pass once
        return ()

    rounds = 1 if rehearse else 11
    found: dict[str, Any] = {"network": name, "images": images, "size": list(high), "batches": PASS_IMAGES / images}
    for kind, run in (("float32", forward), ("bfloat16", autocast_forward)):
        # ``observe`` reads the output of the last forward pass, in its dtype
        pair = [Implementation("forward", run), Implementation("observe", observe)]
        times = samples(machine, pair, rounds)
        found[kind] = {key: statistics.median(values) for key, values in times.items()}
        try:
            found[kind]["observe_graph"] = replayed(machine, pair[1], rounds)
        except UncapturableError as error:
            found[kind]["observe_graph_failed"] = str(error)
        found[kind]["step"] = _step_seconds(machine, cawa, observe, rounds)
    return found


def _step_seconds(machine: Machine, cawa: cf.CAWA, observe: Any, rounds: int) -> float:
    """By the host's clock and from an idle device, because a step waits for the device and computes on the CPU."""
    seconds = []
    for _ in range(rounds):
        observe()
        machine.synchronize()
        begin = time.perf_counter()
        cawa.step()
        machine.synchronize()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
