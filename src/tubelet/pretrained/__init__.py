"""Trained encoders: from any file to a model, and from any picture to dense features."""
