"""Ultralytics: semantic segmentation with class weights that follow each validation. See ``docs/frameworks.md``.

``YOLO("yolo26n-sem.yaml").train(data="data.yaml", trainer=CawaTrainer)``. For a trainer of your own, put
:class:`CawaMixin` before it; or pass its events to :class:`CawaCallback`, which needs no subclass and does less.

Ultralytics is licensed under the AGPL-3.0 or commercially. This module uses its public classes and copies nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..cawa import CAWA
from ..region_losses import DiceLoss
from ._shared import log, missing, observe, of_step, unhooked

try:
    from ultralytics.models.yolo.semantic import SemanticSegmentationTrainer
    from ultralytics.nn.tasks import load_checkpoint
    from ultralytics.utils.torch_utils import unwrap_model
except ImportError as error:
    raise missing("ultralytics", error) from error

__all__ = ["CawaCallback", "CawaMixin", "CawaTrainer"]

if TYPE_CHECKING:
    from ultralytics.models.yolo.semantic import SemanticSegmentationTrainer as _Base  # what CawaMixin is put before
else:
    _Base = object

_IGNORED = 255  # in the masks of Ultralytics
_AUXILIARY = 0.4
_STATE = "cawa"  # attribute of the network in a checkpoint


class Criterion:
    r"""Cross-entropy, plus Dice, plus 0.4 times the cross-entropy of the auxiliary head.

    With weights of 1 it is the loss that Ultralytics' own criterion computes. All of them are computed from
    the logits at an eighth of the image's size. In a validation the loss is unweighted, and the logits
    are scored.

    Args:
        cawa: without a hook.
        stacked: whether to return the parts of the loss as ``(3,)``, as older versions of Ultralytics do, not by name.
    """

    def __init__(self, cawa: CAWA, *, stacked: bool = False) -> None:
        self.cawa, self.stacked = cawa, stacked
        self._dice = DiceLoss(ignore_index=_IGNORED, smooth=1.0, classes="all")
        self.scores = False  # whether a validation that scores the classes runs
        self.bias: Tensor | None = None  # of the layer that computes the logits, in the network that is validated

    def __call__(
        self, preds: Tensor | tuple[Tensor, Tensor], batch: dict[str, Any]
    ) -> tuple[Tensor, Tensor | dict[str, Tensor]]:
        logits, auxiliary = preds if isinstance(preds, tuple) else (preds, None)
        labels = batch["semantic_mask"].to(logits.device)
        counts = self.cawa.count_labels(labels)
        trains = torch.is_grad_enabled()

        def cross_entropy(z: Tensor) -> Tensor:
            return self.cawa.loss(labels, logits=z, counts=counts, weighted=trains)

        items = {"ce_loss": cross_entropy(logits), "dice_loss": self._dice(logits, labels)}
        zero = torch.zeros((), device=logits.device)
        items["aux_loss"] = zero if auxiliary is None else _AUXILIARY * cross_entropy(auxiliary)
        if not trains and self.scores:
            observe(self.cawa, labels, logits, self.bias)
        parts = torch.stack(list(items.values()))
        detached = {name: value.detach() for name, value in items.items()}
        return parts.sum() * len(logits), parts.detach() if self.stacked else detached


def _begin(who: str, trainer: Any, options: dict[str, Any]) -> Criterion:
    """Give the trainer's network a criterion with class weights."""
    if getattr(trainer.args, "cls_pw", 0):
        raise ValueError(
            f"{who}: cls_pw={trainer.args.cls_pw} computes constant class weights, which the adaptive ones replace; "
            "leave it at 0"
        )
    network, names = unwrap_model(trainer.model), trainer.data["names"]
    given = {"class_names": [names[number] for number in sorted(names)], **options, "ignore_index": _IGNORED}
    if options.get("ignore_index", _IGNORED) != _IGNORED:
        raise ValueError(
            f"{who}: ignore_index={options['ignore_index']!r}, but Ultralytics ignores label 255; leave it out"
        )
    cawa = unhooked(who, trainer.data["nc"], given).to(trainer.device)
    if not trainer.args.val:
        log.warning("%s: with val=False the class weights stay as they are", who)
    # where the names are known before the first batch, the loss does not tell them
    network.criterion = Criterion(cawa, stacked=bool(trainer.loss_names))
    return network.criterion


def _restore(who: str, cawa: CAWA, checkpoint: dict[str, Any]) -> None:
    state = getattr(checkpoint["ema"], _STATE, None)
    if state is None:
        raise ValueError(
            f"{who}: the checkpoint to resume from was made without CAWA, and has no class weights. To begin with "
            "weights of 1, train from it without resume"
        )
    try:
        cawa.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{who}: the checkpoint does not fit this CAWA: {error}") from error


def _state(cawa: CAWA) -> dict[str, Tensor]:
    return {name: value.cpu().clone() for name, value in cawa.state_dict().items()}


def _attach(criterion: Criterion, network: Any) -> None:
    """Let the validation of ``network`` score the classes."""
    classifier: Any = getattr(network.model[-1], "classifier", None)
    criterion.bias = getattr(classifier[-1], "bias", None) if isinstance(classifier, torch.nn.Sequential) else None
    network.criterion, criterion.scores = criterion, True
    criterion.cawa.reset()


def _finish(criterion: Criterion, network: Any) -> None:
    network.criterion, criterion.scores = None, False  # checkpoints hold the network
    criterion.cawa.step()


class CawaMixin(_Base):
    """Trains any trainer of semantic segmentation with :class:`cawa_fast.CAWA`.

    ``class MyTrainer(CawaMixin, SemanticSegmentationTrainer): cawa_options = {"delta": 0.5}``

    **Loss.** As Ultralytics', with the adaptive class weights in the cross-entropy. ``cls_pw`` and the constant weights
    for Cityscapes are not used.

    **Validation.** Each one scores the classes of the network that it validates, the average of the weights (EMA), and
    sets the class weights of the epoch that follows. Its losses are unweighted. The final one, of ``best.pt``, changes
    nothing. ``cawa/weight/CLASS`` is in ``results.csv`` and goes to Ultralytics' loggers.

    **Checkpoints.** The network in ``last.pt``, ``best.pt`` and the others has the state as an attribute ``cawa`` of
    plain tensors: they load without this package too. ``resume=True`` goes on with the same class weights.

    Attributes:
        cawa_options: of the class: arguments of :class:`cawa_fast.CAWA`. The number and the names of the classes are
            those of the dataset.
        cawa: the :class:`cawa_fast.CAWA`; there is none before the training.

    Raises:
        TypeError, ValueError: naming the option, or the setting of Ultralytics, that does not fit.
    """

    cawa_options: ClassVar[dict[str, Any]] = {}
    _criterion: Criterion

    @property
    def cawa(self) -> CAWA:
        return self._criterion.cawa

    def set_class_weights(self) -> None:
        self._criterion = _begin(type(self).__name__, self, self.cawa_options)

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        super().resume_training(ckpt)
        if ckpt is not None and self.resume:
            _restore(type(self).__name__, self.cawa, ckpt)
        if self.metrics is not None:  # so that results.csv has the columns from the first epoch on
            self.metrics |= self._weights()

    def validate(self) -> Any:
        _attach(self._criterion, self.ema.ema)
        metrics, fitness = super().validate()
        _finish(self._criterion, self.ema.ema)
        return (None if metrics is None else metrics | self._weights()), fitness

    def save_model(self) -> Any:
        setattr(self.ema.ema, _STATE, _state(self.cawa))
        return super().save_model()

    def _weights(self) -> dict[str, float]:
        return {name: round(value, 5) for name, value in of_step(self.cawa.weights).items() if "/weight/" in name}


class CawaTrainer(CawaMixin, SemanticSegmentationTrainer):
    """``SemanticSegmentationTrainer`` with :class:`cawa_fast.CAWA`; see :class:`CawaMixin` for what it does.

    Example:
        >>> from ultralytics import YOLO
        >>> model = YOLO("yolo26n-sem.yaml")
        >>> _ = model.train(data="cityscapes8.yaml", epochs=3, trainer=CawaTrainer)  # doctest: +SKIP
    """


class CawaCallback:
    """:class:`cawa_fast.CAWA` for one process and a trainer of your own, without a subclass.

    The same as :class:`CawaMixin` except that the class weights are not in ``results.csv``, and that several GPUs are
    refused.

    Args:
        **options: arguments of :class:`cawa_fast.CAWA`.

    Attributes:
        cawa: the :class:`cawa_fast.CAWA`; None before the training.

    Raises:
        TypeError, ValueError: naming the option, or the setting of Ultralytics, that does not fit.

    Example:
        >>> from ultralytics import YOLO
        >>> model = YOLO("yolo26n-sem.yaml")
        >>> CawaCallback(delta=0.5).add_to(model)
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._criterion: Criterion | None = None
        self._trainer: Any = None
        unhooked(
            type(self).__name__, 2, {**options, "class_counts": None, "class_names": None}
        )  # raises for bad values

    @property
    def cawa(self) -> CAWA | None:
        return None if self._criterion is None else self._criterion.cawa

    def add_to(self, model: Any) -> None:
        """Register with ``model.add_callback``, of a ``YOLO`` or a trainer."""
        for event in ("on_pretrain_routine_end", "on_val_start", "on_val_end"):
            model.add_callback(event, getattr(self, event))

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        who = type(self).__name__
        if trainer.world_size > 1:
            raise RuntimeError(
                f"{who}: the validation has no event that all {trainer.world_size} processes see; pass "
                "trainer=CawaTrainer"
            )
        self._trainer, self._criterion = trainer, _begin(who, trainer, self._options)
        if trainer.resume:
            _restore(who, self._criterion.cawa, load_checkpoint(trainer.args.model)[1])

    def on_val_start(self, validator: Any) -> None:
        if self._criterion is not None and validator.training:
            _attach(self._criterion, self._trainer.ema.ema)

    def on_val_end(self, validator: Any) -> None:
        if self._criterion is not None and validator.training:
            _finish(self._criterion, self._trainer.ema.ema)
            setattr(self._trainer.ema.ema, _STATE, _state(self._criterion.cawa))
