"""Measurements against igneous-pipeline; `python -m benchmarks`."""
