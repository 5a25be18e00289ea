"""Doctests of the integrations run in ``tests/integrations``: their frameworks may not be installed."""

collect_ignore_glob = [
    "cawa_fast/integrations/[!_]*.py",
    "cawa_fast/integrations/_transformers_callback.py",
    "cawa_fast/integrations/_mmseg_loss.py",
]
