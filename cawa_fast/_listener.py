"""Which layer computes the logits of a network, and which forward pass a loss or a score may use."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn

from ._classifier import Candidate, best_guess, find_candidates, outputs_of
from ._output_check import Choice, Comparison, LayerRun, as_logits, log
from ._recorder import RELEASED, Pass, Recorder
from ._wrappers import in_static_graph, is_sharded_as_a_whole, unwrapped

_TRIES = 64
"""Forward passes that are compared while both conventions of ``align_corners`` agree, as on constant maps."""

_PASS_LOGITS = "Pass the logits of the pass that you mean as logits="


class Listener:
    """Finds the layer of the logits by comparing the candidates with what the network returned.

    The first forward pass in training, the first other one, and the first of each size of images are compared, and once
    more after each :meth:`compare_again`: see :class:`cawa_fast._output_check.Comparison`. That happens when their
    logits are first used.

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
        root = unwrapped(model)
        candidates = find_candidates(root, num_classes, classifier)
        if not verify:
            candidates = [best_guess(candidates)]
        self.who, self.candidates, self.guess = who, candidates, candidates.index(best_guess(candidates))
        self.explicit, self.verify = classifier is not None, verify
        self.num_classes = candidates[0].num_classes
        self.wanted_corners = align_corners
        self.choices: dict[bool, Choice] = {}  # for passes of the training, and for others
        layers, channels_last = zip(*((c.layer, c.has_channels_last) for c in candidates), strict=True)
        self.recorder = Recorder(root, list(layers), list(channels_last), keep_output=verify)
        self._sizes: dict[Pass, tuple[int, int]] = {}  # of the logits that the network returned
        self._observed: weakref.ref[Tensor] | None = None
        self._pending: dict[Pass, Comparison] = {}  # those that a GPU may not have finished
        self._needs_output: bool | None = None
        self._tries, self._warned = 0, False

    def forget(self) -> None:
        """Release what the last forward pass computed."""
        self.recorder.forget()
        self._observed = None
        self._pending.clear()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_observed": None, "_pending": {}}

    # ----------------------------------------------------------------------------------------------------------- use

    def last(self, *, wait: bool = True) -> LayerRun:
        """What the classifier computed in the last forward pass.

        Args:
            wait: whether to wait for a GPU that has not finished the first comparison. Otherwise the logits are then
                those that the network returned.

        Raises:
            RuntimeError: the network has not run.
            ValueError: no layer has computed what the network returned.
        """
        runs = self.recorder.runs
        if not any(each.kept for each in runs):
            if self.recorder.tokens is not None:
                raise ValueError(self._over_tokens(self.recorder.tokens))
            raise RuntimeError(self._why_deaf())
        if not self.verify:
            return runs[0].kept[-1]
        current = self.recorder.current
        if self.recorder.compiled:  # which does not tell what it is
            current = Pass(next(run.kept[-1].trains for run in runs if run.kept), None)
        self._note_size(current)
        known = self.choices.get(current.trains)
        lost = known is not None and self.recorder.compiled and known.run < known.runs - 1  # an error below
        if current not in self.recorder.settled and not lost:
            logits = self._compare(current, wait)
            if logits is not None:
                return runs[self._guess_that_ran()].kept[-1]._replace(logits=logits, version=None)
        if current in self.recorder.settled:
            self.recorder.output = RELEASED
        return self._run_of(self.choices.get(current.trains) or self.choices.get(not current.trains))

    def has_run(self) -> bool:
        return self.recorder.tokens is not None or any(runs.kept for runs in self.recorder.runs)

    @property
    def candidate(self) -> Candidate:
        """The layer that is listened to, as far as it is known."""
        choice = self.choices.get(self.recorder.current.trains) or next(iter(self.choices.values()), None)
        return self.candidates[self.guess if choice is None else choice.candidate]

    @property
    def align_corners(self) -> bool | None:
        """The convention of the network's own resize; None if it is not known, or the user has passed another."""
        if self.wanted_corners is not None:
            return None
        return next((c.align_corners for c in self.choices.values() if c.align_corners is not None), None)

    def resize(self) -> tuple[tuple[int, int] | None, bool]:
        """To which size the network resizes its logits in a pass as the last one, as far as it is known, and how."""
        corners = (choice.align_corners for choice in self.choices.values())
        return self._sizes.get(self.recorder.current), next((c for c in corners if c is not None), False)

    def use(self, purpose: str, *, wait: bool = False, first: bool = False) -> LayerRun:
        """:meth:`last`, for a purpose that takes the forward pass for that of a certain batch.

        Args:
            purpose: ``"loss"`` or ``"observe"``.
            wait: as for :meth:`last`.
            first: whether forward passes without any use may have come before.

        Raises:
            RuntimeError: the pass is of another batch, or may be.
        """
        run, recorder = self.last(wait=wait), self.recorder
        if purpose == "observe":
            if self._observed is not None and self._observed() is run.logits:
                raise RuntimeError(
                    f"{self.who}.observe: this forward pass was observed before, and would count twice. If a network "
                    "has run since then, it was not the one that CAWA listens to, but a copy (as an average of weights "
                    f"is) or code that was compiled before CAWA was made. {_PASS_LOGITS}"
                )
            if run.trains:
                raise RuntimeError(
                    f"{self.who}.observe: the last forward pass was one of the training. Score the validation images: "
                    "call model.eval(), and model(images) under torch.no_grad(). If another network than the one that "
                    f"CAWA listens to has run, such as a copy of it, {_PASS_LOGITS[0].lower()}{_PASS_LOGITS[1:]}"
                )
        elif not run.training_mode and self.candidates[run.candidate].layer.training and torch.is_grad_enabled():
            raise RuntimeError(
                f"{self.who}.loss: the last forward pass was one in evaluation mode, and the network is in training "
                f"mode now; call model(images) for the batch first. {_PASS_LOGITS}"
            )
        elif self._lost_gradients(run):
            raise RuntimeError(
                f"{self.who}.loss: the classifier ran without gradients within a forward pass that has them, as in "
                "checkpoint(..., use_reentrant=True) or under no_grad, and the loss would train nothing. Use "
                "use_reentrant=False, or pass the network's output as logits="
            )
        if recorder.passes > 1 and not first:
            raise RuntimeError(
                f"{self.who}.{purpose}: {recorder.passes} forward passes have run since the last one was used, and "
                "only the last would count. For windows, scales or mirrored images, combine their logits and pass them "
                "as logits=. If the earlier passes were for something else, call CAWA.reset() before the one that "
                "counts"
            )
        recorder.used()
        return run

    def observed(self, run: LayerRun) -> None:
        """The pass was observed, and may not be observed again."""
        self._observed = weakref.ref(run.logits)

    def needs_output(self) -> str | None:
        """The wrapper that synchronises gradients only where they pass through what it returns, if there is one."""
        if self._needs_output is None:
            self._needs_output = is_sharded_as_a_whole(self.candidate, self.recorder.root)
        if self.recorder.static_graph and not in_static_graph():  # else the loss is a part of what DDP returns
            return "DistributedDataParallel(..., static_graph=True)"
        return "fully_shard" if self._needs_output else None

    def check_wrapper(self) -> None:
        """Raise if a wrapper needs its output, see :meth:`needs_output`."""
        wrapper = self.needs_output()
        if wrapper is not None:
            raise RuntimeError(
                f"{self.who}.loss: {wrapper} synchronises the gradients only if they pass through what the wrapped "
                "network returned; pass that too, as loss(labels, output=model(images))"
            )

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
        if len({choice.found() for choice in self.choices.values()}) == 1:
            words = next(iter(self.choices.values())).words
            return f"{self.who} listens to {words} (seen {' and '.join(kinds[trains] for trains in self.choices)})."
        each = "; ".join(f"{kinds[trains]}, to {choice.words}" for trains, choice in self.choices.items())
        return f"{self.who} listens, {each}."

    # ---------------------------------------------------------------------------------------------------- comparison

    def compare_again(self) -> None:
        """Finish all comparisons, and compare again in the next passes: what did nothing before may have been trained.

        Raises:
            ValueError: no layer has computed what the network returned.
        """
        while self._pending:
            current, comparison = self._pending.popitem()
            self._decide(current, comparison)
        self.recorder.settled.clear()

    def _compare(self, current: Pass, wait: bool) -> Tensor | None:
        """Find the layer of the logits of this pass.

        Returns:
            None; or the logits that the network returned, if they do not tell, or a GPU has not finished.
        """
        returned = self.recorder.output
        outputs = [] if returned is None or returned is RELEASED else outputs_of(returned)
        main = next((output.tensor for output in outputs if output.is_main), None)
        if main is not None and main.shape[1] != self.num_classes:
            main = None
        known = bool(self.choices)
        if main is not None and main.is_cuda and torch.cuda.is_current_stream_capturing():
            return None if known else as_logits(main)  # a comparison could not be read, and would be captured
        if current not in self._pending:
            if not outputs:
                if returned is not RELEASED and not known:
                    self._warn(
                        "were parts of the network called, and not the network itself?"
                        if returned is None
                        else f"its output holds no map with {self.num_classes} channels"
                    )
                return None
            self._pending[current] = Comparison(
                self.who,
                self.candidates,
                [runs.kept for runs in self.recorder.runs],
                outputs,
                self.num_classes,
                explicit=self.explicit,
                align_corners=self.wanted_corners,
                quiet=known,
            )
        for other in [key for key, comparison in self._pending.items() if key != current and comparison.is_ready()]:
            self._decide(other, self._pending.pop(other))
        comparison = self._pending[current]
        if not comparison.is_ready() and (known or (not wait and main is not None)):
            return None if known or main is None else as_logits(main)
        del self._pending[current]
        if self._decide(current, comparison) or known:
            return None
        if not comparison.outputs:
            self._warn(f"its output holds no map with {self.num_classes} channels")
        return None if main is None else as_logits(main)

    def _note_size(self, current: Pass) -> None:
        """Keep the size of the returned logits, which is needed after the output has been released."""
        if self.recorder.output is None:
            self._sizes.pop(current, None)
        elif self.recorder.output is not RELEASED:
            names = {choice.output for choice in self.choices.values()}
            maps = [map for map in outputs_of(self.recorder.output) if map.tensor.shape[1] == self.num_classes]
            for map in [*(map for map in maps if map.name in names), *maps][:1]:
                self._sizes[current] = (map.tensor.shape[-2], map.tensor.shape[-1])

    def _decide(self, current: Pass, comparison: Comparison) -> bool:
        """Whether the comparison has told."""
        choice = comparison.decide()
        if choice is None:
            return False
        self.choices[current.trains] = choice
        self._tries += 1
        if choice.certain or self._tries >= _TRIES:
            self.recorder.settled[current] = choice.candidate, choice.run
        return True

    def _warn(self, why: str) -> None:
        if self.explicit or self._warned:
            return
        self._warned = True
        name = self.candidates[self.guess].name
        log.warning(
            "%s: %r is taken for the layer that computes the logits, and could not be compared with what the network "
            "returned: %s. Pass classifier=%r to confirm, or the right layer",
            self.who,
            name,
            why,
            name,
        )

    def _run_of(self, choice: Choice | None) -> LayerRun:
        runs = self.recorder.runs[self._guess_that_ran() if choice is None else choice.candidate]
        if choice is None:
            return runs.kept[-1]
        name = self.candidates[choice.candidate].name
        if not runs.kept:
            raise RuntimeError(
                f"{self.who}: {name!r}, which computed the logits before, did not run in the last forward pass. "
                f"{_PASS_LOGITS}"
            )
        if self.recorder.compiled:
            if choice.run < choice.runs - 1:
                raise RuntimeError(
                    f"{self.who}: {name!r} runs {choice.runs} times in a forward pass, and compiled code keeps the "
                    f"last run alone, not run {choice.run + 1}. {_PASS_LOGITS}"
                )
        elif runs.count != choice.runs:
            raise RuntimeError(
                f"{self.who}: {name!r} ran {runs.count} times in the last forward pass, and {choice.runs} times in the "
                f"one that was compared with the output. {_PASS_LOGITS}"
            )
        return runs.kept[choice.run] if len(runs.kept) == choice.runs else runs.kept[-1]

    def _guess_that_ran(self) -> int:
        """The guess, among the candidates that have run."""
        ran = [index for index, runs in enumerate(self.recorder.runs) if runs.kept]
        return self.guess if self.guess in ran else self.candidates.index(best_guess([self.candidates[i] for i in ran]))

    def _lost_gradients(self, run: LayerRun) -> bool:
        """Whether the layer that is trained ran without gradients in a pass that has them."""
        if not self.recorder.with_gradients or self.recorder.compiled or run.logits.requires_grad:
            return False
        trained = any(parameter.requires_grad for parameter in self.candidates[run.candidate].layer.parameters())
        return run.training_mode and trained

    def _over_tokens(self, layer: int) -> str:
        return (
            f"{self.who}: {self.candidates[layer].name!r} is an nn.Linear whose output is no map (N, h, w, C), as it "
            "is none over tokens (N, L, C). Pass the network's output as logits=, with source='argmax' unless you mean "
            "Grad-CAM at the logits; GradCAM takes a target_layer"
        )

    def _why_deaf(self) -> str:
        name = self.candidates[self.guess].name
        if not self.recorder.attached:
            return f"{self.who}: the classifier has not run since close() removed the hooks; make a new {self.who}"
        modules = set(self.recorder.root.modules())
        if not any(candidate.layer in modules for candidate in self.candidates):
            return (
                f"{self.who}: {name!r} is no longer a part of the network; it was replaced after {self.who} was made "
                f"(as get_peft_model and quantisation do). Make {self.who} after that"
            )
        if self.recorder.replica:
            return (
                f"{self.who}: nn.DataParallel runs copies of the network, which hooks cannot tell apart; use "
                "DistributedDataParallel, or pass the logits as logits="
            )
        return (
            f"{self.who}: the classifier has not run yet; call model(images) first. A network that was compiled and "
            f"run before {self.who} was created does not call new hooks: create {self.who} first, or call "
            "torch._dynamo.reset(). A copy of the network, or of a part (as get_peft_model makes), is not heard either"
        )
