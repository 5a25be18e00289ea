"""``python -m bench stacks``: a training step in other frameworks, with their own loss and with this library."""
