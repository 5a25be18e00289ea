"""The entry of the processes that use the device: ``python -m bench.gpu.child STEP FILE SECONDS [--rehearse]``.

``FILE`` is JSON with what the step has found so far. It is read at the start and rewritten after every piece of work,
so that a process that crashes or is killed loses at most the current piece.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run one step to its end, or to the end of its time."""
    begin = time.monotonic()
    step, path, seconds, *flags = arguments
    from . import epochs, limits, measure, profiled, sweep
    from .interpreted import kernels_on_the_cpu
    from .state import State
    from .timing import Gpu, Host

    # the imports take some of the time
    state = State(Path(path), float(seconds) - (time.monotonic() - begin), "--rehearse" in flags)
    machine = Host() if state.rehearse else Gpu()
    steps = {
        "limits": lambda state, machine: state.data.update(limits.measure_limits(machine)),
        "profile": profiled.run_profiles,
        "warm-up": measure.warm_up,
        "benchmarks": measure.run_benchmarks,
        "epoch": epochs.run_epochs,
        "sweep": sweep.run_sweep,
    }
    # a rehearsal trains its network with the compiled CPU operators, because the interpreter is slow
    with kernels_on_the_cpu() if state.rehearse and step != "epoch" else contextlib.nullcontext():
        steps[step](state, machine)
    state.data["finished"] = True
    state.publish()


if __name__ == "__main__":
    main(sys.argv[1:])
