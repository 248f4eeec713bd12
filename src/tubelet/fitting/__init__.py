"""Fitting heads to labels: features, training, held-out metrics, baselines."""
