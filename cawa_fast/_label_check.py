"""Checks of values: labels outside the classes, and the error that waits on the device until someone reads it.

Shapes, dtypes and ranges of plain arguments are checked where they enter, in :mod:`cawa_fast.functional`. What needs
the values of a tensor is checked here, inside the operators, so that it neither breaks a compiled graph nor forces a
GPU to wait: there, bad labels are only counted, and the error is raised at the next natural synchronisation.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

MODES = ("auto", "sync", "deferred", "off")
_INT64 = torch.iinfo(torch.int64)

_mode = "auto"
# What operators add to: by device, kind of labels, num_classes and ignore_index a (3,) int64 tensor (count, least,
# largest). All of a device are rows of few tables, made once, so that a captured CUDA graph can write to them.
_deferred: dict[tuple[torch.device, str, int, int], Tensor] = {}
_free: dict[torch.device, list[Tensor]] = {}
_lock = threading.Lock()
_ROWS = 64  # of a table: more than a program has combinations of classes and ignored labels; or another one is made
_COLUMNS = 4  # 32 bytes a row: Triton compiles a kernel again for addresses that are no multiples of 16


def set_label_check(mode: str) -> str:
    """Set when labels outside ``[0, C)`` (other than ``ignore_index``) raise; returns the previous mode.

    Args:
        mode: ``"auto"`` (the default): at once on the CPU, where it costs nothing to look, deferred elsewhere.
            ``"sync"``: at once on every device (a GPU waits for each call). ``"deferred"``: bad labels are counted on
            the device and the error comes from :func:`check_labels`, which ``AdaptiveClassWeights.step`` calls.
            ``"off"``: never. In every mode a bad label is treated as ignored, and nothing is read out of bounds.

    Raises:
        ValueError: ``mode`` is none of these.

    Example:
        >>> import cawa_fast as cf
        >>> previous = cf.set_label_check("deferred")
        >>> _ = cf.set_label_check(previous)
    """
    global _mode
    if mode not in MODES:
        raise ValueError(f"set_label_check: mode must be one of {', '.join(MODES)}; got {mode!r}")
    previous, _mode = _mode, mode
    return previous


def check_labels() -> None:
    """Raise for bad labels that operators met since the last check. Waits for the devices that have any to report.

    Raises:
        ValueError: naming the labels, how many pixels have them and the usual cause. The devices stay usable, and the
            report is cleared.

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
    """Hand over what an operator found: ``bad`` is ``(3,)`` int64 (count, least, largest) on the operator's device."""
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
    """``(3,)`` int64 for a kernel to add bad labels to, before :func:`close_report`; None if nobody looks."""
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
        # From the graph's memory, which stays as long as the table does (another stream's could need a cudaMalloc,
        # which a capture forbids); cleared once, now, on a stream that is not captured.
        table = _empty_table(device)
        with torch.cuda.stream(_uncaptured_stream(device)):
            return _clear(table)

    def make() -> Tensor:
        with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
            table = _clear(_empty_table(device))
            torch.cuda.current_stream().record_event().synchronize()
            return table

    # In a thread of its own: torch.compile's mode "reduce-overhead" takes all memory that a thread allocates, already
    # while it warms up, from a pool whose blocks it reuses as if it alone knew what is in them.
    with ThreadPoolExecutor(1) as other:
        return other.submit(make).result()


def _empty_table(device: torch.device) -> Tensor:
    return torch.empty(_ROWS, _COLUMNS, dtype=torch.int64, device=device)


def _uncaptured_stream(device: torch.device) -> torch.cuda.Stream:
    """New streams are few that come in turn: one that is not part of the capture."""
    while True:
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            if not torch.cuda.is_current_stream_capturing():
                return stream


def close_report(kind: str, report: Tensor | None, num_classes: int, ignore_index: int) -> None:
    """Raise for what a kernel has added, unless that waits for :func:`check_labels`."""
    if report is None or _is_deferred(report.device):
        return
    count, low, high = report.tolist()
    if count:
        raise ValueError(_message(kind, count, low, high, num_classes, ignore_index))


def _is_deferred(device: torch.device) -> bool:
    return _mode == "deferred" or (_mode == "auto" and device.type != "cpu")


def label_check_is_off() -> bool:
    """Whether operators may skip looking for bad labels."""
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
