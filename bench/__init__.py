"""Benchmarks and the experiments behind the defaults; run from the repository."""
