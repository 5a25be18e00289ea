"""The check for labels outside the classes, whose error may wait on the device until the next synchronisation.

:mod:`cawa_fast.functional` checks shapes, dtypes and ranges of arguments. This check needs the values of a tensor. It
runs inside the operators, so that it neither breaks a compiled graph nor synchronises with a GPU: kernels only count
bad labels, and the error is raised at the next point that synchronises anyway.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from . import _validate

MODES = ("auto", "sync", "deferred", "off")
_INT64 = torch.iinfo(torch.int64)

_mode = "auto"
# The reports that operators add to, by device, argument, num_classes and ignore_index: (3,) int64 (count, least,
# largest). The reports of a device are rows of a few tables that live forever, so that a captured CUDA graph can write
# to them.
_deferred: dict[tuple[torch.device, str, int, int], Tensor] = {}
_free: dict[torch.device, list[Tensor]] = {}
_lock = threading.Lock()
_ROWS = 64  # of a table: more than a program has pairs of num_classes and ignore_index; a full table gets a successor
_COLUMNS = 4  # 32 bytes per row: Triton recompiles a kernel for addresses that are not multiples of 16


def set_label_check(mode: str) -> str:
    """Set when labels outside ``[0, C)`` (other than ``ignore_index``) raise; returns the previous mode.

    Args:
        mode: ``"auto"`` (the default): at once on the CPU, where the check is free, and deferred on other devices.
            ``"sync"``: at once on every device; each call then synchronises with the GPU. ``"deferred"``: the device
            counts bad labels, and :func:`check_labels`, which ``AdaptiveClassWeights.step`` calls, raises the error.
            ``"off"``: never. In every mode a bad label counts as ignored, and nothing is read out of bounds.

    Returns:
        The previous mode.

    Raises:
        ValueError: ``mode`` is not one of these.

    Example:
        >>> import cawa_fast as cf
        >>> previous = cf.set_label_check("deferred")
        >>> _ = cf.set_label_check(previous)
    """
    global _mode
    _validate.check_choice("set_label_check", "mode", mode, MODES)
    previous, _mode = _mode, mode
    return previous


def check_labels() -> None:
    """Raise for bad labels that operators found since the last check. Synchronises with the GPUs that were used.

    Raises:
        ValueError: names the labels, how many pixels have them, and the usual cause. The CUDA context stays usable, and
            the report is cleared.

    Example:
        >>> import cawa_fast as cf
        >>> cf.check_labels()
    """
    with _lock:
        reports = list(_deferred.items())
    for device in {key[0] for key, _ in reports if key[0].type == "cuda"}:
        torch.cuda.synchronize(device)  # other streams than the current one report too
    for key, report in reports:
        count, low, high = report.tolist()
        if count:
            _clear(report)
            if report.is_cuda:
                torch.cuda.synchronize(report.device)  # before other streams add to it
            raise ValueError(_message(key[1], count, low, high, *key[2:]))


def report_bad_labels(kind: str, bad: Tensor, num_classes: int, ignore_index: int) -> None:
    """Report what an operator found: ``bad`` is ``(3,)`` int64 (count, least, largest) on the operator's device."""
    if label_check_is_off():
        return
    if _is_deferred(bad.device):
        total = open_report(kind, bad.device, num_classes, ignore_index)
        assert total is not None
        total[0].add_(bad[0])
        total[1].clamp_(max=bad[1])
        total[2].clamp_(min=bad[2])
    else:
        close_report(kind, bad, num_classes, ignore_index)


def open_report(kind: str, device: torch.device, num_classes: int, ignore_index: int) -> Tensor | None:
    """``(3,)`` int64 to which a kernel adds bad labels, before :func:`close_report`; None if the check is off."""
    if label_check_is_off():
        return None
    if not _is_deferred(device):
        return _clear(torch.empty(3, dtype=torch.int64, device=device))
    key = (device, kind, num_classes, ignore_index)
    found = _deferred.get(key)
    if found is None:
        with _lock:
            if key not in _deferred:
                if not _free.get(device):
                    _free[device] = _reports(device)
                _deferred[key] = _free[device].pop()
            found = _deferred[key]
    return found


def _reports(device: torch.device) -> list[Tensor]:
    """``_ROWS`` cleared reports, each ``(3,)`` int64."""
    with torch.inference_mode(False):  # inference tensors could not be written to outside inference mode
        table = _cuda_table(device) if device.type == "cuda" else _clear(_empty_table(device))
        return [table[row, :3] for row in range(_ROWS)]


def _cuda_table(device: torch.device) -> Tensor:
    """``(_ROWS, _COLUMNS)`` int64 of cleared reports, which no CUDA graph clears or frees."""
    if torch.cuda.is_current_stream_capturing():
        # Allocated from the memory pool of the graph, which lives as long as the table. Memory of another stream could
        # need a cudaMalloc, which is forbidden during a capture. Cleared once, on a stream that is not captured.
        table = _empty_table(device)
        with torch.cuda.stream(_uncaptured_stream(device)):
            return _clear(table)

    def make() -> Tensor:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            table = _clear(_empty_table(device))
            torch.cuda.current_stream().record_event().synchronize()
            return table

    # In a separate thread: torch.compile's mode "reduce-overhead" serves all allocations of its own thread from a pool,
    # even during the warm-up, and reuses the pool's blocks without regard to other tensors in them.
    with ThreadPoolExecutor(1) as other:
        return other.submit(make).result()


def _empty_table(device: torch.device) -> Tensor:
    return torch.empty(_ROWS, _COLUMNS, dtype=torch.int64, device=device)


def _uncaptured_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream outside the capture. PyTorch reuses streams of a small pool in turn; the next may be a captured one."""
    while True:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            if not torch.cuda.is_current_stream_capturing():
                return stream


def close_report(kind: str, report: Tensor | None, num_classes: int, ignore_index: int) -> None:
    """Raise if a kernel has reported bad labels, unless :func:`check_labels` does it later."""
    if report is None or _is_deferred(report.device):
        return
    count, low, high = report.tolist()
    if count:
        raise ValueError(_message(kind, count, low, high, num_classes, ignore_index))


def _is_deferred(device: torch.device) -> bool:
    return _mode == "deferred" or (_mode == "auto" and device.type != "cpu")


def label_check_is_off() -> bool:
    """Whether operators may skip the search for bad labels."""
    return _mode == "off"


def _clear(reports: Tensor) -> Tensor:
    """``(..., 3)`` or more, in place: count, least, largest."""
    reports[..., 0], reports[..., 1], reports[..., 2] = 0, _INT64.max, _INT64.min
    return reports


def _message(kind: str, count: int, low: int, high: int, num_classes: int, ignore_index: int) -> str:
    values = f"the value {low}" if low == high else f"values from {low} to {high}"
    pixels = "1 pixel has" if count == 1 else f"{count} pixels have"
    return (
        f"{kind}: {pixels} {values}, outside the {num_classes} classes 0..{num_classes - 1} and not "
        f"ignore_index={ignore_index}. {_usual_cause(kind, low, high, num_classes)}"
    )


def _usual_cause(kind: str, low: int, high: int, num_classes: int) -> str:
    if kind == "input":
        return "Predictions must be class indices; pass num_classes as large as the model's number of outputs"
    if high == num_classes:
        return "Labels counted from 1? Subtract 1 (as ADE20K needs), or pass num_classes + 1 logits"
    if low < 0:
        return f"A negative void label? Pass it as ignore_index={low}"
    if low == high:
        return f"{low} is often the void label: pass ignore_index={low}, or remap it on load"
    return "Raw label ids instead of training ids? Remap them on load (Cityscapes: labelTrainIds), or raise num_classes"
