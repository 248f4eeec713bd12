"""Trained encoders: from any weight file to a model, and from any image or video to dense features."""
