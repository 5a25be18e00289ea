"""One training run: loading, training, validation, new weights, checkpoints."""
