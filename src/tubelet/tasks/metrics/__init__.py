"""Metrics, each as its field defines it."""
