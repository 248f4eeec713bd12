from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.error import FFmpegError

from benchmarks import decoders
from tests.helpers.reader_verdicts import Opened, Verdict, among, judge, player_reader, problems, tubelet_reader
from tests.helpers.video_cards import (
    MATRICES,
    PATCHES,
    card,
    circle_ratio,
    combing,
    interlaced_card,
    read_number,
    read_patches,
    stored,
)
from tests.helpers.video_corpus import CASES, Case, Truth, steady
from tubelet.errors import DecodeError

# What FFmpeg with a player's filters does not read as the truth says.
FFMPEG_WRONG = {
    # After a join of two edits its times go back by the delay of the B-frames.
    *("edit-two.mp4", "edit-three.mp4", "edit-v1.mp4"),
    # It guesses the times of H.264 in AVI, and believes clocks that go back.
    *("b-frames-h264.avi", "back-500s.ts", "begins-again.ts", "begins-again.mpg", "begins-three-times.ts"),
    # It reads what should be refused.
    *("edit-fast.mp4", "edit-nothing.mp4", "size-changes.ts", "size-changes.mkv", "size-changes.webm", "damaged.mp4"),
    *("cut-off.mp4", "cut-off.mov", "cut-off.mkv", "cut-off.webm"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.slow
def test_every_file_is_read_as_its_ground_truth_and_frame_by_frame_as_by_ffmpeg(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    verdict = judge(tubelet_reader, path, case.truth, (DecodeError,), reasons=True)
    assert verdict.fits, f"{verdict.kind}: {verdict.detail}"
    if case.group == "HDR":
        return  # FFmpeg's conversion takes seconds, and makes diffuse white a gray
    ffmpeg = judge(player_reader, path, case.truth, (FFmpegError,), reasons=False)
    assert ffmpeg.fits == (case.name not in FFMPEG_WRONG), ffmpeg.detail
    if verdict.kind == "right" and ffmpeg.kind == "right":
        # Square pixels are interpolated in other ways.
        assert _difference(verdict.frames, ffmpeg.frames, case.truth) < (2.5 if case.group == "pixel aspect" else 1.5)


def _reading(frames: list[np.ndarray], **rest: object) -> Opened:
    times = np.arange(len(frames)) / 12
    return Opened((frames, times), among(frames, times), **rest)


def test_the_judge_finds_nothing_in_a_right_reading_and_names_what_is_wrong_in_others() -> None:
    truth = steady(range(12))
    cards = [card(i) for i in range(12)]
    times = np.arange(12) / 12
    assert problems(_reading(cards, duration_s=1.0, fps=12.0, start_s=0.0, size=(64, 64)), truth) == []
    wrong = {
        "are missing": _reading(cards[:-1]),
        "not shown": _reading([card(99), *cards]),
        "some twice": _reading([cards[0], *cards]),
        "out of order": _reading([*cards[1::-1], *cards[2:]]),
        "do not ascend": Opened((cards, times[::-1]), among(cards, times)),
        "times off": Opened((cards, 1.1 * times), among(cards, 1.1 * times)),
        "random access": Opened((cards, times), among(cards[1:] + cards[:1], times)),
        "starts at": Opened((cards, times + 0.1), among(cards, times + 0.1), start_s=0.0),
        "duration 2.00": _reading(cards, duration_s=2.0),
        "24.00 frames": _reading(cards, fps=24.0),
        "size 128x64": _reading([card(i, 128) for i in range(12)]),
        "reports 64x32": _reading(cards, size=(64, 32)),
        "circle 2": _reading([np.repeat(card(i), 2, 1) for i in range(12)]),
        "color": _reading([card(i) // 2 + 60 for i in range(12)]),
    }
    for words, reading in wrong.items():
        assert any(words in found for found in problems(reading, truth)), words
    fields = steady(range(12), interlaced=True)
    woven = _reading([interlaced_card(i, True) for i in range(12)])
    assert any("combed" in found for found in problems(woven, fields))
    doubled = _reading([np.repeat(interlaced_card(i, True)[::2], 2, 0) for i in range(12)])
    assert problems(doubled, fields) == []


def test_cards_can_be_measured_at_any_size() -> None:
    for width, height in ((64, 64), (96, 64), (65, 49), (320, 240)):
        for number in (0, 37, 255):
            assert read_number(card(number, width, height)) == number
        assert circle_ratio(card(1, width, height)) == pytest.approx(1, abs=0.1)
        assert np.array_equal(read_patches(card(1, width, height)), PATCHES)
    assert combing(card(3)) == 0 and combing(interlaced_card(3, True)) > 0.5


def test_matrices_are_those_of_the_standard() -> None:
    """(x', y') = (ax + cy, bx + dy): what lies at the right, (1, 0), is shown at (a, b)."""
    marked = np.zeros((32, 32, 1), dtype=np.uint8)
    for name, (a, b, _, _) in MATRICES.items():
        shown = marked.copy()
        shown[16 + 15 * b - (b > 0), 16 + 15 * a - (a > 0)] = 1
        y, x, _ = np.argwhere(stored(shown, MATRICES[name]))[0]
        assert x == 30 and y in (15, 16), name


def _difference(ours: Sequence[Any], theirs: Sequence[Any], truth: Truth) -> float:
    """Mean over frames and pixels, in levels of 255."""
    sides = [
        [np.asarray(p, dtype=np.float64) for p in frames if read_number(p) not in truth.optional]
        for frames in (ours, theirs)
    ]
    return float(np.mean([_apart(a, b) for a, b in zip(*sides, strict=True)]))


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:  # both have square pixels, but one kept the lines and the other the columns
        return float(np.abs(read_patches(a) - read_patches(b)).mean())
    return float(np.abs(a - b).mean())


def test_the_table_of_decoders_counts_what_fits_and_names_what_does_not(tmp_path: Path) -> None:
    mirrored = next(i for i, case in enumerate(CASES) if case.name == "matrix-mirrored-left-right.mp4")
    damaged = next(i for i, case in enumerate(CASES) if case.name == "damaged.mp4")
    verdicts = {"one": [Verdict("right", True)] * len(CASES), "other": [Verdict("right", True)] * len(CASES)}
    for number in (mirrored, damaged):
        path = CASES[number].make(tmp_path)
        verdicts["other"][number] = decoders.judge_one("pyav", number, str(path))
        verdicts["one"][number] = decoders.judge_one("tubelet", number, str(path))
    counts = list(decoders.summary(verdicts))
    assert (
        "| display matrix | 10 | 10 | 9 |" in counts
        and counts[-1] == f"| all | {len(CASES)} | {len(CASES)} | {len(CASES) - 1} |"
    )
    (row,) = list(decoders.details(verdicts, everything=False))[2:]
    assert row.startswith("| `matrix-mirrored-left-right.mp4` | display matrix | right | wrong: ")
    (row,) = [row for row in decoders.details(verdicts, everything=True) if "`damaged.mp4`" in row]
    assert row.count("right (refused: ") == 2
