"""``AdaptiveClassWeights``: the state of CAWASeg between two validation passes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _checks, reference
from . import functional as CF

SOURCES = ("cam", "argmax")
_RESULTS = ("iou", "pixel_accuracy", "csps", "base_weight", "ratio_weight")


class AdaptiveClassWeights(nn.Module):
    r"""Class weights from how well each class's activation map matches the ground truth (CAWASeg, Eq. 1 to 9).

    Call :meth:`observe` for each validation batch and :meth:`step` after the last one; :attr:`weight` is then the
    class weight for the next epoch's loss. Every step computes, for class i over all that was observed,

    .. math::
        CSPS_i &= \delta\, IoU_i + (1 - \delta)\, PA_i \\
        BW_i &= \log\Bigl(1 + \frac{\sum_j CSPS_j}{CSPS_i + \epsilon}\Bigr)
                \log\Bigl(1 + \frac{\sum_j n_j}{n_i + \epsilon}\Bigr) \\
        w_i &\propto \min(\max(BW_i \cdot RW_i, w_{min}), w_{max}), \quad \mathrm{mean}(w) = 1

    with the pixel count :math:`n_i` and the ratio :math:`RW_i` of this CSPS to the last. A class without ground truth
    is left out of sums and mean; its weight is 1, its IoU, PA and CSPS are NaN.

    All state are buffers: it moves with the module, is saved in ``state_dict``, and a resumed run continues with the
    same bits. ``weight`` is updated in place, so that losses, CUDA graphs and DDP see it.

    Args:
        num_classes: ``C``, at least 1.
        delta: share of the IoU in CSPS, in ``[0, 1]``; the rest is pixel accuracy.
        tau: threshold of the pseudo mask, in ``[0, 1]``.
        w_min: lower clip of the raw weight, at least 0.
        w_max: upper clip, at least ``w_min``.
        eps: keeps the quotients finite, positive.
        ignore_index: label of pixels that count for nothing.
        class_counts: ``(C,)`` pixels per class for :math:`n_i`, say of the training set; by default those observed.
        class_names: ``C`` names for tables.
        source: ``"cam"``: :meth:`observe` takes activation maps. ``"argmax"``: it takes logits and scores their argmax
            (the paper's ablation without pseudo masks).
        ratio: ``"paper"``: ``CSPS(t) / (CSPS(t-1) + eps)`` to the letter, in which a class with CSPS 0 falls to
            ``w_min`` and stays there. ``"smoothed"``: ``ratio_eps`` is added to both sides, so that 0/0 is 1.
            ``"none"``: 1.
            Measured on CamVid, mean of two seeds, mIoU / mean IoU of the rare classes: smoothed 0.456 / 0.125, paper
            0.452 / 0.114, none 0.452 / 0.113, uniform weights 0.396 / 0.003; with ``source="argmax"`` smoothed
            0.446 / 0.126 and paper 0.224 / 0.000, where seven of eleven classes died (bench/results/ratio-camvid.md).
        ratio_eps: see ``ratio``; positive.
        normalize: see :func:`cawa_fast.functional.cam_counts`.
        classes: see :func:`cawa_fast.functional.cam_counts`.
        align_corners: how maps are resized to the labels.

    Attributes:
        weight: ``(C,)`` float32, mean 1, ones before the first step.
        counts: ``(3, C)`` int64: tp, fp, fn observed since the last step.
        iou, pixel_accuracy, csps, base_weight, ratio_weight: ``(C,)`` float32, of the last step (NaN before it).
        history: one record per step: lists by class, for tables and plots.

    Raises:
        ValueError: naming the argument that is out of range.

    Example:
        >>> import torch, cawa_fast as cf
        >>> weights = cf.AdaptiveClassWeights(2)
        >>> loss_fn = cf.CrossEntropyLoss(weight=weights)
        >>> cam = torch.tensor([[[[4.0, 3.0, 1.0]], [[0.0, 0.0, 2.0]]]])  # one image, two classes, 1 x 3
        >>> weights.observe(cam, torch.tensor([[[0, 1, 1]]]))
        >>> weights.step()
        tensor([1.1763, 0.8237])
    """

    weight: Tensor
    counts: Tensor
    iou: Tensor
    pixel_accuracy: Tensor
    csps: Tensor
    base_weight: Tensor
    ratio_weight: Tensor
    last_csps: Tensor
    class_counts: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        delta: float = 0.9,
        tau: float = 0.5,
        w_min: float = 0.1,
        w_max: float = 20.0,
        eps: float = 1e-6,
        ignore_index: int = -100,
        class_counts: Tensor | Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        source: str = "cam",
        ratio: str = "smoothed",
        ratio_eps: float = 0.01,
        normalize: str = "max",
        classes: str = "present",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        _check(num_classes >= 1, "num_classes", num_classes, "be at least 1")
        _check(0 <= delta <= 1, "delta", delta, "lie in [0, 1]")
        _check(0 <= tau <= 1, "tau", tau, "lie in [0, 1]")
        _check(0 <= w_min < math.inf, "w_min", w_min, "be finite and at least 0")
        _check(w_min <= w_max, "w_max", w_max, f"be at least w_min={w_min}")
        _check(w_max > 0, "w_max", w_max, "be positive")
        _check(0 < eps < math.inf, "eps", eps, "be positive and finite")
        _check(0 < ratio_eps < math.inf, "ratio_eps", ratio_eps, "be positive and finite")
        _check(source in SOURCES, "source", source, f"be one of {', '.join(SOURCES)}")
        _check(ratio in reference.RATIOS, "ratio", ratio, f"be one of {', '.join(reference.RATIOS)}")
        _check(
            normalize in reference.NORMALIZATIONS,
            "normalize",
            normalize,
            f"be one of {', '.join(reference.NORMALIZATIONS)}",
        )
        _check(classes in reference.CLASSES, "classes", classes, f"be one of {', '.join(reference.CLASSES)}")
        if class_names is not None:
            _check(len(class_names) == num_classes, "class_names", list(class_names), f"have {num_classes} names")

        self.num_classes = num_classes
        self.delta, self.tau, self.w_min, self.w_max, self.eps = delta, tau, w_min, w_max, eps
        self.ignore_index = ignore_index
        self.class_names = None if class_names is None else tuple(class_names)
        self.source, self.ratio, self.ratio_eps = source, ratio, ratio_eps
        self.normalize, self.classes, self.align_corners = normalize, classes, align_corners
        self.history: list[dict[str, Any]] = []

        with torch.inference_mode(False):
            self.register_buffer("weight", torch.ones(num_classes))
            self.register_buffer("counts", torch.zeros(3, num_classes, dtype=torch.int64))
            for name in (*_RESULTS, "last_csps"):
                self.register_buffer(name, torch.full((num_classes,), torch.nan))
            self.register_buffer("class_counts", _as_counts(class_counts, num_classes))

    def observe(self, cam: Tensor, target: Tensor) -> None:
        """Add one batch to the counts, on its device and without waiting for it.

        Args:
            cam: ``(N, C, h, w)`` maps after the ReLU at any resolution, as :class:`cawa_fast.GradCAM` returns them;
                with ``source="argmax"`` logits. float32, float64, bfloat16 or float16.
            target: labels ``(N, H, W)``, uint8, int16, int32 or int64.

        Raises:
            ValueError: a shape or device that does not fit; labels outside ``[0, C)``.
        """
        if cam.dim() == 4 and cam.shape[1] != self.num_classes:
            raise ValueError(
                f"observe: cam has {cam.shape[1]} channels, but num_classes={self.num_classes}; got {tuple(cam.shape)}"
            )
        self._check_device("observe: cam", cam)
        if self.source == "cam":
            counts = CF.cam_counts(
                cam,
                target,
                tau=self.tau,
                normalize=self.normalize,
                classes=self.classes,
                ignore_index=self.ignore_index,
                align_corners=self.align_corners,
            )
            self.counts.add_(torch.stack(counts))
        else:
            self.observe_confusion(
                CF.confusion_matrix(cam, target, ignore_index=self.ignore_index, align_corners=self.align_corners)
            )

    def observe_confusion(self, matrix: Tensor) -> None:
        """Add a confusion matrix ``(C, C)`` int64 (rows = target) in place of a batch: what ``source="argmax"`` scores.

        For a validation loop that computes the matrix anyway, for its own metric.
        """
        if matrix.shape != (self.num_classes, self.num_classes):
            raise ValueError(
                f"observe_confusion: matrix must be ({self.num_classes}, {self.num_classes}), got {tuple(matrix.shape)}"
            )
        self._check_device("observe_confusion: matrix", matrix)
        tp = matrix.diagonal()
        self.counts.add_(torch.stack((tp, matrix.sum(0) - tp, matrix.sum(1) - tp)))

    @torch.no_grad()
    def step(self, group: dist.ProcessGroup | None = None) -> Tensor:
        """Turn the counts of all processes into the next weights (Eq. 2 to 9), and start counting anew.

        One all-reduce of ``3 * C`` int64 where ``torch.distributed`` is initialised; then every process computes the
        same float64 arithmetic on the same integers, so that all hold the same bits. Waits for the device.

        Args:
            group: processes to sum over; by default all.

        Returns:
            :attr:`weight`, updated in place.

        Raises:
            RuntimeError: nothing with valid ground truth was observed since the last step.
            ValueError: bad labels that were met on a GPU since the last check.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.counts, group=group)
        _checks.check_labels()  # after the collective: a process that raises must not leave the others waiting in it
        counts = self.counts.to("cpu", copy=True)
        if not bool((counts[0] + counts[2]).any()):
            raise RuntimeError(
                "step: no labelled pixel was observed since the last step; call observe(cam, target) for each "
                f"validation batch first (is every label ignore_index={self.ignore_index}?)"
            )
        update = reference.update_weights(
            counts,
            class_counts=None if self.class_counts is None else self.class_counts.cpu(),
            last_csps=self.last_csps.cpu(),
            delta=self.delta,
            eps=self.eps,
            ratio=self.ratio,
            ratio_eps=self.ratio_eps,
            w_min=self.w_min,
            w_max=self.w_max,
        )
        for name, value in update._asdict().items():
            getattr(self, name).copy_(value)
        self.last_csps.copy_(self.csps.where(~self.csps.isnan(), self.last_csps))
        self.counts.zero_()
        self.history.append(
            {name: value.float().tolist() for name, value in update._asdict().items()}
            | {"step": len(self.history) + 1, "pixels": (counts[0] + counts[2]).tolist()}
        )
        return self.weight

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, delta={self.delta}, tau={self.tau}, source={self.source!r}, "
            f"ratio={self.ratio!r}, steps={len(self.history)}"
        )

    # The history travels as a tensor of JSON bytes: formats that hold tensors alone (safetensors) keep it too, and
    # torch.load(weights_only=True) reads it. Python's JSON returns every float with the same bits, NaN included.
    def get_extra_state(self) -> Tensor:
        return torch.frombuffer(bytearray(json.dumps(self.history), "ascii"), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        self.history = json.loads(state.cpu().numpy().tobytes())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptiveClassWeights:
        # model.half() casts floating buffers; the weights stay float32 (their last bits decide the next ratio). And a
        # buffer that is moved in inference mode must not become an inference tensor, which step() could not write to.
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        with torch.inference_mode(False):
            return super()._apply(keep_dtype, recurse)

    def _check_device(self, argument: str, tensor: Tensor) -> None:
        if tensor.device != self.counts.device:  # moving it here would make the host wait, unseen
            raise ValueError(
                f"{argument} is on {tensor.device}, but the weights are on {self.counts.device}; move them with .to()"
            )


def _check(condition: bool, argument: str, value: object, must: str) -> None:
    if not condition:
        raise ValueError(f"AdaptiveClassWeights: {argument} must {must}, got {value!r}")


def _as_counts(counts: Tensor | Sequence[int] | None, num_classes: int) -> Tensor | None:
    if counts is None:
        return None
    result = torch.as_tensor(counts).detach().clone()
    _check(result.shape == (num_classes,), "class_counts", tuple(result.shape), f"have the shape ({num_classes},)")
    valid = bool((result >= 0).all()) and bool(result.double().isfinite().all()) and bool((result > 0).any())
    _check(valid, "class_counts", result.tolist(), "be finite, not negative and not all zero")
    return result if result.is_floating_point() else result.to(torch.int64)
