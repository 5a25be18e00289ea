"""Weighted cross-entropy and focal loss on a GPU: launches _cross_entropy_*.py and allocates scratch memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _tiling
from ._cross_entropy_backward import _backward, _backward_same
from ._cross_entropy_forward import COUNTED, _forward, _scale, _total
from ._launch import FOUR_WARPS, cdiv, launch, needs_64_bits, power_of_2, warps_of


def reduction_scale(counts: Tensor | None, pixels: int, weight: Tensor | None, like: Tensor, reduction: str) -> Tensor:
    """``(C,)`` float32 as ``reference.reduction_scale``: a factor per class. Does not synchronise with the GPU.

    Args:
        counts: ``(N, C)`` int64, the valid pixels of each class in each image; None for reductions that do not need it.
        pixels: number of all pixels, ignored ones included.
        weight: ``(C,)`` float32, contiguous, >= 0, or None for 1.
        like: a tensor ``(N, C, ...)`` that gives the device and the number of classes.
        reduction: as in ``cawa_fast.functional.cross_entropy``.
    """
    num_classes = like.shape[1]
    if counts is None:
        value = 1 / max(pixels, 1) if reduction == "pixel_mean" else 1.0
        return torch.full((num_classes,), value, dtype=torch.float32, device=like.device)
    scale = torch.empty(num_classes, dtype=torch.float32, device=like.device)
    arguments: dict[str, Any] = {
        "counts": counts,
        "weight": weight,
        "scale": scale,
        "images": counts.shape[0],
        "num_classes": num_classes,
        "BLOCK": power_of_2(num_classes),
        "HOW": COUNTED.index(reduction),
        "WEIGHTED": weight is not None,
    }
    launch(_scale, (1,), arguments, warps_of(arguments["BLOCK"]), fuse=True)
    return scale


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    ignore_index: int,
    per_pixel: bool,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """``(loss, stats)``: the sum over pixels of ``scale[label]`` times the pixel's loss, and the backward's statistics.

    Args:
        input: ``(N, C, h, w)`` logits, or ``(N, C, ...)`` of the labels' size; float32, bfloat16 or float16, any
            strides.
        target: ``(N, H, W)`` or ``(N, ...)`` uint8, int16, int32 or int64 labels; those outside [0, C) count as
            ignored.
        weight: ``(C,)`` float32, contiguous, >= 0, or None for 1.
        offset: ``(C,)`` float32, contiguous, finite, added to the logits, or None for 0.
        scale: ``(C,)`` float32, contiguous.
        ignore_index: label of ignored pixels, any 64-bit integer.
        per_pixel: return the loss of every pixel, unscaled, in the shape of ``target``, instead of their sum ``()``.
        label_smoothing: in [0, 1].
        gamma: exponent of the focal loss, >= 0; at most one of ``gamma`` and ``label_smoothing`` is positive.
        align_corners: as in ``F.interpolate``.
        save: whether to fill ``stats`` for :func:`cross_entropy_backward`; it is empty otherwise.

    Returns:
        ``loss`` is float32. ``stats`` is ``(S,)`` float32, 8 bytes per pixel, with gamma 12, and a little padding.
    """
    shape = target.shape
    if target.numel() == 0:
        nothing = torch.zeros(shape if per_pixel else (), dtype=torch.float32, device=input.device)
        return nothing if per_pixel else nothing * scale[0], torch.empty(0, dtype=torch.float32, device=input.device)
    input, target = _as_images(input, target)
    problem = _problem(input, target, weight, offset, ignore_index, label_smoothing, gamma, align_corners)
    size = _tiling.stats_size(input, target, gamma, align_corners) if save else 0
    stats = torch.empty(size, dtype=torch.float32, device=input.device)
    same = (input.shape[2], input.shape[3]) == (target.shape[1], target.shape[2])
    tile = _tiling.choose("cross_entropy_same" if same else "cross_entropy")
    parts = cdiv(problem["items"], tile["ITEMS"])
    loss = torch.empty(shape if per_pixel else (), dtype=torch.float32, device=input.device)
    partial = loss if per_pixel else torch.empty(parts, dtype=torch.float32, device=input.device)
    arguments = problem | {
        "target": target,
        "scale": scale,
        "loss": partial,
        "gamma": gamma,
        "stats": stats,
        "ITEMS": tile["ITEMS"],
        "CLASSES": tile["CLASSES"],
        "PHASES": 1 if same else min(tile["PHASES"], power_of_2(problem["MAX_PHASES"])),
        "SAME": same,
        "PER_PIXEL": per_pixel,
        "SAVE": save,
    }
    launch(_forward, (parts,), arguments, tile, fuse=True)
    if not per_pixel:
        arguments = {"partial": partial, "scale": scale, "loss": loss, "parts": parts, "BLOCK": 1024}
        launch(_total, (1,), arguments, FOUR_WARPS, fuse=True)
    return loss, stats


def cross_entropy_backward(
    grad: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    scale: Tensor,
    stats: Tensor,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> Tensor:
    """The gradient with respect to ``input``, in its shape, dtype and, if dense, strides.

    Args:
        grad: upstream gradient, ``()`` or, for losses per pixel, of the shape of ``target``.
        stats: from :func:`cross_entropy`; if empty, the forward pass runs again.
        others: as in :func:`cross_entropy`.
    """
    if target.numel() == 0:
        return torch.zeros_like(input)
    if stats.numel() == 0:
        _, stats = cross_entropy(
            input, target, weight, offset, scale, ignore_index, False, label_smoothing, gamma, align_corners, save=True
        )
    result = torch.empty_like(input)
    grad_input, _ = _as_images(result, target)
    if grad_input.data_ptr() != result.data_ptr():
        result = grad_input = torch.empty(input.shape, dtype=input.dtype, device=input.device)
        grad_input, _ = _as_images(result, target)
    input, target = _as_images(input, target)
    problem = _problem(input, target, weight, offset, ignore_index, label_smoothing, gamma, align_corners)
    same = (input.shape[2], input.shape[3]) == (target.shape[1], target.shape[2])
    arguments: dict[str, Any] = {
        "target": target,
        "scale": scale,
        "grad": grad.to(torch.float32).contiguous(),
        "stats": stats,
        "grad_input": grad_input,
        "PER_PIXEL": grad.dim() > 0,
    }
    arguments |= dict(zip(("grad_n", "grad_c", "grad_y", "grad_x"), grad_input.stride(), strict=True))
    problem["WIDE"] = problem["WIDE"] or needs_64_bits(grad_input)
    if same:
        tile = _tiling.choose("cross_entropy_same")
        for name in ("below", "right", "height", "width", "MAX_PHASES", "stats_plane", "ALIGN_CORNERS"):
            del problem[name]
        arguments |= problem | {"ITEMS": tile["ITEMS"], "CLASSES": tile["CLASSES"]}
        launch(_backward_same, (cdiv(problem["items"], tile["ITEMS"]),), arguments, tile, fuse=True)
        return result
    tile = _tiling.choose("cross_entropy_backward")
    height, width = input.shape[2:]
    strips = cdiv(height, tile["ROWS"])
    arguments |= problem | {
        "items": input.shape[0] * strips * (width + 1),
        "strips": strips,
        "max_rows": _tiling.most_outputs(height, target.shape[1], align_corners),
        "CLASSES": tile["CLASSES"],
        "PHASES": min(tile["PHASES"], power_of_2(problem["MAX_PHASES"])),
        "ROWS": tile["ROWS"],
    }
    blocks = cdiv(arguments["items"] - 1, 31) * cdiv(input.shape[1], tile["CLASSES"])
    launch(_backward, (blocks,), arguments, tile, fuse=True)
    return result


def _as_images(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """``input`` as ``(N, C, h, w)`` and ``target`` as contiguous ``(N, H, W)``.

    Logits are copied where two strides cannot address all pixels.
    """
    if input.dim() != 4:
        images, classes = input.shape[:2]
        columns = input.shape[-1] if input.dim() > 2 else 1
        input = input.reshape(images, classes, target[:1].numel() // columns, columns)
        target = target.reshape(images, -1, columns)
    return input, target.contiguous()


def _problem(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    offset: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    gamma: float,
    align_corners: bool,
) -> dict[str, Any]:
    """The kernel arguments that forward and backward share."""
    num_classes, height, width = input.shape[1:]
    out_height, out_width = target.shape[1:]
    same = (height, width) == (out_height, out_width)
    max_phases = 1 if same else _tiling.most_outputs(width, out_width, align_corners)
    items = target.shape[0] * out_height * (out_width if same else width + 1)
    stride_n, stride_c, stride_y, stride_x = input.stride()
    return {
        "logits": input,
        "weight": weight,
        "offset": offset,
        "stride_n": stride_n,
        "stride_c": stride_c,
        "stride_y": stride_y,
        "stride_x": stride_x,
        # offsets to the neighbouring samples; a single sample is its own neighbour
        "below": stride_y if height > 1 else 0,
        "right": stride_x if width > 1 else 0,
        "items": items,
        "height": height,
        "width": width,
        "out_height": out_height,
        "out_width": out_width,
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "MAX_PHASES": max_phases,
        "stats_plane": items * max_phases,
        "keep": 1 - label_smoothing,
        "smooth": label_smoothing / num_classes,
        "ALIGN_CORNERS": align_corners,
        "WEIGHTED": weight is not None,
        "OFFSET": offset is not None,
        "SMOOTHED": label_smoothing > 0,
        "FOCAL": gamma > 0,
        "LONG": items * max_phases >= 2**31,
        # also where the integers of _cells.py would overflow
        "WIDE": needs_64_bits(input) or max((height + 1) * out_height, (width + 1) * out_width) >= 2**29,
    }
