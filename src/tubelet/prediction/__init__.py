"""Application of heads to media of any length: one pass, constant memory, resumable tables."""
