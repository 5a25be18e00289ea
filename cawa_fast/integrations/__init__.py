"""Adapters for training frameworks: :mod:`transformers`, :mod:`lightning` and :mod:`accelerate`.

Each module imports its framework, which is an extra: ``pip install "cawa_fast[transformers]"``.
"""
