"""Presets of the published training stages (arXiv 2603.14482), each a function that returns a `TrainConfig`.

Pre-training is the default `TrainConfig`; the other stages change some of its fields.
"""

from dataclasses import replace

from tubelet.config.train import OptimConfig, TrainConfig


def pretrain() -> TrainConfig:
    """256 px, 16 frames, 1,000 "epochs" of 300 steps."""
    return TrainConfig()


def cooldown() -> TrainConfig:
    """Longer clips from a pre-trained checkpoint: 64 frames, 40 "epochs", linear decay of the learning rate to 1e-6.

    The context loss has its full weight from the first step, and weighs all visible tokens equally.
    """
    run = pretrain()
    optim = OptimConfig(
        final_lr=1e-6,
        decay="linear",
        warmup_fraction=0.0,
        ema=0.99925,
        context_warmup=(0.0, 0.0),
        distance_weighting=False,
    )
    return replace(run, data=replace(run.data, frames=64), optim=optim, steps=40 * 300)


def high_resolution() -> TrainConfig:
    """The cool-down at 384 px: the last stage of the released 384 px weights."""
    run = cooldown()
    return replace(run, data=replace(run.data, image_size=384))


def distill() -> TrainConfig:
    """A small student regresses the last level of a frozen, larger model; the result is the student's EMA.

    The release does not publish the schedule. This one is pre-training's, with the context loss at full weight from
    the start, because the features of a frozen model are worth predicting from the first step.
    """
    return replace(pretrain(), optim=OptimConfig(context_warmup=(0.0, 0.0)))
