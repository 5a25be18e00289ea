"""The HTML report of training runs and ablations."""
