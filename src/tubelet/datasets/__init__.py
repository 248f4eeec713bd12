"""Readers of benchmarks as their official downloads unpack: from a folder to lists of files."""
