"""Whole clips and images: attentive and linear probes, neighbours, anticipation."""
