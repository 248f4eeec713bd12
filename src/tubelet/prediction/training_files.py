"""Notes about predicted files that a head was trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tubelet.heads.head_file import Head
from tubelet.heads.training_files import file_id
from tubelet.prediction.media_predictions import MediaPredictions


def note_training_files(
    files: Sequence[MediaPredictions], heads: Mapping[str, Head]
) -> tuple[list[MediaPredictions], int]:
    """Add a note to the predictions for files that heads were trained on, as far as the head files name them.

    Args:
        files: the predictions.
        heads: name -> head.

    Returns:
        the predictions, and the number of noted files.
    """
    trained = {name: frozenset(head.training_files) for name, head in heads.items()}
    noted, known = [], 0
    for each in files:
        identity = file_id(each.file) if each.file is not None and any(trained.values()) else ""
        names = [name for name, ids in trained.items() if identity in ids]
        if names:
            known += 1
            each = replace(each, note=f"Among the files that {', '.join(names)} was trained on.")
        noted.append(each)
    return noted, known
