"""``python -m bench cpu``: every operator against its baselines on the CPU, time and memory."""
