"""``SegmentationMetrics``: mIoU, Dice and accuracies over many batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import _label_check, _validate
from . import functional as CF
from ._collective import check_group, sum_if_distributed
from ._plots import draw_bars, names_of
from .metrics import MetricValues, segmentation_metrics


class SegmentationMetrics(nn.Module):
    r"""mIoU, IoU, Dice and accuracies, by class and over all classes, of everything that :meth:`update` was given.

    Holds one confusion matrix of exact int64 counts, from which :meth:`compute` computes all values
    (:func:`cawa_fast.segmentation_metrics`). Logits are resized inside the kernel, so that no full-resolution logits
    are stored. :meth:`update` does not synchronise with the device, and works under ``no_grad``, ``inference_mode`` and
    autocast.

    **Processes.** If ``torch.distributed`` is initialised, :meth:`compute` sums the counts over all processes, and all
    of them must call it. Shares of images may differ in size. Call :meth:`sync` on all of them to do so earlier: then
    any of them may call :meth:`compute` alone. The duplicates with which a ``DistributedSampler`` pads the last batch
    are left out with ``mask=``.

    All state is in two buffers of the shape ``(C, C)``, which ``state_dict`` holds. After :meth:`sync` the state is the
    same in all processes, so that one file serves all.

    Args:
        num_classes: ``C``, in ``[1, 65535]``.
        ignore_index: label of the pixels that are not counted.
        align_corners: sample positions of the resize of logits, as in ``F.interpolate``.
        class_names: ``C`` names for :meth:`plot`.

    Attributes:
        local: ``(C, C)`` int64, rows = target, columns = prediction: what this process has counted since the last
            :meth:`sync`.
        summed: ``(C, C)`` int64: what all processes had counted at the last :meth:`sync`.

    Raises:
        ValueError, TypeError: naming the argument that does not fit.

    Example:
        >>> import torch, cawa_fast as cf
        >>> metrics = cf.SegmentationMetrics(3, ignore_index=255)
        >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 1, 1, 255]]]))
        >>> values = metrics.compute()
        >>> values.miou, values.iou.tolist()  # class 2 does not occur
        (0.5, [0.5, 0.5, nan])
    """

    local: Tensor
    summed: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int = -100,
        align_corners: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        num_classes = _validate.as_int(name, "num_classes", num_classes, "pass the model's number of classes")
        _validate.check(1 <= num_classes <= 65535, name, "num_classes", num_classes, "lie in [1, 65535]")
        self.num_classes = num_classes
        self.ignore_index = _validate.as_ignore_index(name, ignore_index)
        self.align_corners = _validate.as_bool(name, "align_corners", align_corners)
        self.class_names = _validate.as_class_names(name, class_names, num_classes)
        self._is_summed = False
        with torch.inference_mode(False):
            for buffer in ("local", "summed"):
                self.register_buffer(buffer, torch.zeros(num_classes, num_classes, dtype=torch.int64))

    def update(self, input: Tensor, target: Tensor, *, mask: Tensor | Sequence[bool] | None = None) -> None:
        """Count one batch, on its device and without synchronising. The counts move to that device.

        Args:
            input: logits ``(N, C, h, w)`` of any size, or predictions ``(N, H, W)``; volumes too, see
                :func:`cawa_fast.functional.confusion_matrix`.
            target: labels ``(N, H, W)``, uint8, int16, int32 or int64.
            mask: ``(N,)`` bool: the images to count, such as a part of :func:`cawa_fast.unpadded`.

        Raises:
            ValueError: a shape or device does not fit, or a label or prediction lies outside ``[0, C)``.
            TypeError: an argument has another type or dtype.
        """
        name = "SegmentationMetrics.update"
        _validate.check_tensor(name, "input", input, "a tensor of logits or predictions")
        if input.is_floating_point() and input.dim() >= 4 and input.shape[1] != self.num_classes:
            raise ValueError(
                f"{name}: input has {input.shape[1]} channels, but num_classes={self.num_classes}; got "
                f"{tuple(input.shape)}"
            )
        matrix = CF.confusion_matrix(
            input,
            _validate.masked(target, mask, self.ignore_index, name),
            num_classes=self.num_classes,
            ignore_index=self.ignore_index,
            align_corners=self.align_corners,
        )
        if self.local.device != matrix.device:
            self.to(matrix.device)
        self.local.add_(matrix)
        self._is_summed = False

    @torch.no_grad()
    def sync(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum the counts over all processes, in one all-reduce of ``C * C`` int64. All of them must call it.

        What was summed before is not summed again: call it as often as you like.

        Args:
            group: processes to sum over; default: all.

        Raises:
            TypeError: ``group`` is not a process group.
        """
        check_group("SegmentationMetrics.sync", group)
        counts = self.local.clone()
        sum_if_distributed(counts, group)
        self.summed.add_(counts)
        self.local.zero_()
        self._is_summed = True

    def compute(self, *, sync: bool = True) -> MetricValues:
        """The metrics of everything since the last :meth:`reset`. Synchronises with the device.

        Args:
            sync: whether to call :meth:`sync` first, unless nothing was counted since. False: do not wait for other
                processes, and add only what this one has counted since then.

        Returns:
            :class:`cawa_fast.metrics.MetricValues` on the CPU, a named tuple: ``miou``, ``iou``, ``mean_accuracy``,
            ``accuracy``, ``pixel_accuracy``, ``mean_dice``, ``dice``, ``frequency_weighted_iou`` and ``confusion``.
            Values are NaN where they are undefined. ``compute()._asdict()`` is a dict.

        Raises:
            ValueError: a GPU found bad labels since the last check.
        """
        if sync and not self._is_summed:
            self.sync()
        # After the collective: a process that raises must not leave the others waiting in it.
        _label_check.check_labels()
        return segmentation_metrics((self.summed + self.local).cpu())

    def reset(self) -> None:
        """Forget all counts."""
        self.local.zero_()
        self.summed.zero_()
        self._is_summed = False

    def plot(self, *, sync: bool = True) -> tuple[Any, Any]:
        """A bar chart of the IoU of each class, with the mean values in its title. Needs matplotlib.

        Args:
            sync: as in :meth:`compute`.

        Returns:
            ``(fig, ax)``, a matplotlib figure and its axes. It belongs to ``pyplot``: close it with ``plt.close(fig)``,
            as TensorBoard's ``add_figure`` does.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            >>> import torch, cawa_fast as cf
            >>> metrics = cf.SegmentationMetrics(2, class_names=["road", "sky"])
            >>> metrics.update(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 1]]]))
            >>> fig, ax = metrics.plot()
            >>> [label.get_text() for label in ax.get_yticklabels()]
            ['road', 'sky']
        """
        values = self.compute(sync=sync)
        title = (
            f"mIoU {values.miou:.3f}, mean Dice {values.mean_dice:.3f}\n"
            f"mean accuracy {values.mean_accuracy:.3f}, pixel accuracy {values.pixel_accuracy:.3f}"
        )
        return draw_bars(values.iou.tolist(), names_of(self.class_names, self.num_classes), title, "IoU")

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, ignore_index={self.ignore_index}"

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._is_summed = False

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SegmentationMetrics:
        # A buffer moved in inference mode would become an inference tensor, which update() could not write to later.
        with torch.inference_mode(False):
            return super()._apply(fn, recurse)
