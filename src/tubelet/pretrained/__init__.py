"""Trained encoders: loading from any weight file, and dense features of any image or video."""
