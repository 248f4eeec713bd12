"""The network: tokenizer, rotary positions, blocks, encoder and predictor."""
