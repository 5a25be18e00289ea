"""The hooks on a network that record what its classifier computed in the last forward pass."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ._output_check import LayerRun
from ._wrappers import in_static_graph

_MOST_RUNS = 16
"""Runs of a layer in one forward pass that are kept for the comparison with the output."""

RELEASED = object()
"""In place of an output that is not needed any more."""


class Pass(NamedTuple):
    """What distinguishes forward passes whose outputs are compared separately.

    Attributes:
        trains: whether it is one of the training: in training mode and with gradients.
        size: height and width of the images, as far as they are known.
    """

    trains: bool
    size: tuple[int, ...] | None


class Clock(Protocol):
    """What is told that a forward pass in training mode begins: :class:`cawa_fast.sampling.ValidationSampler`."""

    def train(self) -> None: ...


class _Link:
    """Leads from the hooks to their recorder.

    A copy leads to the copy of the recorder, if that was copied together with the network; else to nothing, so that the
    hooks of a copied network (a weight average, a saved file) do nothing.
    """

    def __init__(self) -> None:
        self.recorder: Any = lambda: None

    def __reduce__(self) -> tuple[type[_Link], tuple[()]]:  # also what copy.deepcopy goes by
        return _Link, ()


class _Hook:
    """A forward hook, or with ``before`` a forward pre-hook, of the network; with ``layer`` of one of the layers."""

    def __init__(self, link: _Link, layer: int | None = None, *, before: bool = False) -> None:
        self.link, self._layer, self._before = link, layer, before

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any = None) -> None:
        recorder = self.link.recorder()
        if recorder is None or _is_exporting():
            return
        if self._layer is not None:
            recorder.hear(self._layer, module, (*inputs, *options.values()), output)
        elif self._before:
            recorder.begin(module, (*inputs, *options.values()))
        else:
            recorder.end(output)

    @property
    def __name__(self) -> str:
        raise AttributeError(
            "torch.jit.script cannot compile the hooks of CAWA and GradCAM, nor those in a copy of the network. Call "
            "CAWA.close() before you script or copy the network, or use torch.jit.trace, torch.export or torch.compile"
        )


class _Runs:
    """The runs of one layer in the last forward pass: those that are kept, and how many there were."""

    def __init__(self) -> None:
        self.kept: tuple[LayerRun, ...] = ()
        self.count = 0


class Recorder:
    """What ran in the last forward pass of a network.

    Args:
        root: the network.
        layers: the layers whose outputs are recorded.
        channels_last: for each of them, whether its maps have their channels last.
        keep_output: whether to keep what the network returns, until :attr:`settled` has the pass.

    Attributes:
        runs: of each layer.
        output: what the network returned; None if that was not seen, :data:`RELEASED` if it is not needed.
        current: the last pass.
        passes: forward passes since the last one was used, of one kind of ``Pass.trains``.
        compiled: whether compiled code ran last. It keeps the last run of each layer alone, and counts no passes.
        replica: whether a copy of a layer has run, as ``nn.DataParallel`` makes them.
        with_gradients: whether the pass as a whole had gradients.
        tokens: a layer with channels last whose output was no map, or None.
        static_graph: whether it ran in DDP with ``static_graph=True``.
        settled: for passes that need no comparison any more, the layer and which of its runs is kept.
        clock: is told of passes in training mode.
    """

    def __init__(
        self, root: nn.Module, layers: list[nn.Module], channels_last: list[bool], *, keep_output: bool
    ) -> None:
        self.root, self.layers, self._channels_last, self._keep_output = root, layers, channels_last, keep_output
        self.settled: dict[Pass, tuple[int, int]] = {}
        self.clock: Clock | None = None
        self._link = _Link()
        self._link.recorder = weakref.ref(self)
        self.attached = False
        self.forget()

    def attach(self) -> None:
        """Register the hooks, and remove those that came with a copy of the network."""
        for recorder in (None, self):
            self._remove_hooks(recorder)
        for index, layer in enumerate(self.layers):
            layer.register_forward_hook(_Hook(self._link, index), with_kwargs=True)
        self.root.register_forward_pre_hook(_Hook(self._link, before=True), with_kwargs=True)
        self.root.register_forward_hook(_Hook(self._link), with_kwargs=True)
        self.attached = True

    def detach(self) -> None:
        """Remove the hooks."""
        self._remove_hooks(self)
        self.attached = False

    def _remove_hooks(self, of: Recorder | None) -> None:
        for module in (self.root, *self.layers):
            for hooks, kinds in (
                (module._forward_hooks, module._forward_hooks_with_kwargs),
                (module._forward_pre_hooks, module._forward_pre_hooks_with_kwargs),
            ):
                for key, hook in list(hooks.items()):
                    if isinstance(hook, _Hook) and hook.link.recorder() is of:
                        del hooks[key]
                        kinds.pop(key, None)

    def forget(self) -> None:
        """Release what the last forward pass computed."""
        self.runs = [_Runs() for _ in self.layers]
        self.output: Any = None
        self.current = Pass(False, None)
        self.passes = 0
        self.tokens: int | None = None
        self.compiled = self.replica = self.with_gradients = self.static_graph = self._inside = False

    def drop_graph(self) -> None:
        """Release the autograd graph of the last forward pass."""
        if self.output is not None:
            self.output = RELEASED
        for runs in self.runs:
            runs.kept = tuple(run._replace(logits=run.logits.detach()) for run in runs.kept)

    # A copy that is made together with the network listens to the copied network, and has no forward pass recorded.
    def __getstate__(self) -> dict[str, Any]:
        lost = ("runs", "output", "current", "clock")
        return {key: value for key, value in self.__dict__.items() if key not in lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.clock = None
        self._link.recorder = weakref.ref(self)
        self.forget()

    # What follows runs in every forward pass. Where compiled code may trace it, it only sets attributes.

    def begin(self, root: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A forward pass of the network begins."""
        if torch.compiler.is_compiling() or _in_backward():
            return
        trains = root.training and torch.is_grad_enabled()
        if trains != self.current.trains:
            self.passes = 0
        self.current = Pass(trains, _size_of(inputs))
        self._inside, self.with_gradients, self.static_graph = True, torch.is_grad_enabled(), in_static_graph()
        self.output, self.compiled, self.tokens = None, False, None
        for runs in self.runs:
            runs.kept, runs.count = (), 0

    def hear(self, layer: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """A layer has run."""
        activations = inputs[0].detach()
        trains = module.training and output.requires_grad
        if self._channels_last[layer]:
            if output.dim() != 4:
                self.tokens = layer
                return
            activations, output = activations.movedim(-1, 1), output.movedim(-1, 1)
        if torch.compiler.is_compiling():
            self.compiled = True
            self.runs[layer].kept = (LayerRun(layer, activations, output, module.training, trains, None),)
        elif module is not self.layers[layer]:
            self.replica = True
        elif not _in_backward():
            versions = [None if tensor.is_inference() else tensor._version for tensor in (output, activations)]
            self._keep(layer, LayerRun(layer, activations, output, module.training, trains, *versions))
        if module.training and self.clock is not None:
            self.clock.train()

    def end(self, output: Any) -> None:
        """A forward pass of the network has ended."""
        if torch.compiler.is_compiling():
            self.output = output
        elif not _in_backward():
            self._inside = False
            self.passes += 1
            self.output = output if self._keep_output and self.current not in self.settled else RELEASED

    def _keep(self, layer: int, run: LayerRun) -> None:
        runs = self.runs[layer]
        if not self._inside:  # a part of the network was called, and not the network
            if run.trains != self.current.trains:
                self.passes = 0
            self.current, self.output = Pass(run.trains, None), None
            runs.kept, runs.count = (), 0
            self.passes += 1
        settled = self.settled.get(self.current)
        if settled is None:
            runs.kept = (*runs.kept[1 - _MOST_RUNS :], run) if self._keep_output else (run,)
        elif settled == (layer, runs.count):
            runs.kept = (run,)
        runs.count += 1

    def used(self) -> None:
        """The last forward pass was used. That counts for all that listen to this network."""
        for hook in self.root._forward_hooks.values():
            recorder = hook.link.recorder() if isinstance(hook, _Hook) else None
            if recorder is not None:
                recorder.passes = 0


def _size_of(inputs: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Height and width of the images among the arguments of a network."""
    return next((tuple(x.shape[-2:]) for x in inputs if isinstance(x, Tensor) and x.dim() >= 3), None)


def _is_exporting() -> bool:
    """Whether ``torch.export`` runs the network, on tensors without values."""
    # Not torch.compiler.is_exporting(), which is always true in code that torch 2.11 compiles.
    return getattr(torch.compiler, "_is_exporting_flag", False)


def _in_backward() -> bool:
    """Whether a checkpoint repeats a forward pass within a backward pass."""
    return torch._C._current_graph_task_id() != -1
