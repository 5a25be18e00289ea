"""``CAWA``: the closed loop in one object."""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .cam import closed_form, find_classifier
from .nn import CrossEntropyLoss
from .weights import AdaptiveClassWeights


class _Listener:
    """The classifier's hook. A copy of the network (an average of weights, a saved file) is not listened to."""

    def __init__(self, owner: CAWA | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        owner = self._owner()
        if owner is not None:
            owner._remember(module, inputs, output)

    def is_deaf(self) -> bool:
        return self._owner() is None

    def __reduce__(self) -> tuple[type[_Listener], tuple[()]]:  # also what copy.deepcopy goes by
        return _Listener, ()


class CAWA(nn.Module):
    """Class-activation adaptive weights for a network that you already train.

    Finds the network's 1x1 classifier and listens to it: the loss reads its low-resolution logits before any
    upsampling, and the activation maps come from them in closed form. What the network does after the classifier does
    not matter.

    Holds the adaptive weights, not the network: ``state_dict()`` is that of :attr:`weights`, saved beside the
    network's.

    Args:
        model: the network, in its own hands; bare, or wrapped in DDP.
        num_classes: ``C``.
        classifier: the 1x1 ``nn.Conv2d`` that computes the logits, or its dotted name; default: found.
        reduction, label_smoothing, ignore_index, align_corners: as in :class:`cawa_fast.CrossEntropyLoss`; the last two
            also for the scoring.
        **options: of :class:`cawa_fast.AdaptiveClassWeights`: ``delta``, ``tau``, ``w_min``, ``w_max``, ``ratio``, ...

    Attributes:
        weights: the :class:`cawa_fast.AdaptiveClassWeights`.
        criterion: the :class:`cawa_fast.CrossEntropyLoss` that uses its live weight.

    Raises:
        ValueError: no classifier is found, or an option is out of range.

    Example:
        >>> import torch, cawa_fast as cf
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        >>> cawa = cf.CAWA(model, num_classes=5, ignore_index=255)
        >>> images, labels = torch.rand(2, 3, 32, 32), torch.randint(0, 5, (2, 32, 32), dtype=torch.uint8)
        >>> _ = model(images)  # training
        >>> cawa.loss(labels).backward()
        >>> with torch.no_grad():
        ...     _ = model(images)  # validation
        ...     cawa.observe(labels)
        >>> cawa.step().shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        classifier: nn.Conv2d | str | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        align_corners: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        module = find_classifier(model, num_classes, classifier)
        self.weights = AdaptiveClassWeights(
            num_classes, ignore_index=ignore_index, align_corners=align_corners, **options
        ).to(module.weight.device)
        # In a tuple, so that neither becomes a submodule whose state would be saved twice.
        self._parts = (module, CrossEntropyLoss(self.weights, ignore_index, reduction, label_smoothing, align_corners))
        self._record: tuple[Tensor, Tensor] | None = None
        self._listen()

    @property
    def criterion(self) -> CrossEntropyLoss:
        return self._parts[1]

    @property
    def weight(self) -> Tensor:
        """``(C,)`` float32, mean 1: the weights that the loss uses now."""
        return self.weights.weight

    @property
    def logits(self) -> Tensor:
        """``(N, C, h, w)``: the classifier's output in the last forward pass, with its graph."""
        return self._last()[1]

    def maps(self) -> Tensor:
        """``(N, C, h, w)``: Grad-CAM of the last forward pass, after the ReLU, before normalisation."""
        return closed_form(self._parts[0], *self._last())

    def loss(self, target: Tensor) -> Tensor:
        """The weighted cross-entropy of the last forward pass against labels ``(N, H, W)`` of any resolution."""
        logits = self.logits
        self._follow(logits.device)
        return self.criterion(logits, target)

    def observe(self, target: Tensor) -> None:
        """Score the last forward pass, of a validation batch, against its labels ``(N, H, W)``. No host sync."""
        self._follow(self.logits.device)
        self.weights.observe(self.maps() if self.weights.source == "cam" else self.logits, target)

    def step(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """After the last validation batch: the new weights, ``(C,)``; see :meth:`AdaptiveClassWeights.step`."""
        return self.weights.step(group)

    def close(self) -> None:
        """Stop listening to the network, and let go of its last output."""
        self._handle.remove()
        self._record = None

    def _listen(self) -> None:
        hooks = self._parts[0]._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Listener) and hook.is_deaf()]:
            del hooks[key]  # came with a copy of the network
        self._handle = self._parts[0].register_forward_hook(_Listener(self))

    # A copy, together with its network, listens to the copied network and has seen no forward pass yet.
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_record"] = None
        del state["_handle"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._listen()

    def _remember(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._record = inputs[0].detach(), output

    def _last(self) -> tuple[Tensor, Tensor]:
        if self._record is None:
            raise RuntimeError(
                "CAWA: the classifier has not run yet; call model(images) first. (A network that was compiled and run "
                "before CAWA was made does not call new hooks: make CAWA first, or call torch._dynamo.reset())"
            )
        return self._record

    def _follow(self, device: torch.device) -> None:
        if self.weights.weight.device != device:  # the network was moved after CAWA was made
            self.weights.to(device)
