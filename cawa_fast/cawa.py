"""``CAWA``: the closed loop in one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _validate
from . import functional as CF
from ._listener import Listener
from ._output_check import LayerRun
from ._rules import RecallRule
from ._state import as_bytes, from_bytes
from ._wrappers import attach
from .adaptive import AdaptiveClassWeights
from .cam import METHODS, maps_at_classifier
from .nn import CrossEntropyLoss
from .rules import Rule
from .sampling import HasPresence, ValidationSampler, as_presence


class CAWA(nn.Module):
    r"""Class-activation adaptive weights for a network that you already train.

    Finds the layer that computes the network's logits and registers a forward hook on it. The loss reads the
    low-resolution logits before any upsampling, and the activation maps follow in closed form from what that layer
    computes. It may be a 1x1 convolution, another one with stride 1 whose zero padding keeps the size of the map, also
    with groups or dilation, or ``nn.Linear`` over features with their channels last.

    **Which layer.** Several such layers may have C outputs. In the first forward pass of the training, the first
    other one, and the first of each size of images, their outputs, resized, are compared with what the network
    returned, at a few hundred positions, and once more after each step. The layer that agrees is used, with the
    ``align_corners`` that agrees. If none does, or several do, an error lists them. :meth:`explain` says what was
    found. On a GPU nothing waits for a comparison: until the first has finished, the loss is computed from the
    network's own output.

    **Without a hook.** ``CAWA(None, num_classes)`` works with any network, with windows, scales and mirrored images:
    pass the logits to :meth:`loss` and :meth:`observe` as ``logits=``. With ``source="cam"`` the maps are then Grad-CAM
    at the logits themselves. The score of class c is the sum of its logits, whose gradient is 1 at every position of
    class c, so that the map is :math:`\mathrm{ReLU}(z_c)` for every method. At the classifier's input it is
    :math:`\mathrm{ReLU}(z_c - b_c)`. The bias :math:`b_c` of the classifier, which does not depend on the image, is
    the difference: a class with a positive bias gets a larger pseudo mask at the logits, one with a negative bias a
    smaller one.

    **Which pass.** :meth:`loss` and :meth:`observe` use the last forward pass. It is an error to observe a pass twice,
    to observe one of the training, and to use one after others that were not used. Pass ``logits=`` to say which logits
    you mean; then nothing of this is checked.

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
        model: the network, bare or wrapped in DDP. The caller keeps it; CAWA only adds hooks. None: the logits are
            passed to :meth:`loss` and :meth:`observe`.
        num_classes: ``C``.
        classifier: the ``nn.Conv2d`` or ``nn.Linear`` that computes the logits, or its dotted name. Default: search for
            it.
        reduction, label_smoothing, ignore_index: as in :class:`cawa_fast.CrossEntropyLoss`. The last applies to the
            scores too.
        align_corners: sample positions of the resize, for loss and scores, as in ``F.interpolate``. Default: those of
            the network's own resize; False if it has none.
        verify: whether to compare the output of the classifier with what the network returns.
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
        model: nn.Module | None,
        num_classes: int,
        *,
        classifier: nn.Module | str | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        align_corners: bool | None = None,
        verify: bool = True,
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
        rule: str | RecallRule | Rule = "cawa",
    ) -> None:
        super().__init__()
        num_classes = _validate.as_int("CAWA", "num_classes", num_classes, "pass the number of classes")
        budget = _as_budget(budget)
        every = _validate.as_int("CAWA", "every", every, "pass a number of calls of due()")
        if every < 1:
            raise ValueError(f"CAWA: every must be at least 1, got {every!r}")
        if align_corners is not None:
            align_corners = _validate.as_bool("CAWA", "align_corners", align_corners)
        if budget is not None and metrics:
            raise ValueError("CAWA: metrics=True needs all images, and budget= observes a part; leave out one of them")
        _validate.check_choice("CAWA", "method", method, METHODS)
        self.method = method
        if model is None and classifier is not None:
            raise ValueError(f"CAWA: classifier={classifier!r} needs the network; pass it instead of None")
        verify = _validate.as_bool("CAWA", "verify", verify)
        # Not a submodule: its layers are the network's, whose state would be saved twice.
        self._listener: Listener | None = None
        device = None
        if model is not None:
            self._listener = Listener(
                "CAWA", model, num_classes, classifier, align_corners=align_corners, verify=verify
            )
            device = self._listener.candidate.head.weight.device
        corners = bool(align_corners)
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
            align_corners=corners,
            momentum=momentum,
            max_error=max_error,
            metrics=metrics,
            rule=rule,
        ).to(device)
        # In a tuple: as a submodule, it would save the state of the weights twice.
        self._parts = (CrossEntropyLoss(self.weights, ignore_index, reduction, label_smoothing, corners),)
        self.budget, self.every = budget, every
        self._asked = 0
        self._sampler: ValidationSampler | None = None
        self._sampler_state: dict[str, Any] | None = None  # of a checkpoint, for a later sampler()
        if self._listener is not None:
            self._listener.recorder.attach()

    @property
    def criterion(self) -> CrossEntropyLoss:
        return self._parts[0]

    @property
    def weight(self) -> Tensor:
        """``(C,)`` float32, mean 1: the weights that the loss uses now."""
        return self.weights.weight

    @property
    def logits(self) -> Tensor:
        """``(N, C, h, w)``: the output of the classifier in the last forward pass, with its autograd graph."""
        run = self._heard("logits").last(wait=False)
        self._adopt_corners()
        return run.logits

    @property
    def classifier(self) -> nn.Module | None:
        """The convolution or linear layer that computes the logits, as far as it is known; None without a network."""
        return None if self._listener is None else self._listener.candidate.head

    def maps(self) -> Tensor:
        """``(N, C, h, w)``: activation maps of the last forward pass, after the ReLU, before normalisation."""
        return self._maps(self._heard("maps").last())

    def count_labels(self, target: Tensor) -> Tensor:
        """``(C + 1,)`` int64: the pixels of each class in labels of any shape, and last the ignored ones.

        Add up those of all batches that one step of the optimiser shall use, and pass the sum to :meth:`loss`.
        """
        classes, ignore_index = self.weights.num_classes, self.weights.ignore_index
        flat = target.reshape(1, 1, -1)
        matrix = CF.confusion_matrix(flat, flat, num_classes=classes, ignore_index=ignore_index)
        counts = matrix.diagonal()
        return torch.cat((counts, (target.numel() - counts.sum()).reshape(1)))

    def loss(
        self,
        target: Tensor,
        *,
        logits: Tensor | None = None,
        output: Any = None,
        weighted: bool = True,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Weighted cross-entropy between the last forward pass and labels.

        Args:
            target: labels ``(N, H, W)`` of any resolution.
            logits: ``(N, C, h, w)`` of any resolution, in place of those of the last forward pass.
            output: what DDP or FSDP returned in the last forward pass, in any form. The gradient then passes through
                its tensors too, with zeros; the value stays. ``DistributedDataParallel(..., static_graph=True)`` and
                ``fully_shard`` of the whole network alone need that to synchronise the gradients.
            weighted: whether to use the class weights and offsets. False for the loss of a validation set: they change
                from step to step, so that weighted losses cannot be compared.
            counts: ``(C + 1,)`` int64: the sum of :meth:`count_labels` over the batches that are accumulated, on all
                processes. The result is then the share of this batch in the loss of them all, see
                :meth:`cawa_fast.CrossEntropyLoss.share`. DDP averages over the processes: multiply by their number.

        Returns:
            The loss, as :class:`cawa_fast.CrossEntropyLoss` returns it.

        Raises:
            RuntimeError: the network has not run, or it is not clear that its last forward pass was that of the batch;
                or a wrapper needs ``output``.
            ValueError: no layer has computed what the network returned; or ``output`` has no tensor with a gradient.
        """
        if logits is None:
            logits = self._heard("loss").use("loss").logits
            self._adopt_corners()
            if output is None and weighted and logits.requires_grad:
                self._heard("loss").check_wrapper()
        else:
            _validate.check_float("CAWA.loss", "logits", logits)
            if self._sampler is not None and logits.requires_grad:
                self._sampler.train()  # a hook says so otherwise
        self._follow(logits.device)
        if counts is not None:
            loss = self.criterion.share(logits, target, counts, weighted=weighted)
        else:
            loss = self.criterion(logits, target) if weighted else self.criterion.unweighted(logits, target)
        return loss if output is None else attach(loss, output)

    def observe(
        self, target: Tensor, *, logits: Tensor | None = None, mask: Tensor | Sequence[bool] | None = None
    ) -> None:
        """Score the last forward pass, of a validation batch, against its labels. Does not synchronise.

        Args:
            target: labels ``(N, H, W)`` of any resolution.
            logits: ``(N, C, h, w)`` of any resolution, in place of those of the last forward pass.
            mask: ``(N,)`` bool: the images to count, see :meth:`AdaptiveClassWeights.observe`.

        Raises:
            RuntimeError: the network has not run, or it is not clear that its last forward pass was that of the batch.
            ValueError: no layer has computed what the network returned, or an argument does not fit.
        """
        weights = self.weights
        target = _validate.masked(target, mask, weights.ignore_index)
        run = None
        if logits is not None:
            _validate.check_float("CAWA.observe", "logits", logits)
            scored = logits.detach().relu() if weights.source == "cam" else logits.detach()
        else:
            first = self.budget is not None and not self._needs_sampler().taken
            run = self._heard("observe").use("observe", wait=True, first=first)
            self._adopt_corners()
            logits = run.logits
            scored = self._maps(run) if weights.source == "cam" else logits
        self._score(target, logits, scored)
        if run is not None:
            self._heard("observe").observed(run)

    def _score(self, target: Tensor, logits: Tensor, scored: Tensor) -> None:
        """Count maps (or logits, with ``source="argmax"``) and predictions of a validation batch."""
        weights = self.weights
        self._follow(logits.device)
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

    def reset(self) -> None:
        """Forget what was observed since the last step, and the last forward pass. The weights stay.

        For passes that shall not count: a trial run before the training, or predictions in between.
        """
        self.weights.reset()
        if self._sampler is not None:
            self._sampler.taken = 0
        if self._listener is not None:
            self._listener.forget()

    def explain(self) -> str:
        """Which layer CAWA listens to, and how the network's output follows from it, in words.

        Example:
            >>> import torch, cawa_fast as cf
            >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.UpsamplingBilinear2d(scale_factor=2))
            >>> cawa = cf.CAWA(model, num_classes=5)
            >>> cawa.explain()
            "CAWA listens to '0'. It was not compared with the network's output yet."
            >>> _ = model(torch.rand(1, 3, 8, 8))
            >>> _ = cawa.loss(torch.zeros(1, 16, 16, dtype=torch.uint8))
            >>> cawa.explain()  # doctest: +ELLIPSIS
            "CAWA listens to '0': its output, resized bilinearly from 8x8 to 16x16 with align_corners=True, is ..."
        """
        if self._listener is None:
            return "CAWA listens to no network: the logits are passed to loss() and observe()."
        return self._listener.explain()

    def step(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """Call after the last validation batch: the new weights ``(C,)``, see :meth:`AdaptiveClassWeights.step`.

        The next forward passes are compared with the output of the network again, since layers after the classifier may
        have changed nothing before they were trained.
        """
        if self.budget is None:
            self.weights.step(group)
        else:
            self._step_of_sample(self._needs_sampler(), group)
        if self._listener is not None:
            self._listener.compare_again()  # after the collective, since it may raise
        return self.weight

    def _step_of_sample(self, sampler: ValidationSampler, group: dist.ProcessGroup | None) -> None:
        if not sampler.taken:  # this process has no image of the sample
            self.weights.begin_sample(sampler.draw()[1])
        if self.weights.weight.is_cuda:
            torch.cuda.synchronize(self.weights.weight.device)  # so that the clock below measures the step alone
        times, began = sampler.times(), time.perf_counter_ns()
        sampler.stepped(self.weights.step_with(group, times))
        sampler.late(time.perf_counter_ns() - began)

    def plot(self) -> tuple[Any, Any]:
        """Weights and IoU by class and step, as a figure ``(fig, ax)``; see :meth:`AdaptiveClassWeights.plot`."""
        return self.weights.plot()

    def log(self, fn: Callable[[str, float, Any], object], step: Any) -> None:
        """Log weights, IoU and mIoU with ``fn(name, value, step)``; see :meth:`AdaptiveClassWeights.log`.

        Example:
            >>> import cawa_fast as cf
            >>> cf.CAWA(None, 2, class_names=["road", "sky"]).log(print, 7)
            cawa/weight/road 1.0 7
            cawa/weight/sky 1.0 7
        """
        self.weights.log(fn, step)

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
        if self._listener is not None:
            self._listener.recorder.clock = self._sampler
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
        """Remove the hooks from the network and release the last output."""
        if self._listener is not None:
            self._listener.recorder.detach()
            self._listener.forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._listener is not None:
            self._listener.recorder.clock = self._sampler

    def _heard(self, purpose: str) -> Listener:
        if self._listener is None:
            raise RuntimeError(f"CAWA.{purpose}: there is no network to listen to; pass the logits as logits=")
        return self._listener

    def _maps(self, run: LayerRun) -> Tensor:
        return maps_at_classifier(self._heard("maps"), run, self.method)

    def _adopt_corners(self) -> None:
        """Use the network's own sample positions, once they are known."""
        corners = self._heard("loss").align_corners
        if corners is not None and corners != self.weights.align_corners:
            self.weights.align_corners = self.criterion.align_corners = corners

    def _follow(self, device: torch.device) -> None:
        if self.weights.weight.device != device:  # the network was moved after CAWA was made
            self.weights.to(device)


def _as_budget(budget: Any) -> float | None:
    """A fraction as a float, or a number of images as an int."""
    if budget is None:
        return None
    way_out = "pass a float in (0, 1), a share of the training time, or an int of at least 2, a number of images"
    if isinstance(budget, (float, np.floating)):
        if not 0 < budget < 1:
            raise ValueError(f"CAWA: budget must be a share of the training time in (0, 1), got {budget!r}; {way_out}")
        return float(budget)
    budget = _validate.as_int("CAWA", "budget", budget, way_out)
    if budget < 2:
        raise ValueError(f"CAWA: budget must be a share of the training time, or images, got {budget!r}; {way_out}")
    return budget
