"""Ablations: many training runs compared over seeds."""
