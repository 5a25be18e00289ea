"""Adapters for training frameworks: transformers, Lightning, accelerate, MMSegmentation and Ultralytics.

Each module imports its framework, which is an extra: ``pip install "cawa_fast[transformers]"``.
"""
