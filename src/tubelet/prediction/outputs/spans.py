"""Spans of long videos: scores of time steps, and the spans that they decode to.

T time steps, S cells, D channels, K classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.heads.head_file import NO_LABEL, Head, SpanRule
from tubelet.heads.spans import SpanDecoder
from tubelet.prediction.label_output import LabelOutput
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs.base import FileScores, FileWindow, Floats, ScoreRows, SourceFile, as_floats
from tubelet.prediction.records import NONE_OF_THESE, Prediction

TASKS = ("timeline",)
CHUNK_STEPS = 64
"""Time steps that the network is applied to at once, besides their context."""


@dataclass
class _StepBuffer:
    """Tokens of consecutive time steps of a file.

    Attributes:
        begin: time step of the first tokens in memory.
        done: time steps whose scores have been computed.
        tokens: (n, S, D) each, the tokens of n steps.
    """

    begin: int = 0
    done: int = 0
    tokens: list[Tensor] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The time step after the last one in memory."""
        return self.begin + sum(map(len, self.tokens))


class SpanOutput(LabelOutput):
    """Spans of labels.

    The network sees chunks of a fixed number of time steps with its context on both sides, so that a video of any
    length has the scores that the network gives for all of its steps at once, up to rounding.
    """

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """See `HeadOutput`."""
        super().__init__(head, folder, config, layout)
        self.context = int(getattr(head.network, "context", 0))
        self.buffers: dict[str, _StepBuffer] = {}
        self.rules = tuple(self._rules())

    def _rules(self) -> Iterator[SpanRule]:
        """How scores become spans: the head's rules, with another threshold if one is set."""
        threshold = self.config.threshold
        for rule in self.head.spec.spans:
            if threshold is None:
                yield rule
            else:  # a rule that gives every moment a class would fill what is below the threshold
                yield replace(rule, on=threshold, off=min(rule.off, threshold) if rule.off else threshold)
        if self.limit is not None:
            everywhere = self.head.spec.exclusive and not threshold and not any(r.off for r in self.head.spec.spans)
            yield SpanRule(on=0.0 if everywhere else 0.5, off=0.0 if everywhere else 0.5, min_length_s=0, max_gap_s=0)

    def score(self, tokens: Tensor, windows: Sequence[FileWindow], pixels: Tensor) -> Iterator[ScoreRows]:
        """Append the time steps that each window owns, and score those whose context is complete."""
        for window_tokens, item in zip(tokens, windows, strict=True):
            buffer = self.buffers.setdefault(item.file.key, _StepBuffer())
            first, last = (0, len(window_tokens)) if item.window is None else (item.window.first, item.window.last)
            buffer.tokens.append(window_tokens[first:last].clone())
            while buffer.end - buffer.done >= CHUNK_STEPS + self.context:
                yield self._score_chunk(item.file, buffer)

    def end(self, file: SourceFile) -> Iterator[ScoreRows]:
        """Score the last time steps."""
        buffer = self.buffers.pop(file.key, _StepBuffer())
        while buffer.done < buffer.end:
            yield self._score_chunk(file, buffer)

    def discard(self, key: str) -> None:
        """Forget the tokens of a file or span."""
        self.buffers.pop(key, None)

    def _score_chunk(self, file: SourceFile, buffer: _StepBuffer) -> ScoreRows:
        steps = torch.cat(buffer.tokens)
        first, last = buffer.done, min(buffer.done + CHUNK_STEPS, buffer.end)
        low, high = max(buffer.begin, first - self.context), min(buffer.end, last + self.context)
        chunk = steps[low - buffer.begin : high - buffer.begin]
        scores = as_floats(self.head(chunk.unsqueeze(0))[0, first - low : last - low])
        distance = self.distances(steps[first - buffer.begin : last - buffer.begin].unsqueeze(1))
        begin = max(buffer.begin, last - self.context)
        buffer.tokens, buffer.begin, buffer.done = [steps[begin - buffer.begin :]], begin, last
        edges = np.minimum(np.arange(first, last + 1) * self.layout.step_s, file.duration_s) + file.start_s
        return ScoreRows(
            key=file.key, first=first, start_s=edges[:-1], end_s=edges[1:], scores=scores, distance=distance
        )

    def records(self, item: FileScores) -> Iterator[Prediction]:
        """The spans of a file."""
        spec = self.head.spec
        duration_s = item.file.duration_s or None
        decoder = SpanDecoder(self.layout.step_s, self.rules, spec.exclusive, duration_s)
        for rows in item.rows:
            yield from self._labels(item.file, decoder.add(self._decoded_scores(rows)))
        yield from self._labels(item.file, decoder.finish())

    def _decoded_scores(self, rows: ScoreRows) -> Floats:
        """Scores of the classes, and of "none of these" where that is asked for."""
        if self.limit is None:
            return rows.scores
        novel = self.is_novel(rows.distance)[:, None]
        none = np.where(novel, (1 + self.nearer_fraction(rows.distance)[:, None]) / 2, 0.0)  # at least its threshold
        scores: Floats = np.concatenate((np.where(novel, 0.0, rows.scores), none), axis=1).astype(np.float32)
        return scores

    def _labels(self, file: SourceFile, spans: Sequence[tuple[int, float, float, float]]) -> Iterator[Prediction]:
        names = (*self.head.spec.classes, NONE_OF_THESE)
        for class_index, start_s, end_s, score in spans:
            label = names[class_index]
            if class_index == len(self.head.spec.classes):
                score = 2 * score - 1  # the mean fraction, see `_decoded_scores`
            if label != NO_LABEL:
                start_s, end_s = (file.start_s + second for second in (start_s, end_s))
                yield Prediction(path=file.path, start_s=start_s, end_s=end_s, label=label, score=score)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels that may occur."""
        return tuple(name for name in super().classes if name != NO_LABEL)


OUTPUT = SpanOutput
