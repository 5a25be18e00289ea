"""``python -m bench gpu``: everything that needs a GPU, in one command.

``command`` runs the steps in order, each in processes of its own (``runner``, ``steps``), and writes the results after
every step (``report``). The processes on the device start in ``child``; their steps are ``limits``, ``profiled``,
``measure`` (benchmarks), ``epochs``, ``sweep`` and ``sanitized``. ``timing`` holds what differs between a GPU and the
CPU of a rehearsal. ``resources`` is a command of its own: what the compilers give each kernel.
"""
