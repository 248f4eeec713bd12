"""What the variants of `recipe.py` are measured by: every task and every column of the table."""

from pathlib import Path
from typing import Any

from tubelet.model.encoder import Encoder
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
) -> tuple[dict[str, float], dict[str, Any]]:
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
    result = evaluate_encoder(
        encoder, data, max_train_clips=clips[0], max_val_clips=clips[1], image_size=image_size, frames=frames
    )
    by_task = {name.split(",")[0]: metric.value for name, metric in result.metrics.items()}
    scores = {
        "segmentation mIoU": by_task["segmentation"],
        "depth RMSE (log)": by_task["depth"],
        "depth R²": result.details["depth"]["R2"]["trained"],
        "tracking": by_task["tracking"],
        "motion accuracy": by_task["camera motion"],
    }
    return scores, dict(result.details)
