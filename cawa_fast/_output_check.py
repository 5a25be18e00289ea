"""Which layer computes the network's logits: the layers' outputs, resized, are compared with what the network returned.

The comparison reads a lattice of at most 16 x 16 positions per map, so that it costs next to nothing at any resolution.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from ._classifier import MAIN_KEYS, Candidate, Output, best_guess

log = logging.getLogger("cawa_fast")
_LATTICE = 16
_TOLERANCE = 1e-4  # of the root mean square of the output, in float32: a hundred times what rounding explains


class LayerRun(NamedTuple):
    """One run of a candidate.

    Attributes:
        candidate: its index.
        activations: input of the layer ``(N, K, h, w)``, without a graph.
        logits: output ``(N, C, h, w)``, with its graph.
        training_mode: whether the layer was in training mode.
        trains: whether this was a pass of the training: in training mode and with gradients.
        version: number of changes of ``logits`` in place until then; None if that is not known.
        activations_version: that of ``activations``.
    """

    candidate: int
    activations: Tensor
    logits: Tensor
    training_mode: bool
    trains: bool
    version: int | None
    activations_version: int | None = None


class Choice(NamedTuple):
    """The layer that computes the logits.

    Attributes:
        candidate: its index.
        run: which of its runs within a forward pass.
        runs: how often it runs within a forward pass.
        align_corners: how the network resizes its output; None if it does not, or if that has not been seen.
        certain: whether there is nothing to compare any more.
        words: what was found, for people.
        output: name of the output that are the logits.
    """

    candidate: int
    run: int
    runs: int
    align_corners: bool | None
    certain: bool
    words: str
    output: str

    def found(self) -> tuple[int, int, int, bool | None]:
        """All but how it was found."""
        return self[:4]


class _Row(NamedTuple):
    """A comparison of a run with an output; ``mixed`` as of :func:`_is_mixed`."""

    output: int
    candidate: int
    run: int
    align_corners: bool
    mixed: bool


class Comparison:
    """The differences between all outputs of a forward pass and all runs of all candidates, resized.

    Args:
        who: name of the class that asks, for messages.
        candidates: the layers.
        runs: for each of them its runs in the forward pass, in order.
        outputs: what the network returned.
        num_classes: ``C``.
        explicit: whether the user has named the layer.
        align_corners: what the user has passed.
        quiet: whether not to repeat what was said before.
    """

    def __init__(
        self,
        who: str,
        candidates: list[Candidate],
        runs: list[tuple[LayerRun, ...]],
        outputs: list[Output],
        num_classes: int,
        *,
        explicit: bool,
        align_corners: bool | None,
        quiet: bool = False,
    ) -> None:
        self.quiet = quiet
        self.who, self.candidates, self.num_classes = who, candidates, num_classes
        self.explicit, self.align_corners = explicit, align_corners
        self.other_channels = [output for output in outputs if output.tensor.shape[1] != num_classes]
        self.outputs = [output for output in outputs if output.tensor.shape[1] == num_classes]
        self.rows: list[_Row] = []
        differences: list[Tensor] = []
        with torch.no_grad():
            for index, output in enumerate(self.outputs):
                wanted, places = _lattice(output.tensor)
                for run, logits in [(run, run.logits) for kept in runs for run in kept]:
                    if logits.dim() != 4 or logits.shape[:2] != output.tensor.shape[:2]:
                        continue
                    which = next(k for k, other in enumerate(runs[run.candidate]) if other is run)
                    mixed = _is_mixed(output.tensor, logits, candidates[run.candidate].has_channels_last)
                    size = output.tensor.shape[-2:]
                    for corners in (False, True)[: 1 if logits.shape[-2:] == size else 2]:
                        self.rows.append(_Row(index, run.candidate, which, corners, mixed))
                        differences.append(_difference(_resized_at(logits, size, places, corners), wanted))
            self._values = torch.stack(differences) if differences else torch.zeros(0)
        # Kept until a GPU has finished, but without the graph of this pass.
        self.logits = [[run.logits.detach() for run in kept] for kept in runs]
        self.outputs = [output._replace(tensor=output.tensor.detach()) for output in self.outputs]
        self._host: Tensor | None = None
        self._copied: torch.cuda.Event | None = None
        if self._values.is_cuda:  # copied without waiting; is_ready() says when it has arrived
            with torch.cuda.device(self._values.device):
                self._host = torch.empty(self._values.shape, pin_memory=True)
                self._host.copy_(self._values, non_blocking=True)
                self._copied = torch.cuda.Event()
                self._copied.record()

    def is_ready(self) -> bool:
        """Whether :meth:`decide` would not wait for a GPU."""
        if self._copied is None:
            return True
        return not torch.cuda.is_current_stream_capturing() and self._copied.query()

    def decide(self) -> Choice | None:
        """The layer whose output the network returned; None if this pass does not tell.

        Raises:
            ValueError: no layer fits, or several do; the message lists them.
        """
        if not self.outputs:
            if self.other_channels and self.other_channels[0].is_main:
                name, tensor, _ = self.other_channels[0]
                layer, gradcam = best_guess(self.candidates), self.who == "GradCAM"
                raise ValueError(
                    f"{self.who}: {layer.name!r}, taken for the layer of the logits, has {self.num_classes} outputs, "
                    f"but the network has {tensor.shape[1]} ({name} is {tuple(tensor.shape)}); pass the right layer as "
                    "classifier=, "
                    + (f"num_classes={tensor.shape[1]} or a target_layer" if gradcam else "or the logits as logits=")
                )
            return None
        if self._copied is not None and self._host is not None:
            self._copied.synchronize()
            self._values = self._host
        found = list(zip(self.rows, self._values.tolist(), strict=True))
        main = next((index for index, output in enumerate(self.outputs) if output.is_main), None)
        considered = range(len(self.outputs)) if self.explicit or main is None else [main]
        values = [value for row, value in found if row.output in considered]
        if values and all(map(math.isnan, values)):
            return None  # the output is constant 0 or not finite
        agreeing = [(row, value) for row, value in found if row.output in considered and self._agrees(row, value)]
        if not agreeing:
            raise ValueError(self._none(found, considered))
        choices = {row.candidate for row, _ in agreeing}
        if main is None and not self.explicit:
            main_ones = {candidate for candidate in choices if not self.candidates[candidate].is_auxiliary}
            choices = main_ones or choices
            unmatched = set(considered) - {row.output for row, _ in agreeing}
            if unmatched:
                raise ValueError(self._several(choices, agreeing, unmatched))
        if len(choices) > 1:
            raise ValueError(self._several(choices, agreeing, set()))
        (candidate,) = choices
        choice = self._choice(candidate, [pair for pair in agreeing if pair[0].candidate == candidate])
        if main is not None and not self.explicit and not self.quiet:
            self._warn_of_others(found, choice)
        return choice

    def _agrees(self, row: _Row, value: float) -> bool:
        logits, output = self.logits[row.candidate][row.run], self.outputs[row.output].tensor
        return value <= _tolerance(logits, output) and not row.mixed

    def _choice(self, candidate: int, agreeing: list[tuple[_Row, float]]) -> Choice:
        output = min(row.output for row, _ in agreeing)
        row, value = min((pair for pair in agreeing if pair[0].output == output), key=lambda pair: pair[1])
        name, tensor, _ = self.outputs[output]
        low, high = self.logits[candidate][row.run].shape[-2:], tensor.shape[-2:]
        resized = low != high
        # Where nothing varies, both conventions agree, and a later pass must tell.
        both = resized and len({r.align_corners for r, _ in agreeing if (r.output, r.run) == (output, row.run)}) > 1
        align_corners = row.align_corners if resized and not both else None
        how = "as it is"
        if resized:
            how = f"resized bilinearly from {_by(low)} to {_by(high)}"
            how += " (align_corners not seen yet)" if both else f" with align_corners={align_corners}"
        runs = len(self.logits[candidate])
        which = "" if runs == 1 else f", run {row.run + 1} of {runs}"
        words = (
            f"{self.candidates[candidate].name or 'the network itself'!r}{which}: its output, {how}, is {name}, "
            f"with a relative difference of {value:.0e}"
        )
        if self.align_corners is not None and align_corners not in (None, self.align_corners):
            words += f", whereas align_corners={self.align_corners} was passed"
        if self.align_corners is not None and align_corners not in (None, self.align_corners) and not self.quiet:
            log.warning(
                "%s: align_corners=%s was passed, but the network resizes its logits with align_corners=%s: loss and "
                "scores are those of slightly other predictions. Leave the argument out to use the network's own",
                self.who,
                self.align_corners,
                align_corners,
            )
        return Choice(candidate, row.run, runs, align_corners, not both or low == (1, 1), words, name)

    def _none(self, found: list[tuple[_Row, float]], considered: Any) -> str:
        output = self.outputs[min(considered)]
        lines = []
        for index, candidate in enumerate(self.candidates):
            rows = [(value, row) for row, value in found if row.candidate == index and row.output in considered]
            name = f"  {candidate.name or 'the network itself'}: "
            if not rows:
                ran = self.logits[index]
                lines.append(name + (f"{tuple(ran[-1].shape)}, not comparable" if ran else "did not run"))
                continue
            value, row = min(rows, key=lambda pair: (pair[0] != pair[0], pair[0]))
            logits, whole = self.logits[index][row.run], self.outputs[row.output].tensor
            if value <= _tolerance(logits, whole):
                why = "agrees now, but other trained layers are between it and the output"
            else:
                why = f"{100 * value:.3g} % off{_other_resize(logits, whole)}"
            lines.append(f"{name}{tuple(logits.shape)}, {why}")
        layers = "the layer passed as classifier= does not do" if self.explicit else "no layer does"
        return (
            f"{self.who}: {output.name} of the network, {tuple(output.tensor.shape)}, should be the bilinearly resized "
            f"output of its classifier, but {layers} that:\n" + "\n".join(lines) + f"\n{self._way_out()}"
        )

    def _several(self, choices: set[int], agreeing: list[tuple[_Row, float]], unmatched: set[int]) -> str:
        lines = [
            f"  {self.candidates[row.candidate].name}: {self.outputs[row.output].name}"
            for row in dict.fromkeys((row._replace(align_corners=False, run=0)) for row, _ in agreeing)
            if row.candidate in choices
        ]
        lines += [f"  no layer: {self.outputs[index].name}" for index in sorted(unmatched)]
        return (
            f"{self.who}: several outputs of the network have {self.num_classes} channels, and which of them are the "
            "logits is not clear:\n" + "\n".join(lines) + "\nPass the layer that computes them as classifier="
        )

    def _warn_of_others(self, found: list[tuple[_Row, float]], choice: Choice) -> None:
        """Say so if the network returns several maps with C channels, and the first one was taken for the logits."""
        mine = self.candidates[choice.candidate].name
        others = {
            row.candidate: self.outputs[row.output].name
            for row, value in found
            if not self.outputs[row.output].is_main
            and row.candidate != choice.candidate
            and not self.candidates[row.candidate].is_auxiliary
            and self._agrees(row, value)
        }
        main = self.outputs[0].name
        if others and not any(main.endswith((f"[{key!r}]", f".{key}")) for key in MAIN_KEYS):
            rest = ", ".join(f"{self.candidates[index].name!r} ({name})" for index, name in others.items())
            log.warning(
                "%s: the network returns several maps with %d channels. %s, of %r, is taken for the logits; the others "
                "are those of %s. Pass classifier=%r to confirm, or another one",
                self.who,
                self.num_classes,
                main,
                mine,
                rest,
                mine,
            )

    def _way_out(self) -> str:
        if self.who == "GradCAM":
            return "Pass the right layer as classifier=, or a target_layer, which works with any network"
        return (
            "Pass the right layer as classifier=. If there is none, pass the logits yourself: "
            f"cawa = CAWA(None, {self.num_classes}), cawa.loss(labels, logits=z) and cawa.observe(labels, logits=z), "
            "with source='argmax' unless you mean Grad-CAM at the logits. "
            "CAWA(..., verify=False) uses the last of them without this comparison"
        )


def as_logits(output: Tensor) -> Tensor:
    """Logits of the same softmax as what a network returned: itself, or its logarithm if it is probabilities.

    Which of the two is decided on the device, without waiting for it.
    """
    with torch.no_grad():
        values, _ = _lattice(output)
        sums = values.sum(1)
        are_probabilities = (values >= 0).all() & ((sums - 1).abs() < 0.02).all()
    least = torch.finfo(output.dtype).tiny
    return torch.where(are_probabilities, output.clamp_min(least).log(), output)


def _lattice(output: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """``output`` at up to 16 x 16 positions, in float32 or float64, and their rows and columns."""
    rows, columns = (_positions(size, output.device) for size in output.shape[-2:])
    values = output.detach().index_select(-2, rows).index_select(-1, columns)
    return values.to(reference.compute_dtype(output.dtype)), (rows, columns)


def _positions(size: int, device: torch.device) -> Tensor:
    """Positions along an axis: both ends, and others at irregular distances, which have all phases of a resize."""
    places = torch.arange(_LATTICE, device=device) * 0.6180339887 % 1 * size
    places[-1] = size - 1
    return places.long().clamp_(max=size - 1)


def _resized_at(
    logits: Tensor, size: tuple[int, int] | torch.Size, places: tuple[Tensor, Tensor], align_corners: bool
) -> Tensor:
    """``F.interpolate(logits, size, mode="bilinear")`` at the rows and columns ``places``."""
    x = logits.detach().to(reference.compute_dtype(logits.dtype))
    for axis, place in zip((-2, -1), places, strict=True):
        if x.shape[axis] == size[axis] and logits.shape[-2:] == size:
            x = x.index_select(axis, place)
            continue
        taps = reference.bilinear_taps(logits.shape[axis], size[axis], align_corners, x.dtype, x.device)
        low, high = (x.index_select(axis, tap[place]) for tap in (taps.low, taps.high))
        shape = (-1, 1) if axis == -2 else (-1,)
        x = low * taps.low_weight[place].view(shape) + high * taps.high_weight[place].view(shape)
    return x


def _difference(logits: Tensor, output: Tensor) -> Tensor:
    """Root mean square of the difference, relative to that of ``output``; NaN if that is 0 or not finite.

    The output may also be the (logarithm of the) softmax, whose cross-entropy and argmax are those of the logits.
    """
    output = output.to(torch.promote_types(output.dtype, logits.dtype))
    size = output.square().mean()
    forms = torch.stack([logits, logits.log_softmax(1), logits.softmax(1)])
    least = (forms - output).square().flatten(1).mean(1).amin()
    return (least / size).sqrt().float().where((size > 0) & size.isfinite(), torch.nan)


def _tolerance(logits: Tensor, output: Tensor) -> float:
    return max(_TOLERANCE, torch.finfo(logits.dtype).eps, torch.finfo(output.dtype).eps)


def _is_mixed(output: Tensor, logits: Tensor, channels_last: bool) -> bool:
    """Whether trained parameters enter ``output`` other than through ``logits``, as those of a learned scale do.

    At initialisation they may change nothing (a scale of 1, an adapter of 0), so that the values do not show them.
    Follows the autograd graph from the output back to the logits, which are not met if they have no graph, as those of
    a teacher. Custom functions (compiled code, checkpointing) hide what is inside them; there the values decide.
    """
    goal = logits.grad_fn
    if goal is not None and channels_last:
        goal = goal.next_functions[0][0]  # of the layer: ``logits`` are a view of its output
    if output.grad_fn is None:
        return False
    waiting, seen = [output.grad_fn], {output.grad_fn, goal}
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):  # a leaf that accumulates its gradient
            return True
        if node is goal or isinstance(node, torch.autograd.function.BackwardCFunction):
            continue
        inputs = {function for function, _ in node.next_functions if function is not None} - seen
        seen |= inputs
        waiting.extend(inputs)
    return False


def _other_resize(logits: Tensor, output: Tensor) -> str:
    """Names the resize with which they would agree, for the error message."""
    for mode in ("nearest", "nearest-exact", "bicubic", "area"):
        whole = F.interpolate(logits.detach().float(), output.shape[-2:], mode=mode)
        difference = (whole - output.detach().float()).square().mean() / output.detach().float().square().mean()
        if difference.sqrt() < _tolerance(logits, output):
            return f" (it agrees if resized with mode={mode!r}, whose loss is another)"
    return ""


def _by(size: Any) -> str:
    return f"{size[0]}x{size[1]}"
