"""Labels of clips: one class each, or any number of them.

n clips, K classes.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tubelet.config import PredictConfig
from tubelet.heads.head_file import Head
from tubelet.prediction.label_output import LabelOutput
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs.base import FileScores
from tubelet.prediction.records import NONE_OF_THESE, Prediction

TASKS = ("classification", "multilabel")
_PRESENT = 0.5  # score from which a class is present, where the head has no thresholds


class ClipOutput(LabelOutput):
    """Labels of clips side by side, each for the time that its window owns.

    Where classes exclude each other, a clip has the class with the highest score; otherwise a row for each class whose
    score reaches the threshold. A clip without any has a row with an empty label and its highest score.
    """

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """See `HeadOutput`."""
        super().__init__(head, folder, config, layout)
        classes = len(head.spec.classes)
        if config.threshold is not None:
            self.thresholds = np.full(classes, config.threshold)
        elif head.spec.exclusive:
            self.thresholds = np.zeros(classes)
        else:
            self.thresholds = np.array(head.spec.thresholds or [_PRESENT] * classes)

    def records(self, item: FileScores) -> Iterator[Prediction]:
        """The labels of a file, clip by clip."""
        for rows in item.rows:
            novel = self.is_novel(rows.distance)
            for number in range(len(rows.start_s)):
                scores = rows.scores[number].astype(np.float64)
                best = int(scores.argmax())
                present = scores >= self.thresholds
                if self.head.spec.exclusive:
                    present &= np.arange(len(scores)) == best
                labels = [(self.head.spec.classes[k], float(scores[k])) for k in np.flatnonzero(present)]
                if novel[number]:
                    labels = [(NONE_OF_THESE, float(self.nearer_fraction(rows.distance[number : number + 1])[0]))]
                for label, score in labels or [("", float(scores[best]))]:
                    yield Prediction(
                        path=item.file.path,
                        start_s=float(rows.start_s[number]),
                        end_s=float(rows.end_s[number]),
                        label=label,
                        score=score,
                    )


OUTPUT = ClipOutput
