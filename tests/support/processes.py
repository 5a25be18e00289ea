"""Processes that begin with PyTorch imported, which would take each of them seconds."""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.process import BaseProcess

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["cawa_fast", "torch.distributed.fsdp", "torch.nn.parallel", "torch.utils.data"])


def start(script: str, *arguments: str) -> BaseProcess:
    """A started process that runs ``script`` as ``python -c script arguments`` would, up to its last line.

    It ends without the interpreter's own end. Whether a process that trained ends well, test with a command.
    """
    process = _context.Process(target=_run, args=(script, arguments), daemon=True)
    process.start()
    return process


def _run(script: str, arguments: tuple[str, ...]) -> None:
    sys.argv = ["-c", *arguments]
    exec(compile(script, "<script>", "exec"), {"__name__": "__main__"})
