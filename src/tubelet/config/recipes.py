"""The stages of the published training (arXiv 2603.14482), each a function that gives a whole run's settings.

Pre-training is `TrainConfig` as it is. What a stage changes of it is all that is written here.
"""

from dataclasses import replace

from tubelet.config.train import OptimConfig, TrainConfig


def pretrain() -> TrainConfig:
    """256 px, 16 frames, 1,000 "epochs" of 300 steps."""
    return TrainConfig()


def cooldown() -> TrainConfig:
    """Longer clips from a pre-trained checkpoint: 64 frames, 40 "epochs", the learning rate falling linearly to 1e-6.

    The context loss counts in full from the first step, and all visible tokens alike.
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
    """The cool-down at 384 px: what the released 384 px weights went through last."""
    run = cooldown()
    return replace(run, data=replace(run.data, image_size=384))


def distill() -> TrainConfig:
    """A small student regresses a frozen, larger model's last level; its average is what is kept.

    The release says no more of its schedule: this is pre-training's, with all visible tokens counted from the start,
    for a frozen model's features need no time to become worth predicting.
    """
    return replace(pretrain(), optim=OptimConfig(context_warmup=(0.0, 0.0)))
