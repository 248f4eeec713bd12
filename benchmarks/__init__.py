"""Measurements of speed and quality: `python -m benchmarks.NAME --help`."""
