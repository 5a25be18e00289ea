"""Every operator on small inputs, for compute-sanitizer: ``python -m bench.gpu.sanitized DEVICE SECONDS``.

The sanitizer finds out-of-bounds accesses and races; results are compared by the tests. The first calls cover every
operator at sizes with vectorised loads, the later ones sizes whose tiles are cut by every border.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

import torch

import cawa_fast as cf
import cawa_fast.functional as CF

from .interpreted import kernels_on_the_cpu

IGNORE = 255
REDUCTIONS = ("none", "class_mean")
SIZES = (
    *((19, (16, 32), (16, 32)), (19, (8, 16), (32, 64)), (33, (11, 7), (11, 7)), (19, (9, 13), (33, 50))),
    *((150, (12, 20), (12, 20)), (150, (6, 9), (24, 36))),
)
"""Classes, size of the logits, size of the labels."""


def calls(device: torch.device) -> Iterator[str]:
    """Make the calls; yields the name of each when it is done."""
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for layout in (torch.contiguous_format, torch.channels_last):
            for classes, low, high in SIZES:
                shape = f"{classes} classes, {low} to {high}, {dtype}, {layout}"
                labels = torch.randint(0, classes, (2, *high), dtype=torch.uint8, device=device)
                labels[:, :2] = IGNORE
                weight = torch.rand(classes, device=device) + 0.5
                x = torch.randn(2, classes, *low, device=device).to(dtype).contiguous(memory_format=layout)
                x.requires_grad_()
                for reduction in ("mean", *(REDUCTIONS if dtype == torch.bfloat16 else ())):
                    loss = CF.cross_entropy(x, labels, weight, ignore_index=IGNORE, reduction=reduction)
                    loss.sum().backward()
                    yield f"cross_entropy, {reduction}, {shape}"
                CF.focal_loss(x, labels, weight, offset=weight, ignore_index=IGNORE).backward()
                yield f"focal_loss, {shape}"
                CF.confusion_matrix(x, labels, ignore_index=IGNORE)
                yield f"confusion_matrix, {shape}"
                CF.cam_counts(x.detach().relu(), labels, ignore_index=IGNORE)
                yield f"cam_counts, {shape}"


def main() -> None:
    """Make the calls for some seconds; a sanitizer writes its summary only if the program ends by itself."""
    device, seconds = torch.device(sys.argv[1]), float(sys.argv[2])
    end = time.monotonic() + seconds
    done: list[str] = []
    with kernels_on_the_cpu() if device.type == "cpu" else contextlib.nullcontext():
        for name in calls(device):
            done.append(name)
            if time.monotonic() > end:
                print(f"out of time after {name}")
                break
    if device.type == "cuda":
        torch.cuda.synchronize()
    cf.check_labels()
    print(f"{len(done)} calls")


if __name__ == "__main__":
    main()
