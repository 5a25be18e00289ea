"""A pretend device: its tensors live in CPU memory and report another device, as tensors on a GPU do.

It shows typical faults of GPU code without a GPU: operators on tensors of different devices, reads and copies that
would synchronise the host with the device, and tests that assume a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from cawa_fast._ops import backends, implementations

NAME = "pretend"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)


class PretendTensor(Tensor):
    """A tensor on the pretend device; the CPU tensor ``inner`` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        assert type(inner) is Tensor, type(inner)
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        wrapper.inner = inner
        return wrapper

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.inner!r} on {NAME}"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Waited(RuntimeError):
    """The host would have synchronised with the device."""


_may_wait = True
_READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select", "aten::_unique2"}
_INDEXED = {"aten::index", "aten::index_put_"}


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise :class:`Waited` where the host would synchronise with the device."""
    global _may_wait
    _may_wait = False
    try:
        yield
    finally:
        _may_wait = True


def _is_here(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run ``func`` on the CPU memory. Its results are on this device unless it copies to another one."""
    name = func._schema.name
    if func.namespace == "cawa_fast":  # run its implementation, so that the operators inside are checked too
        with _Factories():
            return getattr(implementations, "compute_" + name.removeprefix("cawa_fast::"))(*args, **kwargs)
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = "device" in kwargs and kwargs["device"] is not None and not _is_here(kwargs["device"])
    copies = name in ("aten::copy_", "aten::_to_copy")
    others = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if others and not copies and any(tensor.dim() > 0 for tensor in others):
        raise RuntimeError(f"{name}: Expected all tensors to be on the same device, but found {DEVICE} and cpu")
    masked = name in _INDEXED and any(
        tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if tensor is not None
    )
    if not _may_wait and (masked or name in _READS or (copies and (away or others or not tensors))):
        raise Waited(f"{name} synchronises with the device")
    kwargs = dict(kwargs)
    if _is_here(kwargs.get("device")):
        kwargs["device"] = torch.device("cpu")
    wrappers = {id(tensor.inner): tensor for tensor in tensors if isinstance(tensor, PretendTensor)}
    inner: Callable[[PretendTensor], Tensor] = lambda tensor: tensor.inner  # noqa: E731
    args, kwargs = tree_map_only(PretendTensor, inner, args), tree_map_only(PretendTensor, inner, kwargs)
    result = func(*args, **kwargs)
    into = name == "aten::copy_" and not isinstance(tensors[0], PretendTensor)
    if away or into:
        return result
    return tree_map_only(
        Tensor, lambda tensor: wrappers[id(tensor)] if id(tensor) in wrappers else PretendTensor(tensor), result
    )


class _Factories(TorchDispatchMode):
    """Creates tensors that are requested on this device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_here(kwargs.get("device")) and not any(
            isinstance(x, PretendTensor) for x in tree_leaves((args, kwargs))
        ):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _FromHost(TorchFunctionMode):
    """Handles ``torch.tensor`` and the assignment of numbers, which a dispatch mode does not see."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and _is_here(kwargs.get("device")):
            if not _may_wait:
                raise Waited("torch.tensor copies from the host")
            return PretendTensor(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        if func is Tensor.__setitem__ and isinstance(args[2], (int, float)) and isinstance(args[0], PretendTensor):
            return args[0][args[1]].fill_(args[2])
        return func(*args, **kwargs)


@contextlib.contextmanager
def device() -> Iterator[None]:
    """Inside this context the device exists, and new tensors are created on it."""
    # Backward passes stay on this thread, because the interpreter needs NumPy settings that are thread-local.
    with torch.autograd.set_multithreading_enabled(False), _FromHost(), _Factories(), DEVICE:
        yield


def use_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run Triton's kernels for this device in the interpreter."""
    from cawa_fast.kernels import _launch, cam_counts, confusion_matrix, cross_entropy, labels

    def launch(kernel: Any, grid: Any, arguments: Any, tile: Any, *, fuse: bool = False) -> None:
        inner = {name: value.inner if isinstance(value, PretendTensor) else value for name, value in arguments.items()}
        _launch.launch(kernel, grid, inner, tile, fuse=fuse)

    for module in (labels, confusion_matrix, cam_counts, cross_entropy):
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(backends, "runs_triton", lambda device: device.type == NAME)
