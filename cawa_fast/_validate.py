"""Checks of arguments: shapes, dtypes, devices, ranges. Messages name the argument, its value and the way out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)


def short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(short, dtypes))


def check_float(name: str, argument: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: {argument} must be one of {names(FLOATS)}, got {short(value.dtype)}")


def check_label_dtype(name: str, argument: str, value: Tensor, other: Tensor) -> None:
    if value.dtype not in LABELS:
        raise TypeError(
            f"{name}: {argument} must be one of {names(LABELS)}, got {short(value.dtype)}; convert it, best on load"
        )
    if value.device != other.device:
        raise ValueError(f"{name}: {argument} is on {value.device}, but the other tensor on {other.device}; move one")


def check_loss_shapes(name: str, input: Tensor, target: Tensor) -> None:
    if input.dim() == 1:
        raise ValueError(f"{name}: for input (C,) target must be a scalar of shape (), got {tuple(target.shape)}")
    if input.dim() == 4:
        check_map_shapes(name, "input", input, target)
    elif target.shape != (*input.shape[:1], *input.shape[2:]):
        raise ValueError(
            f"{name}: for input {tuple(input.shape)} target must have the shape "
            f"{(*input.shape[:1], *input.shape[2:])}, got {tuple(target.shape)} (only (N, C, h, w) is resized)"
        )
    if input.shape[1] == 0:
        raise ValueError(f"{name}: input {tuple(input.shape)} has no classes")


def check_map_shapes(name: str, argument: str, value: Tensor, target: Tensor) -> None:
    if value.dim() != 4:
        raise ValueError(f"{name}: {argument} must be (N, C, h, w), got {tuple(value.shape)}")
    if target.dim() == 4 and target.shape[1] == 1:
        raise ValueError(f"{name}: target must be (N, H, W), got {tuple(target.shape)}; use target.squeeze(1)")
    if target.dim() != 3 or target.shape[0] != value.shape[0]:
        raise ValueError(
            f"{name}: target must be (N, H, W) with N = {value.shape[0]} as in {argument} {tuple(value.shape)}, got "
            f"{tuple(target.shape)}"
        )
    if value.shape[1] == 0:
        raise ValueError(f"{name}: {argument} {tuple(value.shape)} has no classes")
    if value.shape[2:].numel() == 0 and target.shape[1:].numel() > 0:
        raise ValueError(f"{name}: {argument} {tuple(value.shape)} is empty, but target is {tuple(target.shape)}")


def check_weight(name: str, weight: Tensor | None, input: Tensor) -> None:
    if weight is None:
        return
    if weight.shape != input.shape[1:2]:
        raise ValueError(
            f"{name}: weight must have one value for each of the {input.shape[1]} classes, got shape "
            f"{tuple(weight.shape)}"
        )
    check_float(name, "weight", weight)
    if weight.device != input.device:
        raise ValueError(f"{name}: weight is on {weight.device}, but input on {input.device}; move one")
    if weight.requires_grad:
        raise ValueError(f"{name}: weight requires a gradient, which is not computed; pass weight.detach()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(weight).tangent is not None:
        raise ValueError(f"{name}: weight has a tangent, for which nothing is computed; pass weight.detach()")


def check_choice(name: str, argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: {argument} must be one of {', '.join(choices)}; got {value!r}")


def check_range(name: str, argument: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {argument} must lie in [0, 1], got {value}")


def masked(target: Tensor, mask: Tensor | Sequence[bool] | None, ignore_index: int) -> Tensor:
    """The labels ``(N, H, W)`` with ``ignore_index`` everywhere in the images whose ``mask`` ``(N,)`` is false."""
    if mask is None:
        return target
    mask = torch.as_tensor(mask, device=target.device)
    if mask.dtype != torch.bool or mask.shape != target.shape[:1]:
        raise ValueError(
            f"observe: mask must be bool of shape {tuple(target.shape[:1])}, one value per image; "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    limits = torch.iinfo(target.dtype)
    if not limits.min <= ignore_index <= limits.max:
        target = target.to(torch.int32)
    return target.where(mask.view(-1, *[1] * (target.dim() - 1)), ignore_index)


def check_weight_values(weight: Tensor | None) -> None:
    """Raise if a weight on the CPU is negative or not finite. On other devices the check would synchronise."""
    if weight is None or weight.device.type != "cpu":
        return
    if not bool(((weight >= 0) & (weight < torch.inf)).all()):
        index = int((~((weight >= 0) & (weight < torch.inf))).nonzero()[0])
        raise ValueError(
            f"weight must be finite and not negative; weight[{index}] is {weight[index].item()}. "
            "A class is left out with weight 0, a label with ignore_index"
        )


def check(condition: bool, name: str, argument: str, value: object, must: str) -> None:
    """Raise a ``ValueError`` that says what ``argument`` of ``name`` must be, unless ``condition``."""
    if not condition:
        raise ValueError(f"{name}: {argument} must {must}, got {value!r}")


def as_class_counts(name: str, counts: Tensor | Sequence[int] | None, num_classes: int) -> Tensor | None:
    """``class_counts`` as a checked tensor that shares no memory with the argument."""
    if counts is None:
        return None
    result = torch.as_tensor(counts).detach().clone()
    check(result.shape == (num_classes,), name, "class_counts", tuple(result.shape), f"have the shape ({num_classes},)")
    valid = bool((result >= 0).all()) and bool(result.double().isfinite().all()) and bool((result > 0).any())
    check(valid, name, "class_counts", result.tolist(), "be finite, not negative and not all zero")
    return result if result.is_floating_point() else result.to(torch.int64)
