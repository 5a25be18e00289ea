"""``python -m cawa_fast.cli``: what ``torchrun -m`` starts."""

from .commands import main

main()
