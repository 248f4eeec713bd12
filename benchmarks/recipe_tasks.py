"""What the variants of `recipe.py` are measured by: every task and every column of the table."""

import dataclasses
from pathlib import Path
from typing import Any

from tubelet.model.encoder import Encoder
from tubelet.tasks.common.frozen import TRAINED
from tubelet.tasks.suite import evaluate_encoder

# The columns of the table, and whether higher is better. `evaluated` gives each of them its value.
MEASURES = {
    "segmentation mIoU": True,
    "depth RMSE (log)": False,
    "depth R²": True,
    "tracking": True,
    "motion accuracy": True,
}


def evaluated(
    encoder: Encoder, data: Path, *, clips: tuple[int, int], image_size: int, frames: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All tasks of one encoder, here and nowhere else.

    Clips and tokens are the same for all runs, so that what differs between seeds is only the training.

    Args:
        encoder: a teacher, or one with random weights.
        data: the sample set.
        clips: how many of train and of val are used at most.
        image_size: side of a clip in pixels.
        frames: of a clip.

    Returns:
        the value of every measure, and details for scores.json.
    """
    _, tasks = evaluate_encoder(
        encoder, data, max_train_clips=clips[0], max_val_clips=clips[1], image_size=image_size, frames=frames
    )
    by_name = {task.name: task for task in tasks}
    scores = {
        "segmentation mIoU": by_name["segmentation"].values[TRAINED],
        "depth RMSE (log)": by_name["depth"].values[TRAINED],
        "depth R²": by_name["depth"].details["R2"][TRAINED],
        "tracking": by_name["tracking"].values[TRAINED],
        "motion accuracy": by_name["camera motion"].values[TRAINED],
    }
    return scores, [dataclasses.asdict(task) for task in tasks]
