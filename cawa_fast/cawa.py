"""``CAWA``: the closed loop in one object."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _validate
from . import functional as CF
from ._rules import RecallRule
from ._state import as_bytes, from_bytes
from .adaptive import AdaptiveClassWeights
from .cam import METHODS, closed_form, find_classifier
from .nn import CrossEntropyLoss
from .sampling import HasPresence, ValidationSampler, as_presence


class _Listener:
    """The forward hook of the classifier. In a copy of the network (a weight average, a saved file) it does nothing."""

    def __init__(self, owner: CAWA | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        owner = self._owner()
        if owner is not None:
            owner._remember(module, inputs, output)

    def is_detached(self) -> bool:
        return self._owner() is None

    def __reduce__(self) -> tuple[type[_Listener], tuple[()]]:  # also what copy.deepcopy goes by
        return _Listener, ()


class CAWA(nn.Module):
    """Class-activation adaptive weights for a network that you already train.

    Finds the 1x1 convolution that computes the network's logits and registers a forward hook on it. The loss reads the
    low-resolution logits before any upsampling, and the activation maps follow from them in closed form. Layers after
    the classifier are not used.

    The module holds the adaptive weights but not the network. ``state_dict()`` contains the state of :attr:`weights`
    and of the budget; save it beside the network's.

    **How often.** For training that counts iterations, use ``every=n`` and ``if cawa.due(): ...`` once per iteration.
    If there is no validation pass, or its set is huge, use ``budget=0.02`` and a loader with
    ``sampler=cawa.sampler(index)``: they observe as many images as 2 % of the training time allows, forward passes
    included.

    **Processes.** Each process observes its share of the images, and :meth:`step` sums over all processes. Shares may
    differ in size and may be empty. Validate the ``.module`` of a network in DDP: the forward pass of DDP synchronises
    buffers and waits for processes that have no images left.

    Args:
        model: the network, bare or wrapped in DDP. The caller keeps it; CAWA only adds a hook.
        num_classes: ``C``.
        classifier: the 1x1 ``nn.Conv2d`` that computes the logits, or its dotted name. Default: search for it.
        reduction, label_smoothing, ignore_index, align_corners: as in :class:`cawa_fast.CrossEntropyLoss`. The last two
            apply to the scores too.
        budget: fraction of the training time that adaptive weighting may take in total, in ``(0, 1)``; or a number of
            images per step, an int of at least 2. Use :meth:`sampler` for the validation loader. None: all images.
        every: :meth:`due` is true at every ``every``-th call; at least 1.
        method: kind of the activation maps, as in :class:`cawa_fast.GradCAM`; all have a closed form here.
        delta, tau, w_min, w_max, eps, class_counts, class_names, source, ratio, ratio_eps, normalize, classes,
            momentum, max_error, metrics, rule: as in :class:`cawa_fast.AdaptiveClassWeights`, with the same defaults.

    Attributes:
        weights: the :class:`cawa_fast.AdaptiveClassWeights`.
        criterion: the :class:`cawa_fast.CrossEntropyLoss` that uses its live weight.

    Raises:
        ValueError: no classifier was found, or an argument is out of range.

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
        budget: float | None = None,
        every: int = 1,
        method: str = "gradcam",
        delta: float = 0.9,
        tau: float = 0.5,
        w_min: float = 0.1,
        w_max: float = 20.0,
        eps: float = 1e-6,
        class_counts: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        source: str = "cam",
        ratio: str = "none",
        ratio_eps: float = 0.01,
        normalize: str = "max",
        classes: str = "present",
        momentum: float = 0.0,
        max_error: float = 0.1,
        metrics: bool = False,
        rule: str | RecallRule = "cawa",
    ) -> None:
        super().__init__()
        if budget is not None and not (budget >= 2 if isinstance(budget, int) else 0 < budget < 1):
            raise ValueError(
                "CAWA: budget must be a share of the training time in (0, 1), or a number of images of at least 2; "
                f"got {budget!r}"
            )
        if every < 1:
            raise ValueError(f"CAWA: every must be at least 1, got {every!r}")
        if budget is not None and metrics:
            raise ValueError("CAWA: metrics=True needs all images, and budget= observes a part; leave out one of them")
        _validate.check_choice("CAWA", "method", method, METHODS)
        self.method = method
        module = find_classifier(model, num_classes, classifier)
        self.weights = AdaptiveClassWeights(
            num_classes,
            delta=delta,
            tau=tau,
            w_min=w_min,
            w_max=w_max,
            eps=eps,
            ignore_index=ignore_index,
            class_counts=class_counts,
            class_names=class_names,
            source=source,
            ratio=ratio,
            ratio_eps=ratio_eps,
            normalize=normalize,
            classes=classes,
            align_corners=align_corners,
            momentum=momentum,
            max_error=max_error,
            metrics=metrics,
            rule=rule,
        ).to(module.weight.device)
        # In a tuple: as submodules, their state would be saved twice.
        self._parts = (module, CrossEntropyLoss(self.weights, ignore_index, reduction, label_smoothing, align_corners))
        self._record: tuple[Tensor, Tensor] | None = None
        self.budget, self.every = budget, every
        self._asked = 0
        self._sampler: ValidationSampler | None = None
        self._sampler_state: dict[str, Any] | None = None  # of a checkpoint, for a later sampler()
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
        """``(N, C, h, w)``: the output of the classifier in the last forward pass, with its autograd graph."""
        return self._last()[1]

    def maps(self) -> Tensor:
        """``(N, C, h, w)``: activation maps of the last forward pass, after the ReLU, before normalisation."""
        return closed_form(self._parts[0], *self._last(), self.method)

    def loss(self, target: Tensor) -> Tensor:
        """Weighted cross-entropy between the last forward pass and labels ``(N, H, W)`` of any resolution."""
        logits = self.logits
        self._follow(logits.device)
        return self.criterion(logits, target)

    def observe(self, target: Tensor, *, mask: Tensor | Sequence[bool] | None = None) -> None:
        """Score the last forward pass, of a validation batch, against its labels. Does not synchronise.

        Args:
            target: labels ``(N, H, W)`` of any resolution.
            mask: ``(N,)`` bool: the images to count, see :meth:`AdaptiveClassWeights.observe`.
        """
        logits, weights = self.logits, self.weights
        self._follow(logits.device)
        target = _validate.masked(target, mask, weights.ignore_index)
        scored = self.maps() if weights.source == "cam" else logits
        if self.budget is not None:
            sampler = self._needs_sampler()
            if not sampler.taken:
                weights.begin_sample(sampler.draw()[1])
            weights.observe_sample(scored, target, *sampler.take(len(target)))
        elif weights.confusion is not None:
            matrix = CF.confusion_matrix(
                logits, target, ignore_index=weights.ignore_index, align_corners=weights.align_corners
            )
            weights.observe_metrics(matrix)
            if weights.source == "argmax":
                weights.observe_confusion(matrix)
            else:
                weights.observe(scored, target)
        else:
            weights.observe(scored, target)

    def step(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """Call after the last validation batch: the new weights ``(C,)``, see :meth:`AdaptiveClassWeights.step`."""
        if self.budget is None:
            return self.weights.step(group)
        sampler = self._needs_sampler()
        if not sampler.taken:  # this process has no image of the sample
            self.weights.begin_sample(sampler.draw()[1])
        if self.weights.weight.is_cuda:
            torch.cuda.synchronize(self.weights.weight.device)  # so that the clock below measures the step alone
        times, began = sampler.times(), time.perf_counter_ns()
        sampler.stepped(self.weights.step_with(group, times))
        sampler.late(time.perf_counter_ns() - began)
        return self.weight

    def due(self) -> bool:
        """Whether new weights are due: true at every ``every``-th call. Call it once per iteration or once per epoch.

        Example:
            >>> import torch, cawa_fast as cf
            >>> cawa = cf.CAWA(torch.nn.Conv2d(3, 5, 1), num_classes=5, every=3)
            >>> [cawa.due() for _ in range(6)]
            [False, False, True, False, False, True]
        """
        self._asked += 1
        return self._asked % self.every == 0

    def sampler(self, index: Tensor | np.ndarray | HasPresence | int, *, seed: int = 0) -> ValidationSampler:
        """A sampler for the validation loader that keeps to the budget.

        Args:
            index: which classes each validation image contains: ``(images, C)`` bool, or an object with such an
                attribute ``presence``, as :class:`cawa_fast.recipes.datasets.ClassIndex` builds it from label files. If
                it is unknown, the number of images; rare classes are then sampled by chance.
            seed: seed of the draws, at least 0.

        Example:
            >>> import torch, cawa_fast as cf
            >>> cawa = cf.CAWA(torch.nn.Conv2d(3, 5, 1), num_classes=5, budget=8)
            >>> labels = torch.randint(0, 5, (100, 16, 16))
            >>> index = torch.stack([torch.bincount(label.flatten(), minlength=5) > 0 for label in labels])
            >>> len(list(cawa.sampler(index)))
            8
        """
        if self.budget is None:
            raise ValueError("CAWA.sampler: there is no budget; pass budget=0.02 (or a number of images) to CAWA")
        self._sampler = ValidationSampler(as_presence(index, self.weights.num_classes), self.budget, seed)
        if self._sampler_state is not None:
            self._sampler.restore(self._sampler_state)
        return self._sampler

    def get_extra_state(self) -> Tensor:
        sampler = self._sampler_state if self._sampler is None else self._sampler.state()
        return as_bytes({"asked": self._asked, "sampler": sampler})

    def set_extra_state(self, state: Tensor) -> None:
        values = from_bytes(state)
        self._asked, self._sampler_state = values["asked"], values["sampler"]
        if self._sampler is not None and self._sampler_state is not None:
            self._sampler.restore(self._sampler_state)

    def _needs_sampler(self) -> ValidationSampler:
        if self._sampler is None:
            raise RuntimeError(
                f"CAWA: budget={self.budget} samples the validation images; create the validation loader with "
                "sampler=cawa.sampler(index)"
            )
        return self._sampler

    def close(self) -> None:
        """Remove the hook from the network and release the last output."""
        self._handle.remove()
        self._record = None

    def _listen(self) -> None:
        hooks = self._parts[0]._forward_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Listener) and hook.is_detached()]:
            del hooks[key]  # came with a copy of the network
        self._handle = self._parts[0].register_forward_hook(_Listener(self))

    # A CAWA that is copied together with its network hooks the copied network and has no forward pass recorded.
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
        if module.training and self._sampler is not None:
            self._sampler.train()

    def _last(self) -> tuple[Tensor, Tensor]:
        if self._record is None:
            raise RuntimeError(
                "CAWA: the classifier has not run yet; call model(images) first. A network that was compiled and run "
                "before CAWA was created does not call new hooks: create CAWA first, or call torch._dynamo.reset()"
            )
        return self._record

    def _follow(self, device: torch.device) -> None:
        if self.weights.weight.device != device:  # the network was moved after CAWA was made
            self.weights.to(device)
