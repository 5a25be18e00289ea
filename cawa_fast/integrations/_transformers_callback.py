"""The Trainer callback: the loss, the scores of an evaluation, the state in checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import GradientState
from torch import Tensor, nn
from transformers import TrainerCallback

from .. import _validate
from .._classifier import find_logits
from .._collective import all_reduce
from .._wrappers import unwrapped
from ..cawa import CAWA
from ..metrics import segmentation_metrics
from ._shared import log, of_metrics, of_step
from .accelerate import of_running_loader

FILE = "cawa.pt"
"""Name of the file in a checkpoint."""


class CawaCallback(TrainerCallback):
    """:class:`cawa_fast.CAWA` for a ``Trainer`` of your own, without a subclass.

    Pass it and its :meth:`compute_loss` to the Trainer. It takes part in the evaluations, steps after each of them,
    and saves and restores the state, as :class:`CawaTrainer` does. :class:`CawaMixin` does more: it divides the loss
    right under gradient accumulation, which this class refuses; it logs its values with the Trainer's own, which here
    are only in what ``evaluate`` returns; and it resumes from folders elsewhere than in ``output_dir``.

    Args:
        cawa: the :class:`cawa_fast.CAWA` of the model.
        auxiliary_weight, score_on, per_class: as for :class:`CawaMixin`.
        who: name for messages.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.

    Example:
        >>> import cawa_fast as cf, torch
        >>> from transformers import Trainer
        >>> callback = CawaCallback(cf.CAWA(torch.nn.Conv2d(3, 5, 1), num_classes=5))
        >>> options = {"compute_loss_func": callback.compute_loss, "callbacks": [callback]}  # Trainer(model, **options)
    """

    def __init__(
        self,
        cawa: CAWA,
        *,
        auxiliary_weight: float | None = None,
        score_on: str | None = None,
        per_class: bool = True,
        who: str = "CawaCallback",
    ) -> None:
        if not isinstance(cawa, CAWA):
            raise TypeError(
                f"{who}: cawa must be a CAWA, got {_validate.described(cawa)}; pass cawa=CAWA(model, num_classes)"
            )
        if auxiliary_weight is not None and not _validate.as_number(who, "auxiliary_weight", auxiliary_weight) >= 0:
            raise ValueError(f"{who}: auxiliary_weight must be at least 0, got {auxiliary_weight}")
        if score_on is not None and not isinstance(score_on, str):
            got = _validate.described(score_on)
            raise TypeError(f"{who}: score_on must be the name of an evaluation dataset, got {got}")
        self.cawa, self.score_on, self.who = cawa, score_on, who
        self.per_class = _validate.as_bool(who, "per_class", per_class)
        self.trains = False  # within a training that has begun its first step
        self.resume_from: str | None = None
        self._auxiliary = _Auxiliary(auxiliary_weight)
        self._args: Any = None
        self._counts: Tensor | None = None  # of all batches of this step of the optimiser
        self._scores = True  # the evaluation that runs
        self._explicit = False  # whether a Trainer says which evaluation runs
        self._train_loader: Any = None
        self._saved: int | None = None  # the global step of the last checkpoint

    # -------------------------------------------------------------------------------------------------------- loss

    def count(self, batches: Sequence[Any]) -> None:
        """Count the labels of all batches that the next step of the optimiser uses, on all processes."""
        cawa = self.cawa
        counts = torch.zeros(cawa.weights.num_classes + 1, dtype=torch.int64)
        counts = counts.to(cawa.weight.device if self._args is None else self._args.device)
        for batch in batches:
            if batch.get("labels") is not None:
                counts += cawa.count_labels(batch["labels"]).to(counts.device)
        if dist.is_available() and dist.is_initialized():
            all_reduce(counts)
        self._counts = counts

    def compute_loss(self, outputs: Any, labels: Tensor | None, num_items_in_batch: Any = None) -> Tensor:
        """The loss of a batch, for ``Trainer(compute_loss_func=callback.compute_loss)``; observes evaluations.

        Args:
            outputs: what the model returned.
            labels: ``(N, H, W)``.
            num_items_in_batch: of the Trainer. The count of its items is not used, because it counts ignored pixels.

        Raises:
            ValueError: there are no labels.
            RuntimeError: the Trainer accumulates gradients, without :class:`CawaMixin`.
        """
        if labels is None:
            raise ValueError(
                f"{self.who}: the batch has no 'labels'; the dataset must return a dict with pixel_values (3, H, W) "
                "and labels (H, W)"
            )
        # With this option, the Trainer multiplies what it gets by the number of processes.
        scaled = num_items_in_batch is not None and self._needs_args().average_tokens_across_devices
        processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        logits = find_logits(outputs) if self.cawa._listener is None else None
        if torch.is_grad_enabled():
            return self._training_loss(outputs, labels, logits) * (1 if scaled else processes)
        loss = self.cawa.loss(labels, logits=logits, weighted=False)
        if self._scores or self.cawa.weights.confusion is not None:
            mask = of_running_loader(len(labels), but_not=self._train_loader)
            self.cawa.observe(labels, logits=logits, mask=mask)
        return loss / (processes if scaled else 1)

    def _training_loss(self, outputs: Any, labels: Tensor, logits: Tensor | None) -> Tensor:
        cawa, counts = self.cawa, self._counts
        self._train_loader = GradientState().active_dataloader
        if counts is None:
            if self._needs_args().gradient_accumulation_steps > 1:
                raise RuntimeError(
                    f"{self.who}: with gradient_accumulation_steps={self._args.gradient_accumulation_steps} the loss "
                    "must be divided by the weights of all accumulated batches, which a compute_loss_func does not "
                    "see; use CawaTrainer, or derive from yours: class MyTrainer(CawaMixin, YourTrainer): pass"
                )
            self.count([{"labels": labels}])
            counts, self._counts = self._counts, None
        assert counts is not None
        needs_output = cawa._listener is not None and cawa._listener.needs_output() is not None
        output = outputs if needs_output else None
        loss = cawa.loss(labels, logits=logits, output=output, counts=counts)
        for auxiliary in self._auxiliary.take():
            # the network's own loss resizes with align_corners=False, whatever the main head does
            share = cawa.criterion.share(auxiliary, labels, counts, align_corners=False)
            loss = loss + self._auxiliary.weight * share
        return loss

    # -------------------------------------------------------------------------------------------------- evaluation

    @contextmanager
    def evaluation(self, *, scores: bool) -> Iterator[None]:
        """Around an evaluation: whether it scores the classes. Nothing remains of one that fails."""
        self._scores, self._explicit = scores and self.trains, True
        self.cawa.reset()
        try:
            yield
        finally:
            self.cawa.reset()

    def finish(self) -> dict[str, float]:
        """Step after an evaluation that scores the classes; return values to log."""
        weights, matrix = self.cawa.weights, self.cawa.weights.confusion
        values: dict[str, float] = {}
        if self._scores:
            self.cawa.step()
            matrix = weights.last_confusion
            if self.per_class:
                values = of_step(weights)
        elif matrix is not None:
            matrix = matrix.clone()
            if dist.is_available() and dist.is_initialized():
                all_reduce(matrix)
        if matrix is not None and bool(matrix.any()):
            values |= of_metrics(weights, segmentation_metrics(matrix.cpu()), by_class=self.per_class)
        return values

    # ------------------------------------------------------------------------------------------------------ events

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._args = args

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._args = args
        self.check(model)
        self._auxiliary.attach(model)
        if state.global_step:
            self.load(self.resume_from or Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.resume_from, self.trains, self._saved = None, False, None
        if args.eval_strategy == "no":
            log.warning("%s: without evaluations the class weights stay as they are; set eval_strategy", self.who)
        self.cawa.reset()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trains = True  # not before: eval_on_start evaluates a network that has learned nothing

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trains, self._counts, self._train_loader = False, None, None
        self._auxiliary.detach()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if self._explicit:  # has stepped
            return
        metrics = {} if metrics is None else metrics
        prefix = "eval"
        if "eval_runtime" not in metrics:  # several datasets, or one of another name
            names = sorted(name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime"))
            prefix = names[0] if names else "eval"
            if self.trains and self.score_on is None and prefix.startswith("eval_"):
                name = prefix.removeprefix("eval_")
                raise ValueError(
                    f"{self.who}: there are several evaluation datasets; pass score_on={name!r}, or another of their "
                    "names, to say which one scores the classes"
                )
        self._scores = self.trains and prefix == (f"eval_{self.score_on}" if self.score_on else "eval")
        values = self.finish()
        metrics.update({f"{prefix}_{name}": value for name, value in values.items()})
        self.cawa.reset()
        self._scores = True

    def on_predict(self, args: Any, state: Any, control: Any, metrics: Any, **kwargs: Any) -> None:
        if not self._explicit:
            self.cawa.reset()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.should_save and self._saved != state.global_step:
            self.save(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    # ------------------------------------------------------------------------------------------------- checkpoints

    def save(self, folder: str | Path, step: int | None = None) -> None:
        """Write the state of CAWA into a checkpoint."""
        torch.save(self.cawa.state_dict(), Path(folder) / FILE)
        self._saved = step

    def load(self, folder: str | Path) -> None:
        """Read the state of CAWA from a checkpoint.

        Raises:
            FileNotFoundError, ValueError: the checkpoint was made without CAWA, or with another one.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.who}: {path} does not exist: the checkpoint was made without CAWA, or lies elsewhere. To begin "
                f"with the present class weights, torch.save(cawa.state_dict(), {str(path)!r})"
            )
        try:
            self.cawa.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except RuntimeError as error:
            raise ValueError(f"{self.who}: {path} does not fit this CAWA: {error}") from error

    # ------------------------------------------------------------------------------------------------------ checks

    def check(self, model: nn.Module) -> None:
        """Raise if CAWA cannot train this network with these arguments.

        Raises:
            ValueError: naming what does not fit.
        """
        args, network = self._needs_args(), unwrapped(model)
        parameters = inspect.signature(network.forward).parameters
        if "mask_labels" in parameters:
            raise ValueError(
                f"{self.who}: {type(network).__name__} predicts a set of masks with a class each, and has no map per "
                "class whose cross-entropy CAWA could weight. Use a network such as SegFormer, UperNet or DPT "
                "(...ForSemanticSegmentation). Or train with Trainer, score with CAWA(None, num_classes) and "
                "observe(labels, logits=...), and use cawa.weight in a loss of yours"
            )
        listener = self.cawa._listener
        if listener is not None and not any(module is listener.recorder.root for module in model.modules()):
            raise ValueError(
                f"{self.who}: cawa listens to another {type(listener.recorder.root).__name__} than the model of the "
                "Trainer; make it from that: CAWA(trainer.model, num_classes), after get_peft_model and the like"
            )
        if self.cawa.criterion.reduction == "none":
            raise ValueError(f"{self.who}: CAWA(reduction='none') has no single loss; use another reduction")
        if args.n_gpu > 1:
            raise ValueError(
                f"{self.who}: the Trainer would run nn.DataParallel on {args.n_gpu} GPUs, whose copies of the network "
                f"hooks cannot tell apart; start it with torchrun --nproc-per-node {args.n_gpu}, or on one GPU with "
                "CUDA_VISIBLE_DEVICES=0"
            )
        if args.label_smoothing_factor:
            value = args.label_smoothing_factor
            raise ValueError(
                f"{self.who}: label_smoothing_factor={value} does not reach the loss of CAWA; pass "
                f"CAWA(..., label_smoothing={value}) instead"
            )

    def _needs_args(self) -> Any:
        if self._args is None:
            raise RuntimeError(
                f"{self.who}: the callback has not seen its Trainer; pass callbacks=[callback] to the Trainer, beside "
                "compute_loss_func=callback.compute_loss"
            )
        return self._args


class _Auxiliary:
    """The logits of ``auxiliary_head``, which the network computes and does not return.

    Hooks record them, and add them to what the network returns in training: DDP takes parameters for unused that do not
    lead there.

    Args:
        weight: factor of the loss; None takes that of the network.
    """

    def __init__(self, weight: float | None) -> None:
        self._given, self.weight = weight, 0.0
        self._logits: list[Tensor] = []
        self._hooks: list[Any] = []

    def attach(self, model: nn.Module) -> None:
        self.detach()
        for module in model.modules():
            head = getattr(module, "auxiliary_head", None)
            own = getattr(getattr(module, "config", None), "auxiliary_loss_weight", None)
            weight = own if self._given is None else self._given
            if isinstance(head, nn.Module) and weight is not None:
                self.weight = float(weight)
                if weight:
                    self._hooks = [head.register_forward_hook(self._record), module.register_forward_hook(self._add)]
                return
        if self._given:
            raise ValueError(
                f"auxiliary_weight={self._given}: {type(unwrapped(model)).__name__} has no auxiliary_head; leave it out"
            )

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._logits = [], []

    def take(self) -> list[Tensor]:
        """The logits of the last forward pass in training, if there is such a head."""
        logits, self._logits = self._logits, []
        return logits

    def _record(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._logits = [output] if module.training else []

    def _add(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        if not self._logits:
            return None
        if "hidden_states" in getattr(output, "__dataclass_fields__", ()):  # DDP makes it anew from its own fields
            output["hidden_states"] = (*(output.hidden_states or ()), *self._logits)
            return output
        if isinstance(output, Mapping):
            return {**output, "auxiliary_logits": self._logits[0]}
        return (*(output if isinstance(output, tuple) else (output,)), *self._logits)
