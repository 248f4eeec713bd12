"""The networks: tokenizer, rotary position embedding, transformer blocks, encoder and predictor."""
