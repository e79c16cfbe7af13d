"""Metric modules for the `evaluate` library, loaded by path: ``evaluate.load("<this folder>/elm_perplexity")``."""

from pathlib import Path


ELM_PERPLEXITY = str(Path(__file__).resolve().parent / "elm_perplexity")
