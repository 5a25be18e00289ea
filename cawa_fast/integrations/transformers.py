"""Hugging Face Trainer: class weights that follow the evaluation of each epoch. See ``docs/frameworks.md``.

:class:`CawaTrainer` is a ``Trainer``. For a Trainer of your own, put :class:`CawaMixin` before it; or pass it
:class:`CawaCallback` and its :meth:`~CawaCallback.compute_loss`, which needs no subclass and does less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ..cawa import CAWA
from ._shared import missing

try:
    import accelerate  # noqa: F401  (without it, Trainer can be imported and not used)
    from transformers import PreTrainedModel, Trainer
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise missing("transformers", error) from error

from ._transformers_callback import CawaCallback

__all__ = ["CawaCallback", "CawaMixin", "CawaTrainer"]

if TYPE_CHECKING:
    from transformers import Trainer as _Base  # what CawaMixin is put before
else:
    _Base = object


class CawaMixin(_Base):
    """Trains any ``Trainer`` with :class:`cawa_fast.CAWA`: ``class MyTrainer(CawaMixin, YourTrainer): ...``.

    **Loss.** The weighted cross-entropy of the layer that CAWA listens to, plus that of an auxiliary head. Divided by
    the weights of the labels of all batches that a step of the optimiser uses, on all processes: loss and gradient do
    not depend on ``gradient_accumulation_steps`` or on the number of processes.

    **Evaluation.** The evaluations that the training makes score the classes, each image once, and set the weights of
    the following steps. ``eval_loss`` is the unweighted loss: weighted ones of two evaluations cannot be compared.
    ``eval_cawa/weight/CLASS``, ``csps`` and ``iou`` are logged. With ``CAWA(..., metrics=True)`` there are also
    ``eval_miou``, ``eval_mean_accuracy``, ``eval_pixel_accuracy`` and ``eval_iou/CLASS`` of the predictions, without
    ``compute_metrics``: use ``metric_for_best_model="miou"``.

    ``predict``, and ``evaluate`` before or after the training, with another dataset, or with ``eval_on_start``, change
    nothing; the metrics are computed all the same.

    **Checkpoints** hold the state of CAWA in ``cawa.pt``. A resumed run has the same bits.

    Args:
        *args, **kwargs: of the Trainer; not ``compute_loss_func``.
        cawa: the :class:`cawa_fast.CAWA` of the model; or a function that makes one from a model, which
            ``model_init=`` needs. ``CAWA(None, C)`` uses the ``logits`` that the model returns.
        auxiliary_weight: factor of the loss of ``model.auxiliary_head``, which returns logits, at least 0. Default: the
            model's ``config.auxiliary_loss_weight``; without one the head is not trained.
        score_on: which one of several evaluation datasets scores the classes, if ``eval_dataset`` is a dict.
        per_class: whether to log values of single classes.

    Attributes:
        cawa: the :class:`cawa_fast.CAWA`.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """

    def __init__(
        self,
        *args: Any,
        cawa: CAWA | Callable[[nn.Module], CAWA],
        auxiliary_weight: float | None = None,
        score_on: str | None = None,
        per_class: bool = True,
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError(f"{name}: the loss is CAWA's; leave out compute_loss_func={kwargs['compute_loss_func']!r}")
        self._make = cawa if callable(cawa) and not isinstance(cawa, CAWA) else None
        if kwargs.get("model_init") is not None and self._make is None:
            raise ValueError(
                f"{name}: model_init makes a new network for each training, which cawa={type(cawa).__name__}(...) does "
                "not listen to; pass a function, cawa=lambda model: CAWA(model, num_classes)"
            )
        model = kwargs.get("model", args[0] if args else None)
        # With model_init, call_model_init makes the real one.
        made: Any = cawa if self._make is None else CAWA(None, 2) if model is None else self._make(model)
        self._callback = CawaCallback(
            made, auxiliary_weight=auxiliary_weight, score_on=score_on, per_class=per_class, who=name
        )
        self._foreign = 0
        callbacks = [self._callback, *(kwargs.pop("callbacks", None) or [])]
        kwargs |= {"compute_loss_func": self._callback.compute_loss, "callbacks": callbacks}
        super().__init__(*args, **kwargs)
        self._callback.check(self.model)

    @property
    def cawa(self) -> CAWA:
        return self._callback.cawa

    def call_model_init(self, *args: Any, **kwargs: Any) -> nn.Module:
        model: nn.Module = super().call_model_init(*args, **kwargs)
        if self._make is not None:
            self._callback.cawa = self._make(model)
        return model

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(self.args.output_dir)
        self._callback.resume_from = found or None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._callback.count(batches)
        return batches, items

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        own = self.eval_dataset
        names = list(own) if isinstance(own, Mapping) else []
        score_on = self._callback.score_on
        if names and score_on not in names and self._callback.trains:
            raise ValueError(
                f"{type(self).__name__}: eval_dataset has the datasets {', '.join(map(repr, names))}; pass "
                f"score_on={names[0]!r}, or another of them, to say which one scores the classes (got {score_on!r})"
            )
        with self._only(scores=eval_dataset is None or (isinstance(eval_dataset, str) and eval_dataset == score_on)):
            return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self._only(scores=False):
            return super().predict(*args, **kwargs)

    @contextmanager
    def _only(self, *, scores: bool) -> Iterator[None]:
        self._foreign += not scores
        try:
            yield
        finally:
            self._foreign -= not scores

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        with self._callback.evaluation(scores=not self._foreign):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            values = self._callback.finish()
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in values.items()})
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if _internal_call and output_dir is not None and self.args.should_save:
            self._callback.save(output_dir, self.state.global_step)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # transformers 5 saves some networks, SegFormer among them, under older names of their layers, with which the
        # Trainer cannot load them: a resumed run would begin with random weights, the best model would not be the best.
        folder = self._callback.resume_from or self.state.best_model_checkpoint
        model = self.model
        if load_result.missing_keys and load_result.unexpected_keys and folder and isinstance(model, PreTrainedModel):
            loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
            if not info["missing_keys"]:
                model.load_state_dict(loaded.state_dict())
                return
        super()._issue_warnings_after_load(load_result)


class CawaTrainer(CawaMixin, Trainer):
    """``Trainer`` with :class:`cawa_fast.CAWA`; see :class:`CawaMixin` for what it does and for the arguments.

    For networks with one map per class: SegFormer, UperNet, BEiT, DPT, MobileViT, MobileNetV2, Data2Vec, your own.
    Those that predict a set of masks, such as Mask2Former, are refused.

    Example:
        >>> import cawa_fast as cf, torch
        >>> from transformers import SegformerConfig, SegformerForSemanticSegmentation, TrainingArguments
        >>> config = SegformerConfig(num_labels=3, hidden_sizes=[8] * 4, decoder_hidden_size=8, depths=[1] * 4)
        >>> model = SegformerForSemanticSegmentation(config)
        >>> labels = torch.tensor([[0, 1], [2, 255]]).repeat(16, 16)
        >>> data = [{"pixel_values": torch.rand(3, 32, 32), "labels": labels} for _ in range(4)]
        >>> args = TrainingArguments("/tmp/cawa_trainer", num_train_epochs=1, eval_strategy="epoch", use_cpu=True,
        ...     report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True)
        >>> trainer = CawaTrainer(model, args, train_dataset=data, eval_dataset=data, cawa=cf.CAWA(model, 3,
        ...     ignore_index=255), per_class=False)
        >>> _ = trainer.train()  # doctest: +ELLIPSIS
        {...'eval_loss': ...
        >>> len(trainer.cawa.weights.history)  # one step: the evaluation after the epoch
        1
    """
