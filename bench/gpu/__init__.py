"""``python -m bench gpu``: everything that needs a GPU, in one command.

``command`` runs the steps one after the other, each in processes of its own (``runner``, ``steps``), and writes what
there is after every step (``report``). What runs on the device lies in ``child`` (the processes' entry), ``limits``,
``profiled``, ``rows`` and ``measure`` (benchmarks), ``awa``, ``epochs``, ``sweep`` and ``sanitized``; ``timing`` holds
what differs between a GPU and the CPU of a rehearsal.
"""
