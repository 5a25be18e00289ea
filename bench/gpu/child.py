"""The entry of the processes that touch the device: ``python -m bench.gpu.child STEP FILE SECONDS [--rehearse]``.

``FILE`` is JSON: what the step has found so far, read at the start and rewritten after every piece of work, so that a
process that is killed or crashes loses at most the piece it was at.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from .state import State


def main(arguments: list[str]) -> None:
    """Run one step to its end, or to the end of its time."""
    step, path, seconds, *flags = arguments
    state = State(Path(path), float(seconds), "--rehearse" in flags)
    # after the state, which counts the time that these imports take
    from . import epochs, limits, measure, profiled, sweep
    from .interpreted import kernels_on_the_cpu
    from .timing import Gpu, Host

    machine = Host() if state.rehearse else Gpu()
    steps = {"profile": profiled.run, "benchmarks": measure.run, "epoch": epochs.run, "sweep": sweep.run}
    steps["warm-up"] = measure.warm_up
    # (networks are no matter for an interpreter: a rehearsal trains them with the compiled operators for CPUs)
    with kernels_on_the_cpu() if state.rehearse and step != "epoch" else contextlib.nullcontext():
        if step == "limits":
            state.data.update(limits.measure(machine))
        else:
            steps[step](state, machine)
    state.data["finished"] = True
    state.publish()


if __name__ == "__main__":
    main(sys.argv[1:])
