"""Heads on frozen features, and the loop that trains many of them in parallel."""
