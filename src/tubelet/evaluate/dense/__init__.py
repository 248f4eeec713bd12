"""Segmentation and depth: linear heads on the tokens of pictures."""
