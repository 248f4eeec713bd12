"""Heads on frozen features, and the loop that trains many of them side by side."""
