"""What a network may be wrapped in: DDP, FSDP, ``torch.compile``, and what these ask of a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ._classifier import Candidate, tensors_of

_WRAPPED = {
    "OptimizedModule": "_orig_mod",  # of torch.compile
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DistributedDataParallel``, ``DataParallel``, FSDP and ``torch.compile``.

    Example:
        >>> network = nn.Conv2d(3, 5, 1)
        >>> unwrapped(nn.DataParallel(network)) is network
        True
    """
    while True:
        attribute = _WRAPPED.get(type(model).__name__)
        if attribute is None:
            return model
        model = getattr(model, attribute)


def in_static_graph() -> bool:
    """Whether this is within the forward pass of ``DistributedDataParallel(..., static_graph=True)``."""
    wrapper = DistributedDataParallel._active_ddp_module
    return wrapper is not None and wrapper.static_graph


def is_sharded_as_a_whole(candidate: Candidate, root: nn.Module) -> bool:
    """Whether FSDP shards a part that contains the layer, and nothing inside that part for itself."""
    names = candidate.name.split(".") if candidate.name else []
    around = [root.get_submodule(".".join(names[:end])) for end in range(len(names) + 1)]
    whole = next((module for module in around if _is_sharded(module)), None)
    return whole is not None and not any(_is_sharded(module) for module in whole.modules() if module is not whole)


def _is_sharded(module: nn.Module) -> bool:
    return any(base.__name__ in ("FSDPModule", "FullyShardedDataParallel") for base in type(module).__mro__)


class _Attach(torch.autograd.Function):
    """The loss, with zero gradients for other tensors, so that a wrapper's hooks on these tensors run."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.shapes = [(output.shape, output.dtype, output.device) for output in outputs]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        zeros = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.shapes)
        return grad, *zeros


def attach(loss: Tensor, output: Any) -> Tensor:
    """``loss``, with a gradient of zeros for the tensors in ``output``.

    Raises:
        ValueError: none of them takes part in the gradient.
    """
    tensors = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
    if torch.is_grad_enabled() and loss.requires_grad and not tensors:
        raise ValueError(
            f"CAWA.loss: output, of type {type(output).__name__}, holds no tensor with a gradient; pass what the "
            "wrapped network returned for this batch"
        )
    return _Attach.apply(loss, *tensors) if tensors else loss
