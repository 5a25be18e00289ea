"""Checks of arguments: types, shapes, devices, ranges. Messages name the argument, its value and the way out."""

from __future__ import annotations

import contextlib
import operator
import reprlib
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LABELS = (torch.uint8, torch.int16, torch.int32, torch.int64)
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1


def short(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(map(short, dtypes))


def described(value: object) -> str:
    """What ``value`` is, in a few words."""
    if isinstance(value, Tensor):
        if value.is_nested or value.layout is not torch.strided:
            return f"a {'nested' if value.is_nested else short(value.layout)} tensor"
        return f"a tensor of {short(value.dtype)}, shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of {value.dtype}, shape {value.shape}"
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str | int | float | list | tuple):
        return f"the {type(value).__name__} {reprlib.repr(value)}"
    return f"an object of type {type(value).__name__}"


def _to_tensor(argument: str, value: object) -> str:
    """The way to a dense tensor from what was passed in its place."""
    if isinstance(value, Tensor):
        pad = f"pad it with torch.nested.to_padded_tensor({argument}, value)"
        return pad if value.is_nested else f"pass {argument}.to_dense()"
    if isinstance(value, torch.nn.Module) and isinstance(getattr(value, "weight", None), Tensor):
        return f"pass {argument}.weight"
    if isinstance(getattr(value, "logits", None), Tensor):
        return f"pass {argument}.logits"
    if isinstance(value, Mapping):
        return f"pass one of its values, such as {argument}[{next(iter(value), 'out')!r}]"
    if isinstance(value, Sequence) and any(isinstance(item, Tensor) for item in value):
        return f"pass one of its tensors, or torch.stack({argument})"
    if isinstance(value, np.ndarray):
        return f"convert it with torch.from_numpy({argument})"
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return f"convert it with torch.from_numpy(numpy.array({argument}))"
    if isinstance(value, list | tuple | int | float):
        return f"convert it with torch.tensor({argument})"
    return "pass a tensor"


def check_tensor(name: str, argument: str, value: Any, what: str = "a tensor") -> None:
    """Raise a ``TypeError`` unless ``value`` is a dense tensor; ``what`` says which one is needed."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name}: {argument} must be {what}, got {described(value)}; {_to_tensor(argument, value)}")


def _check_dtype(name: str, argument: str, value: Tensor, dtypes: tuple[torch.dtype, ...], way_out: str) -> None:
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_nested:
        check_tensor(name, argument, value, f"a tensor of {names(dtypes)}")
    if value.dtype not in dtypes:
        if value.is_quantized:
            way_out = f"pass {argument}.dequantize()"
        elif value.is_complex():
            way_out = f"pass {argument}.real or {argument}.abs()"
        raise TypeError(f"{name}: {argument} must be one of {names(dtypes)}, got {short(value.dtype)}; {way_out}")


def check_float(name: str, argument: str, value: Tensor) -> None:
    _check_dtype(name, argument, value, FLOATS, "convert it with .float()")


def check_label_dtype(name: str, argument: str, value: Tensor, other: Tensor) -> None:
    _check_dtype(name, argument, value, LABELS, "convert it, best on load")
    if value.device != other.device:
        raise ValueError(f"{name}: {argument} is on {value.device}, but the other tensor on {other.device}; move one")


def as_int(name: str, argument: str, value: Any, way_out: str) -> Any:
    """``value`` as an int, from an int, a NumPy integer or an integer tensor of one value. A symbolic one is kept.

    ``way_out`` ends the messages.
    """
    if type(value) is not int and not isinstance(value, torch.SymInt):
        found = value
        value = None
        if not isinstance(found, bool | np.bool_) and getattr(found, "dtype", None) is not torch.bool:
            with contextlib.suppress(TypeError):
                value = operator.index(found)
        if value is None:
            raise TypeError(f"{name}: {argument} must be an integer, got {described(found)}; {way_out}")
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise ValueError(f"{name}: {argument} must lie in [-2**63, 2**63), got {value}; {way_out}")
    return value


def as_ignore_index(name: str, value: Any) -> int:
    return as_int(name, "ignore_index", value, "pass one label; one that does not occur, such as -100, ignores nothing")


_NUMBERS = (float, int, torch.SymInt, torch.SymFloat)  # a tuple: isinstance takes longer with a union


def as_number(name: str, argument: str, value: Any) -> Any:
    """``value`` as a number that may be infinite or NaN: an int or a float, or a float from another real number."""
    if isinstance(value, _NUMBERS):
        return value
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()):
        return float(value)
    raise TypeError(f"{name}: {argument} must be a number, got {described(value)}; pass a float")


def as_bool(name: str, argument: str, value: Any) -> bool:
    """``value`` as a bool; NumPy's are accepted, and 0 and 1."""
    if value is True or value is False:
        return value
    if isinstance(value, int | np.bool_) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name}: {argument} must be True or False, got {described(value)}")


def check_loss_types(name: str, input: Tensor, target: Tensor) -> None:
    """Raise unless these are logits with a class axis and labels on one device."""
    check_float(name, "input", input)
    if isinstance(target, Tensor) and target.is_floating_point():
        probabilities = target.dim() == input.dim()
        hint = "for class probabilities use F.cross_entropy" if probabilities else "convert it with target.long()"
        raise TypeError(
            f"{name}: target must hold class indices ({names(LABELS)}), got "
            f"{short(target.dtype)} of shape {tuple(target.shape)}; {hint}"
        )
    check_label_dtype(name, "target", target, input)
    if input.dim() == 0:
        raise ValueError(f"{name}: input must be (N, C, ...) or (C,), got a scalar; add the class axis")


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


def check_volume_shapes(name: str, argument: str, value: Tensor, target: Tensor) -> None:
    wanted = (value.shape[0], *value.shape[2:])
    if target.shape == wanted:
        return
    if target.shape[1:2] == (1,) and target.dim() == value.dim():
        raise ValueError(f"{name}: target must be {wanted}, got {tuple(target.shape)}; use target.squeeze(1)")
    resize = f"F.interpolate({argument}, size, mode='trilinear')"
    raise ValueError(
        f"{name}: for {argument} {tuple(value.shape)} target must have the shape {wanted}, got {tuple(target.shape)}; "
        f"only (N, C, h, w) is resized, so resize a volume before, as with {resize}"
    )


def check_per_class(name: str, argument: str, value: Tensor | None, input: Tensor) -> None:
    """Raise unless ``value`` is None or holds one constant for each class of ``input``."""
    if value is None:
        return
    check_tensor(name, argument, value, "None or a tensor (C,)")
    if value.shape != input.shape[1:2]:
        raise ValueError(
            f"{name}: {argument} must have one value for each of the {input.shape[1]} classes, got shape "
            f"{tuple(value.shape)}"
        )
    check_float(name, argument, value)
    if value.device != input.device:
        raise ValueError(f"{name}: {argument} is on {value.device}, but input on {input.device}; move one")
    if value.requires_grad:
        raise ValueError(f"{name}: {argument} requires a gradient, which is not computed; pass {argument}.detach()")
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(value).tangent is not None:
        raise ValueError(f"{name}: {argument} has a tangent, for which nothing is computed; pass {argument}.detach()")


def check_matrix(name: str, matrix: Any, num_classes: int | None = None) -> None:
    """Raise unless ``matrix`` is a square tensor of real numbers, with ``num_classes`` a ``(C, C)`` one of integers."""
    what = "a tensor (C, C), as cawa_fast.functional.confusion_matrix returns it"
    check_tensor(name, "matrix", matrix, what)
    if matrix.is_complex() or (num_classes is not None and (matrix.is_floating_point() or matrix.dtype == torch.bool)):
        raise TypeError(f"{name}: matrix must be {what}, got {short(matrix.dtype)}; pass pixel counts, such as int64")
    side = num_classes if num_classes is not None else len(matrix) if matrix.dim() else 0
    if matrix.shape != (side, side):
        raise ValueError(
            f"{name}: matrix must be {'square' if num_classes is None else (side, side)}, got {tuple(matrix.shape)}"
        )


def check_choice(name: str, argument: str, value: Any, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        got = repr(value) if value is None or isinstance(value, str) else described(value)
        hint = '; None is called "none"' if value is None and "none" in choices else ""
        raise ValueError(f"{name}: {argument} must be one of {', '.join(choices)}; got {got}{hint}")


def as_fraction(name: str, argument: str, value: Any) -> Any:
    value = as_number(name, argument, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: {argument} must lie in [0, 1], got {value}")
    return value


def masked(target: Tensor, mask: Tensor | Sequence[bool] | None, ignore_index: int, name: str = "observe") -> Tensor:
    """The labels ``(N, H, W)`` with ``ignore_index`` everywhere in the images whose ``mask`` ``(N,)`` is false."""
    if mask is None:
        return target
    _check_dtype(name, "target", target, LABELS, "convert it, best on load")
    try:
        mask = torch.as_tensor(mask, device=target.device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{name}: mask must be a bool tensor or a list, one value per image, got {described(mask)}; "
            "cawa_fast.unpadded(sampler) returns one"
        ) from None
    if mask.dtype != torch.bool or mask.shape != target.shape[:1]:
        raise ValueError(
            f"{name}: mask must be bool of shape {tuple(target.shape[:1])}, one value per image; "
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


def check_offset_values(offset: Tensor | None) -> None:
    """Raise if an offset on the CPU is not finite. On other devices the check would synchronise."""
    if offset is None or offset.device.type != "cpu" or bool(offset.isfinite().all()):
        return
    index = int((~offset.isfinite()).nonzero()[0])
    raise ValueError(
        f"offset must be finite; offset[{index}] is {offset[index].item()}. A class is left out with weight 0, a label "
        "with ignore_index"
    )


def check(condition: bool, name: str, argument: str, value: object, must: str) -> None:
    """Raise a ``ValueError`` that says what ``argument`` of ``name`` must be, unless ``condition``."""
    if not condition:
        raise ValueError(f"{name}: {argument} must {must}, got {value!r}")


def as_counts(name: str, argument: str, counts: Any) -> Tensor:
    """``counts`` as a detached tensor of real numbers. ``name``, with a colon, begins the message, or is empty."""
    try:
        result = torch.as_tensor(counts).detach()
    except (TypeError, ValueError, RuntimeError):
        result = None
    if result is None or result.is_nested or result.layout is not torch.strided or result.is_complex():
        raise TypeError(
            f"{name}{argument} must be a tensor or a sequence of numbers, one per class, got {described(counts)}; "
            "pass pixels per class"
        )
    return result


def as_class_counts(name: str, counts: Tensor | Sequence[int] | None, num_classes: int) -> Tensor | None:
    """``class_counts`` as a checked tensor that shares no memory with the argument."""
    if counts is None:
        return None
    result = as_counts(f"{name}: ", "class_counts", counts).clone()
    check(result.shape == (num_classes,), name, "class_counts", tuple(result.shape), f"have the shape ({num_classes},)")
    valid = bool((result >= 0).all()) and bool(result.double().isfinite().all()) and bool((result > 0).any())
    check(valid, name, "class_counts", result.tolist(), "be finite, not negative and not all zero")
    return result if result.is_floating_point() else result.to(torch.int64)


def as_class_names(name: str, class_names: Any, num_classes: int) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    if isinstance(class_names, str) or not hasattr(class_names, "__len__"):
        got = described(class_names)
        raise TypeError(f"{name}: class_names must be a list of {num_classes} names, got {got}")
    check(len(class_names) == num_classes, name, "class_names", list(class_names), f"have {num_classes} names")
    return tuple(class_names)
