"""Networks of heads, one module each: `NETWORK` is a class of `nn.Module` that is created with width and classes.

All take tokens (B, T, S, D) - clips, time steps, cells of a step, channels - and return logits: (B, K) for clips,
(B, T, K) for timelines, (B, T, S, K) for pixels.
"""
