"""Comparisons of flowno with its peers, run side by side: ``python -m tests.benchmarks``."""
