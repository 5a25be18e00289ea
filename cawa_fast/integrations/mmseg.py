"""MMSegmentation and mmengine: class weights that follow each validation. See ``docs/frameworks.md``.

In a config::

    custom_imports = dict(imports=["cawa_fast.integrations.mmseg"])
    model = dict(decode_head=dict(loss_decode=dict(type="CawaCrossEntropy", loss_weight=1.0)))
    custom_hooks = [dict(type="CawaHook")]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .. import _validate
from ..cawa import CAWA
from ._shared import log, missing, observe, of_step, unhooked

try:
    from mmengine.dist import get_dist_info
    from mmengine.hooks import Hook
    from mmengine.model import is_model_wrapper
    from mmengine.runner import IterBasedTrainLoop
    from mmseg.registry import HOOKS
except ImportError as error:
    if (error.name or "").partition(".")[0] == "mmcv":
        text = (
            f"{__name__}: {error}; mmsegmentation 1.2 needs an mmcv for your torch: mim install 'mmcv>=2.0.0rc4,<2.2.0'"
        )
        raise ModuleNotFoundError(text, name=error.name) from error
    raise missing("mmseg", error) from error

from ._mmseg_loss import CawaCrossEntropy, connect

__all__ = ["CawaCrossEntropy", "CawaHook"]

_KEY = "cawa"  # of the checkpoint
_OF_THE_HEAD = ("num_classes", "ignore_index", "align_corners")


@HOOKS.register_module()
class CawaHook(Hook):
    """Scores the classes in each validation of a training and sets the weights of every :class:`CawaCrossEntropy`.

    **Validation.** What ``model.predict`` returns is scored: its logits, resized to the labels, with windows of the
    slide mode put together. The labels are those of the validation pipeline, which must load them. ``Runner.val`` and
    ``Runner.test`` change nothing. Images that a sampler has added to fill up the last batch are left out. With an
    ``EMAHook`` the averaged network is scored.

    **Checkpoints** hold the state under the key ``cawa``; the network's ``state_dict`` stays as it is. mmengine saves a
    checkpoint before the validation of the same iteration. A run that resumes from such a one validates first, so
    that it continues with the weights of an uninterrupted run.

    **Logged** to the backends of the visualizer are ``cawa/weight/CLASS``, ``csps`` and ``iou``.

    Args:
        per_class: whether to log values of single classes.
        **options: other arguments of :class:`cawa_fast.CAWA`. The number of classes, ``ignore_index`` and
            ``align_corners`` are those of the decode head; names of classes are those of the dataset.

    Attributes:
        cawa: the :class:`cawa_fast.CAWA`; None before a training.

    Raises:
        TypeError, ValueError: naming the option, or the part of the config, that does not fit.

    Example:
        >>> hook = HOOKS.build(dict(type="mmseg.CawaHook", delta=0.5))
        >>> hook.cawa is None
        True
    """

    def __init__(self, *, per_class: bool = True, **options: Any) -> None:
        self._who = type(self).__name__
        self._per_class = _validate.as_bool(self._who, "per_class", per_class)
        for name in ("reduction", "label_smoothing"):
            if name in options:
                raise TypeError(f"{self._who}: {name}={options[name]!r} is set in loss_decode; leave it out here")
        self._given = {name: options.pop(name) for name in _OF_THE_HEAD if name in options}
        names = options.get("class_names", ())
        unhooked(self._who, max(2, len(names or ())), {**options, "class_counts": None})  # raises for bad values
        self._options = options
        self.cawa: CAWA | None = None
        self._state: dict[str, Any] | None = None  # of the checkpoint that was loaded
        self._fresh = self._training = False
        self._stepped = -1  # the iteration of the last step
        self._seen = 0  # images of this process in the validation
        self._bias: Tensor | None = None
        self._handles: list[Any] = []

    # ------------------------------------------------------------------------------------------------------- training

    def before_train(self, runner: Any) -> None:
        model = _bare(runner.model)
        heads = [head for name in ("decode_head", "auxiliary_head") for head in _listed(getattr(model, name, None))]
        losses = [loss for loss in model.modules() if isinstance(loss, CawaCrossEntropy)]
        if not losses:
            raise ValueError(
                f"{self._who}: no loss of the model uses the class weights; set "
                "model.decode_head.loss_decode=dict(type='CawaCrossEntropy')"
            )
        main = _listed(model.decode_head)[-1]
        used = [head for head in heads if any(isinstance(loss, CawaCrossEntropy) for loss in head.modules())]
        self.cawa = self._made(runner, main, used)
        connect(model, self.cawa)
        if isinstance(getattr(main, "conv_seg", None), nn.Module):
            self._handles = [main.conv_seg.register_forward_hook(self._ran)]
        if runner.val_loop is None:
            log.warning("%s: without a validation the class weights stay as they are; set val_dataloader", self._who)
        self._fresh = self._training = True

    def _made(self, runner: Any, main: Any, used: Sequence[Any]) -> CAWA:
        for head in used:
            for name in ("num_classes", "ignore_index"):
                if getattr(head, name) != getattr(main, name):
                    raise ValueError(
                        f"{self._who}: {name} is {getattr(main, name)} in {type(main).__name__}, and "
                        f"{getattr(head, name)} in {type(head).__name__}; give all heads with CawaCrossEntropy the same"
                    )
        for name, value in self._given.items():
            if value != getattr(main, name):
                raise ValueError(f"{self._who}: {name} is {getattr(main, name)} in model.decode_head, got {value!r}")
        options = dict(self._options)
        dataset = getattr(runner.train_dataloader, "dataset", None)
        names = (getattr(dataset, "metainfo", None) or {}).get("classes")
        if names is not None and len(names) == main.num_classes:
            options.setdefault("class_names", tuple(names))
        # with out_channels=1 a sigmoid decides, and there is nothing to weight
        classes = getattr(main, "out_channels", main.num_classes)
        options |= {"ignore_index": -100 if main.ignore_index is None else main.ignore_index}
        cawa = unhooked(self._who, classes, options | {"align_corners": bool(main.align_corners)})
        return cawa.to(next(main.parameters()).device)

    def before_train_epoch(self, runner: Any) -> None:
        if not self._fresh:
            return
        self._fresh = False
        assert self.cawa is not None
        self.cawa.reset()
        if runner.iter == 0:  # a checkpoint that was only loaded is a network to begin with
            return
        if self._state is None:
            raise ValueError(
                f"{self._who}: the checkpoint to resume from was made without {self._who}, and has no class weights. "
                "To begin with weights of 1, load its network alone: load_from='its path', resume=False"
            )
        try:
            self.cawa.load_state_dict(self._state["state"])
        except RuntimeError as error:
            raise ValueError(f"{self._who}: the checkpoint does not fit this CAWA: {error}") from error
        self._stepped, self._state = self._state["iter"], None
        if self._stepped != runner.iter and _is_due(runner):
            runner.logger.info(f"{self._who}: validation of iteration {runner.iter}, which the checkpoint precedes")
            runner.val_loop.run()

    def after_train(self, runner: Any) -> None:
        self._training = False
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ------------------------------------------------------------------------------------------------------ validation

    def before_val_epoch(self, runner: Any) -> None:
        self._seen, self._bias = 0, None
        if self.cawa is not None:
            self.cawa.reset()

    def _ran(self, layer: Any, inputs: Any, output: Any) -> None:
        bias = getattr(layer, "bias", None)
        assert self.cawa is not None
        self._bias = bias if bias is not None and len(bias) == self.cawa.weights.num_classes else None

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        if not self._training or self.cawa is None:
            return
        rank, processes = get_dist_info()
        images = len(runner.val_dataloader.dataset)
        for sample in outputs:
            place = self._seen * processes + rank  # as samplers share images out, and as metrics leave out the rest
            self._seen += 1
            if place >= images:
                continue
            for name in ("seg_logits", "gt_sem_seg"):
                if name not in sample:
                    raise ValueError(
                        f"{self._who}: the validation returns no {name}; the val_pipeline must have LoadAnnotations, "
                        "and the model must be a segmentor with one map per class"
                    )
            observe(self.cawa, sample.gt_sem_seg.data, sample.seg_logits.data[None], self._bias)

    def after_val_epoch(self, runner: Any, metrics: Any = None) -> None:
        if not self._training or self.cawa is None:
            return
        self.cawa.step()
        self._stepped = runner.iter
        if self._per_class:
            runner.visualizer.add_scalars(of_step(self.cawa.weights), step=runner.iter)

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        if self.cawa is not None:
            state = {name: value.cpu() for name, value in self.cawa.state_dict().items()}
            checkpoint[_KEY] = {"state": state, "iter": self._stepped}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self._state = checkpoint.get(_KEY)


def _bare(model: Any) -> Any:
    return model.module if is_model_wrapper(model) else model


def _listed(heads: Any) -> list[Any]:
    return [] if heads is None else list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def _is_due(runner: Any) -> bool:
    """Whether the loop had validated at this place, had it not been interrupted."""
    loop = runner.train_loop
    if runner.val_loop is None:
        return False
    by_iter = isinstance(loop, IterBasedTrainLoop)
    done, last = (loop.iter, loop.max_iters) if by_iter else (loop.epoch, loop.max_epochs)
    interval = loop.val_interval
    for milestone, later in zip(loop.dynamic_milestones, loop.dynamic_intervals, strict=True):
        interval = later if milestone <= done + 1 else interval
    return done >= loop.val_begin and (done % interval == 0 or done == last)
