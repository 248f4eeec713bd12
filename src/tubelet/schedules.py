"""Schedules as pure functions of the step, so that a resumed run has no scheduler state to restore.

`step` is the number of optimizer steps done: the first step uses the value at 0.
"""

import math


def linear(step: float, total: float, start: float, end: float) -> float:
    """From start at 0 to end at `total`, and end from there on."""
    return start + (end - start) * min(max(step / total, 0.0), 1.0) if total > 0 else end


def cosine(step: float, total: float, start: float, end: float) -> float:
    """Half a cosine wave from start at 0 to end at `total`, and end from there on."""
    fraction = min(max(step / total, 0.0), 1.0) if total > 0 else 1.0
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))


DECAYS = {"cosine": cosine, "linear": linear}


def learning_rate(
    step: float, warmup: float, total: float, start: float, peak: float, final: float, decay: str = "cosine"
) -> float:
    """Linear from start to peak over `warmup` steps, then from peak to final at `total` by one of `DECAYS`."""
    if step < warmup:
        return linear(step, warmup, start, peak)
    return DECAYS[decay](step - warmup, total - warmup, peak, final)


def context_weight(step: float, start_step: float, end_step: float, final: float) -> float:
    """λ: 0 until start_step, then linear to final at end_step."""
    if step < start_step:
        return 0.0
    return linear(step - start_step, end_step - start_step, 0.0, final)
