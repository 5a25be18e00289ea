"""Lightning: class weights that follow the validation of each epoch. See ``docs/frameworks.md``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from .. import _validate
from .._classifier import find_logits
from .._collective import all_reduce
from ..cawa import CAWA
from ..metrics import segmentation_metrics
from ..sampling import unpadded
from ._shared import log, missing, of_metrics, of_step

try:
    from lightning.pytorch import Callback
except ImportError as error:
    try:
        from pytorch_lightning import Callback  # the same under its other name
    except ImportError:
        raise missing("lightning", error) from error

__all__ = ["CawaCallback"]

Target = Callable[[Any], Tensor] | str | int


class CawaCallback(Callback):
    """:class:`cawa_fast.CAWA` for a ``LightningModule``, whose ``training_step`` changes by one line.

    The module gets the attribute ``cawa``: ``return self.cawa.loss(labels)`` after the network has run. It is no
    submodule: the ``state_dict`` of the module stays as it is.

    **Validation.** Each batch of ``trainer.fit``'s validation is scored after ``validation_step``, which must run the
    network; its end sets the class weights. For the loss there use ``self.cawa.loss(labels, weighted=False)``, since
    weighted losses of two epochs cannot be compared. The sanity check, ``validate``, ``test`` and ``predict`` change
    nothing. Images that a ``DistributedSampler`` has added to fill up the last batch are left out.

    **Logged** are ``cawa/weight/CLASS``, ``csps`` and ``iou``; with ``metrics=True`` also ``val_miou``,
    ``val_mean_accuracy``, ``val_pixel_accuracy`` and ``val_iou/CLASS`` of the predictions, also by ``validate``. Use
    ``ModelCheckpoint(monitor="val_miou", mode="max")``.

    **Checkpoints** of the Trainer hold the state among those of the callbacks. A resumed run has the same bits.

    **Processes and accumulation.** As always in Lightning, gradients are means over processes and over accumulated
    batches, each with the mean of its own pixels. ``self.cawa.loss(labels, counts=...)`` divides over processes.

    Args:
        num_classes: ``C``.
        network: attribute of the module that holds the network, a dotted name. None: no layer is listened to;
            ``training_step`` uses ``self.cawa.loss(labels, logits=logits)``, and ``validation_step`` returns the
            logits.
        target: where the labels ``(N, H, W)`` are in a batch: an index or a key, or a function of the batch.
        ignore_index: label of the pixels that are left out.
        score_on: the number of the validation loader that scores the classes, if there are several.
        per_class: whether to log values of single classes.
        **options: other arguments of :class:`cawa_fast.CAWA`.

    Attributes:
        cawa: the :class:`cawa_fast.CAWA`; None before a Trainer has begun with the module.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> callback = CawaCallback(19, network="net", target="labels", ignore_index=255, metrics=True)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False, accelerator="cpu")
    """

    def __init__(
        self,
        num_classes: int,
        *,
        network: str | None = "net",
        target: Target = 1,
        ignore_index: int = -100,
        score_on: int | None = None,
        per_class: bool = True,
        **options: Any,
    ) -> None:
        self._who = type(self).__name__
        if network is not None and not (isinstance(network, str) and network):
            got = _validate.described(network)
            raise TypeError(f"{self._who}: network must be the name of an attribute of the module, or None, got {got}")
        if not callable(target) and (isinstance(target, bool) or not isinstance(target, str | int)):
            got = _validate.described(target)
            raise TypeError(f"{self._who}: target must be a key or an index of the batch, or a function, got {got}")
        if score_on is not None:
            score_on = _validate.as_int(self._who, "score_on", score_on, "pass the number of a validation loader")
        self.network, self.target, self.score_on = network, target, score_on
        self._per_class = _validate.as_bool(self._who, "per_class", per_class)
        self._options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": ignore_index, **options}
        unknown = set(options) - set(inspect.signature(CAWA).parameters)
        if unknown or "model" in options:
            name = "model" if "model" in options else min(unknown)
            raise TypeError(f"{self._who}: {name} is no argument of CAWA; the network is named by network=")
        CAWA(None, **self._options | {"classifier": None})  # a value that does not fit raises here
        self.cawa: CAWA | None = None
        self._state: dict[str, Any] | None = None  # of a checkpoint, for a network that is not there yet
        self._restored = False
        self._seen = 0  # images of the validation loader so far
        self._mask: Tensor | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(network=self.network)

    # ------------------------------------------------------------------------------------------------------ the module

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.network is None or _attribute(pl_module, self.network) is not None:
            self._attach(pl_module)  # otherwise configure_model makes it

    def _attach(self, module: Any) -> CAWA:
        network = None if self.network is None else _attribute(module, self.network)
        if network is None and self.network is not None:
            names = ", ".join(repr(name) for name, _ in module.named_children()) or "no submodules"
            raise ValueError(
                f"{self._who}: {type(module).__name__} has no network {self.network!r}; pass network= with the name of "
                f"the attribute that holds it; there are {names}"
            )
        if self.cawa is None or not _listens_to(self.cawa, network):
            self.cawa = CAWA(network, **self._options)
            if self._state is not None:
                self._load(self._state)
        held = module.__dict__.get("cawa")
        if held is not self.cawa:
            if hasattr(module, "cawa") and not isinstance(held, CAWA):
                raise ValueError(
                    f"{self._who}: {type(module).__name__} has an attribute 'cawa' of its own, where the callback puts "
                    "its CAWA; rename it"
                )
            if isinstance(held, CAWA):  # of another callback, in an earlier training
                held.close()
            module.__dict__["cawa"] = self.cawa  # not by setattr, which would make it a submodule
        return self.cawa

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._attach(pl_module)
        if trainer.ckpt_path and not self._restored:
            raise ValueError(
                f"{self._who}: {trainer.ckpt_path} was made without this callback, and has no class weights. To begin "
                "with those of now, load its network alone: YourModule.load_from_checkpoint(path), and no ckpt_path"
            )
        self._restored = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._attach(pl_module).reset()
        if not trainer.enable_validation:
            log.warning("%s: without a validation loader the class weights stay as they are; pass one", self._who)

    # ------------------------------------------------------------------------------------------------------ validation

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self._attach(pl_module).reset()
        self._seen = 0
        loaders = _listed(trainer.val_dataloaders)
        if len(loaders) > 1 and self.score_on is None:
            raise ValueError(
                f"{self._who}: there are {len(loaders)} validation loaders; pass score_on=0, or another number, to say "
                "which one scores the classes"
            )
        number = self.score_on or 0
        if not 0 <= number < len(loaders):
            raise ValueError(f"{self._who}: score_on={number} is none of the {len(loaders)} validation loaders")
        sampler = getattr(loaders[number], "sampler", None)
        self._mask = unpadded(sampler) if isinstance(sampler, DistributedSampler) else None

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        cawa = self._attach(pl_module)
        counts = trainer.state.fn == "fit" or cawa.weights.confusion is not None
        if not counts or dataloader_idx != (self.score_on or 0):
            if cawa._listener is not None:
                cawa._listener.forget()  # so that the pass is not taken for one that was left out by mistake
            return
        labels = self._labels(batch)
        mask = None if self._mask is None else self._mask[self._seen : self._seen + len(labels)]
        self._seen += len(labels)
        logits = self._returned(outputs) if self.network is None else None
        cawa.observe(labels, logits=logits, mask=mask)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        cawa = self._attach(pl_module)
        if not trainer.sanity_checking:
            values = self._finish(cawa, scores=trainer.state.fn == "fit")
            pl_module.log_dict(values, batch_size=1, sync_dist=trainer.world_size > 1)
        cawa.reset()

    def _finish(self, cawa: CAWA, *, scores: bool) -> dict[str, float]:
        weights, matrix = cawa.weights, cawa.weights.confusion
        values: dict[str, float] = {}
        if scores:
            cawa.step()
            matrix = weights.last_confusion
            if self._per_class:
                values = of_step(weights)
        elif matrix is not None and dist.is_available() and dist.is_initialized():
            all_reduce(matrix)
        if matrix is not None and bool(matrix.any()):
            metrics = of_metrics(weights, segmentation_metrics(matrix.cpu()), by_class=self._per_class)
            values |= {f"val_{name}": value for name, value in metrics.items()}
        return values

    def _labels(self, batch: Any) -> Tensor:
        try:
            labels = self.target(batch) if callable(self.target) else batch[self.target]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{self._who}: target={self.target!r} does not lead to the labels in a batch, "
                f"{_validate.described(batch)} ({type(error).__name__}: {error}); pass a key, an index or a function"
            ) from error
        _validate.check_tensor(self._who, "target", labels, "where the labels (N, H, W) are in a batch")
        return labels

    def _returned(self, outputs: Any) -> Tensor:
        try:
            return find_logits(outputs).detach()
        except ValueError:
            raise ValueError(
                f"{self._who}: with network=None, validation_step must return the logits (N, C, h, w), or a dict with "
                f"'logits'; it returned {_validate.described(outputs)}"
            ) from None

    # ----------------------------------------------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {} if self.cawa is None else dict(self.cawa.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self._restored = state_dict, True
        if self.cawa is not None:
            self._load(state_dict)

    def _load(self, state: Mapping[str, Any]) -> None:
        assert self.cawa is not None
        try:
            self.cawa.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"{self._who}: the checkpoint does not fit this CAWA: {error}") from error
        self._state = None


def _attribute(module: nn.Module, name: str) -> nn.Module | None:
    """``module.a.b`` for the name ``a.b``; None if there is no such network."""
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _listens_to(cawa: CAWA, network: nn.Module | None) -> bool:
    listener = cawa._listener
    if listener is None or network is None:
        return listener is None and network is None
    return any(module is listener.recorder.root for module in network.modules())


def _listed(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, Sequence) else [loaders]
