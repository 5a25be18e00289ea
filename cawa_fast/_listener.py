"""What a network's classifier computed in the last forward pass: hooks, and the rules by which a pass is used."""

from __future__ import annotations

import warnings
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ._classifier import Candidate, best_guess, find_candidates, outputs_of
from ._output_check import Call, Choice, Comparison
from ._wrappers import in_static_graph, is_sharded_as_a_whole, unwrapped

_MOST_RUNS = 16
"""Runs of a layer in one forward pass that are kept for the comparison."""

_TRIES = 64
"""Forward passes that are compared while both conventions of ``align_corners`` agree, as on constant maps."""


class HasClock(Protocol):
    """What is told that a forward pass in training mode begins: :class:`cawa_fast.sampling.ValidationSampler`."""

    def train(self) -> None: ...


class _Hook:
    """A hook of a :class:`Listener`. In a copy of the network (a weight average, a saved file) it does nothing."""

    def __init__(self, owner: Listener | None = None, candidate: int | None = None, *, before: bool = False) -> None:
        self.owner = (lambda: None) if owner is None else weakref.ref(owner)
        self._candidate, self._before = candidate, before

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], *rest: Any) -> None:
        owner = self.owner()
        if owner is None or torch.compiler.is_exporting():
            return
        if self._candidate is not None:
            options, output = rest
            owner.hear(self._candidate, module, (*inputs, *options.values()), output)
        elif self._before:
            owner.begin()
        else:
            owner.end(rest[0])

    @property
    def __name__(self) -> str:
        raise AttributeError(
            "torch.jit.script cannot compile the hooks of CAWA and GradCAM, nor those in a copy of the network. Call "
            "CAWA.close() before you script or copy the network, or use torch.jit.trace, torch.export or torch.compile"
        )

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:  # also what copy.deepcopy goes by
        return _Hook, ()


class _Runs:
    """The runs of one candidate in the last forward pass: those that are kept, and how many there were."""

    def __init__(self) -> None:
        self.calls: tuple[Call, ...] = ()
        self.count = 0


class Listener:
    """Hooks on a network, and the layer that computes its logits.

    The first forward pass that trains, and the first other one, are compared with what the network returned, when their
    logits are first used: see :class:`cawa_fast._output_check.Comparison`.

    Args:
        who: name of the class, for messages.
        model: the network.
        num_classes, classifier: as in :func:`cawa_fast._classifier.find_candidates`.
        align_corners: what the user has passed; None to take it from the network.
        verify: whether to compare.
    """

    def __init__(
        self,
        who: str,
        model: nn.Module,
        num_classes: int | None,
        classifier: nn.Module | str | None,
        *,
        align_corners: bool | None = None,
        verify: bool = True,
    ) -> None:
        self.who, self.root = who, unwrapped(model)
        self.candidates = find_candidates(self.root, num_classes, classifier)
        self.guess = self.candidates.index(best_guess(self.candidates))
        if not verify:
            self.candidates, self.guess = [self.candidates[self.guess]], 0
        self.explicit, self.verify = classifier is not None, verify
        self.num_classes = self.candidates[self.guess].convolution.out_channels
        self.wanted_corners = align_corners
        self.choices: dict[bool, Choice] = {}  # for passes that train, and for others
        self.clock: HasClock | None = None
        self._needs_output: bool | None = None
        self._tries, self._warned = 0, False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self.forget()

    # -------------------------------------------------------------------------------------------------------- hooks

    def attach(self) -> None:
        """Register the hooks, and remove those that came with a copy of the network."""
        for module in (self.root, *(candidate.layer for candidate in self.candidates)):
            for hooks in (module._forward_hooks, module._forward_pre_hooks):
                for key in [key for key, hook in hooks.items() if isinstance(hook, _Hook) and hook.owner() is None]:
                    del hooks[key]
                    module._forward_hooks_with_kwargs.pop(key, None)
        for index, candidate in enumerate(self.candidates):
            self._handles.append(candidate.layer.register_forward_hook(_Hook(self, index), with_kwargs=True))
        self._handles.append(self.root.register_forward_pre_hook(_Hook(self, before=True)))
        self._handles.append(self.root.register_forward_hook(_Hook(self)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def forget(self) -> None:
        """Release what the last forward pass computed."""
        self._runs = [_Runs() for _ in self.candidates]
        self._output: Any = None  # of the last forward pass, while there is something to compare
        self._comparison: tuple[bool, Comparison] | None = None  # one that a GPU has not finished
        self._observed: weakref.ref[Tensor] | None = None
        self._passes, self._last_trains = 0, False
        self._inside = self._replica = self._with_gradients = self._static_graph = False

    def drop_graph(self) -> None:
        """Release the autograd graph of the last forward pass."""
        self._output = None
        for runs in self._runs:
            runs.calls = tuple(call._replace(logits=call.logits.detach()) for call in runs.calls)

    # A copy, made together with the network, hooks the copied network and has no forward pass recorded.
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _NOT_COPIED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._handles = []
        self.forget()
        self.attach()

    # The three functions below run in every forward pass, and those that compiled code may trace only set attributes.

    def begin(self) -> None:
        """A forward pass of the network begins."""
        if not torch.compiler.is_compiling() and not _in_backward():
            self._inside, self._with_gradients = True, torch.is_grad_enabled()
            self._static_graph = in_static_graph()
            self._output = None
            for runs in self._runs:
                runs.calls, runs.count = (), 0

    def hear(self, index: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """A candidate has run."""
        trains = module.training and output.requires_grad
        runs, call = self._runs[index], Call(index, inputs[0].detach(), output, module.training, trains)
        if torch.compiler.is_compiling():
            runs.calls, runs.count = (call,), 0
        elif module is not self.candidates[index].layer:
            self._replica = True
        elif not _in_backward():
            self._keep(index, runs, call)
        if module.training and self.clock is not None:
            self.clock.train()

    def end(self, output: Any) -> None:
        """A forward pass of the network has ended."""
        if torch.compiler.is_compiling():
            self._output = output
        elif not _in_backward():
            self._inside = False
            trains = self._trains()
            self._count(trains)
            choice = self.choices.get(trains)
            self._output = output if self.verify and (choice is None or not choice.certain) else None

    def _keep(self, index: int, runs: _Runs, call: Call) -> None:
        if not self._inside:  # a part of the network was called, and not the network
            runs.calls, runs.count = (), 0
            self._output = None
            self._count(call.trains)
        choice = self.choices.get(call.trains)
        if not self.verify:
            runs.calls = (call,)
        elif choice is None or not choice.certain:
            runs.calls = (*runs.calls[1 - _MOST_RUNS :], call)
        elif choice.candidate == index and choice.call == runs.count:
            runs.calls = (call,)
        runs.count += 1

    def _count(self, trains: bool) -> None:
        self._passes = 1 + (self._passes if trains == self._last_trains else 0)
        self._last_trains = trains

    # ----------------------------------------------------------------------------------------------------------- use

    def last(self, *, wait: bool = True) -> Call:
        """What the classifier computed in the last forward pass.

        Args:
            wait: whether to wait for a GPU that has not finished the comparison. Otherwise the logits are then the
                network's own output.

        Raises:
            RuntimeError: the network has not run.
            ValueError: no layer has computed what the network returned.
        """
        if not self.has_run():
            raise RuntimeError(self._why_deaf())
        trains = self._trains()
        if not self.verify:
            return self._runs[0].calls[-1]
        choice = self.choices.get(trains)
        if choice is None or not choice.certain:
            unfinished = self._compare(trains, wait)
            if unfinished is not None:
                return self._runs[self._ran()].calls[-1]._replace(logits=unfinished)
            choice = self.choices.get(trains) or self.choices.get(not trains)
        return self._run_of(choice)

    def has_run(self) -> bool:
        return any(runs.calls for runs in self._runs)

    @property
    def candidate(self) -> Candidate:
        """The layer that is listened to, as far as it is known."""
        choice = self.choices.get(self._last_trains) or next(iter(self.choices.values()), None)
        return self.candidates[self.guess if choice is None else choice.candidate]

    @property
    def align_corners(self) -> bool | None:
        """The convention of the network's own resize; None if it is not known, or the user has passed another."""
        if self.wanted_corners is not None:
            return None
        return next((c.align_corners for c in self.choices.values() if c.align_corners is not None), None)

    def use(self, purpose: str, *, wait: bool = False, first: bool = False) -> Call:
        """:meth:`last`, for a purpose that takes the forward pass for that of a certain batch.

        Args:
            purpose: ``"loss"`` or ``"observe"``.
            wait: as for :meth:`last`.
            first: whether forward passes without any use may have come before.

        Raises:
            RuntimeError: the pass is of another batch, or may be.
        """
        call = self.last(wait=wait)
        if purpose == "observe":
            if self._observed is not None and self._observed() is call.logits:
                raise RuntimeError(
                    f"{self.who}.observe: this forward pass was observed before, and would count twice. If a network "
                    "has run since then, it was not the one that CAWA listens to, but a copy (as an average of weights "
                    f"is) or code that was compiled before CAWA was made. {_PASS_LOGITS}"
                )
            if call.trains:
                raise RuntimeError(
                    f"{self.who}.observe: the last forward pass was one of the training. Score the validation images: "
                    "call model.eval(), and model(images) under torch.no_grad(). If another network than the one that "
                    f"CAWA listens to has run, such as a copy of it, {_PASS_LOGITS[0].lower()}{_PASS_LOGITS[1:]}"
                )
        elif not call.training and self.candidates[call.candidate].layer.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"{self.who}.loss: the last forward pass was one in evaluation mode, and the network is in training "
                f"mode now; call model(images) for the batch first. {_PASS_LOGITS}"
            )
        elif self._with_gradients and call.training and not call.logits.requires_grad and self._is_trained(call):
            raise RuntimeError(
                f"{self.who}.loss: the classifier ran without gradients within a forward pass that has them, as in "
                "checkpoint(..., use_reentrant=True) or under no_grad, and the loss would train nothing. Use "
                "use_reentrant=False, or pass the network's output as logits="
            )
        if self._passes > 1 and not first:
            raise RuntimeError(
                f"{self.who}.{purpose}: {self._passes} forward passes have run since the last one was used, and only "
                "the last would count. For windows, scales or mirrored images, combine their logits and pass them as "
                "logits=. If the earlier passes were for something else, call CAWA.reset() before the one that counts"
            )
        for hook in self.root._forward_hooks.values():  # the pass is used for all that listen to this network
            owner = hook.owner() if isinstance(hook, _Hook) else None
            if owner is not None:
                owner._passes = 0
        return call

    def check_wrapper(self) -> None:
        """Raise if a wrapper synchronises gradients only where they pass through what it returns."""
        if self._needs_output is None:
            self._needs_output = is_sharded_as_a_whole(self.candidate, self.root)
        if self._static_graph or self._needs_output:
            wrapper = "DistributedDataParallel(..., static_graph=True)" if self._static_graph else "fully_shard"
            raise RuntimeError(
                f"{self.who}.loss: {wrapper} synchronises the gradients only if they pass through what the wrapped "
                "network returned; pass that too, as loss(labels, output=model(images))"
            )

    def observed(self, call: Call) -> None:
        """The pass was observed, and may not be observed again."""
        self._observed = weakref.ref(call.logits)

    def explain(self) -> str:
        """What was found, in words."""
        listening = self.candidates[self.guess].name or "the network itself"
        if not self.verify:
            return f"{self.who} listens to {listening!r}, and does not compare it with the output (verify=False)."
        if not self.choices:
            rest = [candidate.name for index, candidate in enumerate(self.candidates) if index != self.guess]
            among = f", one of {len(self.candidates)} layers that may compute the logits: {rest}" if rest else ""
            return f"{self.who} listens to {listening!r}{among}. It was not compared with the network's output yet."
        kinds = {True: "in training", False: "in evaluation"}
        if len({choice._replace(words="") for choice in self.choices.values()}) == 1:
            words = next(iter(self.choices.values())).words
            seen = " and ".join(kinds[trains] for trains in self.choices)
            return f"{self.who} listens to {words} (seen {seen})."
        return (
            f"{self.who} listens, "
            + "; ".join(f"{kinds[trains]}, to {choice.words}" for trains, choice in self.choices.items())
            + "."
        )

    # ---------------------------------------------------------------------------------------------------- comparison

    def _compare(self, trains: bool, wait: bool) -> Tensor | None:
        """Find the layer of the logits.

        Returns:
            None; or the logits that the network returned, if they do not tell, or a GPU has not finished.
        """
        outputs = [] if self._output is None else outputs_of(self._output)
        logits = next((output.tensor for output in outputs if output.is_main), None)
        if logits is not None and logits.shape[1] != self.num_classes:
            logits = None
        if logits is not None and logits.is_cuda and torch.cuda.is_current_stream_capturing():
            return logits  # a comparison could not be read, and would be captured
        if self._comparison is None or self._comparison[0] != trains:
            if self._output is None:
                self._unseen("were parts of the network called, and not the network itself?")
                return None
            comparison = Comparison(
                self.who,
                self.candidates,
                [runs.calls for runs in self._runs],
                outputs,
                self.num_classes,
                explicit=self.explicit,
                align_corners=self.wanted_corners,
            )
            self._comparison = trains, comparison
        comparison = self._comparison[1]
        if not wait and logits is not None and not comparison.is_ready():
            return logits
        self._comparison = None
        choice = comparison.decide()
        if choice is None:
            if not comparison.outputs:
                self._unseen(f"its output holds no map with {self.num_classes} channels")
            return logits
        self._tries += 1
        self.choices[trains] = choice._replace(certain=choice.certain or self._tries >= _TRIES)
        return None

    def _unseen(self, why: str) -> None:
        if self.choices or self.explicit or self._warned:
            return
        self._warned = True
        name = self.candidates[self.guess].name
        warnings.warn(
            f"{self.who}: {name!r} is taken for the layer that computes the logits, and could not be compared with "
            f"what the network returned: {why}. Pass classifier={name!r} to confirm, or the right layer",
            stacklevel=2,
        )

    def _run_of(self, choice: Choice | None) -> Call:
        runs = self._runs[self._ran() if choice is None else choice.candidate]
        if not runs.calls:
            raise RuntimeError(self._why_deaf())
        if choice is None:
            return runs.calls[-1]
        if runs.count == 0:  # compiled code, which keeps the last run alone
            if choice.call < choice.calls - 1:
                raise RuntimeError(
                    f"{self.who}: {self.candidates[choice.candidate].name!r} runs {choice.calls} times in a forward "
                    f"pass, and compiled code keeps the last run alone, not run {choice.call + 1}. {_PASS_LOGITS}"
                )
            return runs.calls[-1]
        if runs.count != choice.calls:
            raise RuntimeError(
                f"{self.who}: {self.candidates[choice.candidate].name!r} ran {runs.count} times in the last forward "
                f"pass, and {choice.calls} times in the one that was compared with the output. {_PASS_LOGITS}"
            )
        return runs.calls[choice.call] if len(runs.calls) == choice.calls else runs.calls[-1]

    def _trains(self) -> bool:
        """Whether the last forward pass was one of the training."""
        return next((runs.calls[-1].trains for runs in self._runs if runs.calls), False)

    def _ran(self) -> int:
        """The guess, among the candidates that have run."""
        ran = [index for index, runs in enumerate(self._runs) if runs.calls]
        return self.guess if self.guess in ran else self.candidates.index(best_guess([self.candidates[i] for i in ran]))

    def _is_trained(self, call: Call) -> bool:
        return any(parameter.requires_grad for parameter in self.candidates[call.candidate].layer.parameters())

    def _why_deaf(self) -> str:
        name = self.candidates[self.guess].name
        if not self._handles:
            return f"{self.who}: the classifier has not run since close() removed the hooks; make a new {self.who}"
        modules = set(self.root.modules())
        if not any(candidate.layer in modules for candidate in self.candidates):
            return (
                f"{self.who}: {name!r} is no longer a part of the network; it was replaced after {self.who} was made "
                f"(as get_peft_model and quantisation do). Make {self.who} after that"
            )
        if self._replica:
            return (
                f"{self.who}: nn.DataParallel runs copies of the network, which hooks cannot tell apart; use "
                "DistributedDataParallel, or pass the logits as logits="
            )
        return (
            f"{self.who}: the classifier has not run yet; call model(images) first. A network that was compiled and "
            f"run before {self.who} was created does not call new hooks: create {self.who} first, or call "
            "torch._dynamo.reset(). A copy of the network, or of a part (as get_peft_model makes), is not heard either"
        )


_PASS_LOGITS = "Pass the logits of the pass that you mean as logits="
_NOT_COPIED = ("_handles", "_runs", "_output", "_comparison", "_observed", "clock")


def _in_backward() -> bool:
    """Whether a checkpoint repeats a forward pass within a backward pass."""
    return torch._C._current_graph_task_id() != -1
