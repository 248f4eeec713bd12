"""A dry run of a training run: memory, communication and time of a step on devices that need not exist."""
