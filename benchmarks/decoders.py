"""Which reader reads which file of the test corpus right, and what the others make of it.

    python -m benchmarks.decoders
    python -m benchmarks.decoders --readers tubelet torchcodec decord opencv pyav player --all

The corpus (`tests/helpers/video_corpus.py`) is made by code, with what is right to read from each file. Every reader
reads each file whole and at random times, in a process of its own, which may crash. Prints Markdown.
"""

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import tyro

from tests.helpers.reader_verdicts import Opened, Reader, Verdict, judge, player_reader, pyav_reader, tubelet_reader
from tests.helpers.video_corpus import CASES

Name = Literal["tubelet", "torchcodec", "decord", "opencv", "pyav", "player"]
_PACKAGES = {"tubelet": "tubelet", "torchcodec": "torchcodec", "decord": "decord", "opencv": "cv2", "pyav": "av"}
_PATIENCE_S = 60.0


@contextmanager
def torchcodec_reader(path: Path) -> Iterator[Opened]:
    """With its default, exact seeking."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
    frames = decoder.get_frames_in_range(0, len(decoder))
    about = decoder.metadata

    def clips(seconds: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]:
        return [decoder.get_frames_played_at(clip.tolist()).data.numpy() for clip in seconds]

    every = (list(frames.data.numpy()), frames.pts_seconds.numpy())
    yield Opened(every, clips, about.duration_seconds, about.average_fps)


@contextmanager
def decord_reader(path: Path) -> Iterator[Opened]:
    """By frame numbers, found by the times that it gives them."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    times = np.array(reader.get_frame_timestamp(range(len(reader))))[:, 0].astype(np.float64)
    pixels = list(reader.get_batch(range(len(reader))).asnumpy())

    def clips(seconds: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]:
        fresh = decord.VideoReader(str(path), num_threads=1)
        return [fresh.get_batch(_places(times, clip)).asnumpy() for clip in seconds]

    yield Opened((pixels, times), clips, fps=reader.get_avg_fps())


@contextmanager
def opencv_reader(path: Path) -> Iterator[Opened]:
    """By frame numbers, found by the times that it gives them."""
    import cv2

    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise ValueError("cannot be opened")
    pixels, times = [], []
    while True:
        grabbed, image = capture.read()
        if not grabbed:
            break
        pixels.append(image[..., ::-1])
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
    if not pixels:
        raise ValueError("no frame can be read")
    starts = np.array(times)

    def frame(number: int) -> Any:
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        grabbed, image = capture.read()
        return image[..., ::-1] if grabbed else np.zeros_like(pixels[0])

    def clips(seconds: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]:
        return [[frame(int(number)) for number in _places(starts, clip)] for clip in seconds]

    yield Opened((pixels, starts), clips, fps=capture.get(cv2.CAP_PROP_FPS))
    capture.release()


def _places(starts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The frames shown at some seconds."""
    return np.maximum(np.searchsorted(starts, seconds + 1e-6, side="right") - 1, 0)


READERS: dict[str, Reader] = {
    "tubelet": tubelet_reader,
    "torchcodec": torchcodec_reader,
    "decord": decord_reader,
    "opencv": opencv_reader,
    "pyav": pyav_reader,
    "player": player_reader,
}


def judge_one(reader: str, number: int, path: str) -> Verdict:
    """A reader's verdict on one file; any exception of a reader that is not this package is a refusal."""
    from tubelet.errors import DecodeError

    own = reader == "tubelet"
    return judge(READERS[reader], Path(path), CASES[number].truth, (DecodeError,) if own else (Exception,), reasons=own)


def judge_all(reader: str, paths: Sequence[Path]) -> list[Verdict]:
    """A reader's verdicts on all files, each within a minute, whatever becomes of the process."""
    context = multiprocessing.get_context("spawn")
    verdicts: list[Verdict] = []
    pool = ProcessPoolExecutor(1, mp_context=context)
    for number, path in enumerate(paths):
        try:
            verdicts.append(pool.submit(judge_one, reader, number, str(path)).result(timeout=_PATIENCE_S))
        except (BrokenProcessPool, TimeoutError) as error:
            gone = isinstance(error, BrokenProcessPool)
            verdicts.append(
                Verdict("wrong", False, "the process crashes" if gone else f"no end after {_PATIENCE_S:g} s")
            )
            for process in list((pool._processes or {}).values()):
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)
            pool = ProcessPoolExecutor(1, mp_context=context)
    pool.shutdown()
    return verdicts


def summary(verdicts: dict[str, list[Verdict]]) -> Iterator[str]:
    """Markdown: how many files of each property each reader reads as it should."""
    groups = list(dict.fromkeys(case.group for case in CASES))
    yield "| property | files | " + " | ".join(verdicts) + " |"
    yield "|---|---" + "|---" * len(verdicts) + "|"
    for group in [*groups, None]:
        chosen = [i for i, case in enumerate(CASES) if group in (None, case.group)]
        counts = [sum(found[i].fits for i in chosen) for found in verdicts.values()]
        yield f"| {group or 'all'} | {len(chosen)} | " + " | ".join(map(str, counts)) + " |"


def details(verdicts: dict[str, list[Verdict]], everything: bool) -> Iterator[str]:
    """Markdown: a row for each file, by default those that some reader does not read as it should."""
    yield "| file | property | " + " | ".join(verdicts) + " |"
    yield "|---|---" + "|---" * len(verdicts) + "|"
    for number, case in enumerate(CASES):
        row = [found[number] for found in verdicts.values()]
        if everything or not all(verdict.fits for verdict in row):
            yield f"| `{case.name}` | {case.group} | " + " | ".join(map(cell, row)) + " |"


def cell(verdict: Verdict) -> str:
    """A verdict in few words."""
    detail = verdict.detail.replace("|", "/").replace("\n", " ")
    detail = detail if len(detail) <= 110 else detail[:107] + "..."
    if verdict.fits:
        return "right" if verdict.kind == "right" else f"right (refused: {detail})"
    return f"{verdict.kind}: {detail}"


def main(
    readers: tuple[Name, ...] = ("tubelet", "torchcodec", "pyav", "player"),
    all: bool = False,
    folder: Path | None = None,
) -> None:
    """Print both tables.

    Args:
        readers: Whom to compare; `pyav` is FFmpeg as it comes, `player` FFmpeg with a player's filters.
        all: A row for every file, not only for those that some reader gets wrong.
        folder: Where to keep the files.
    """
    for reader in readers:
        try:
            __import__(_PACKAGES.get(reader, "av"))
        except (ImportError, OSError, RuntimeError) as error:
            sys.exit(f"{reader} cannot be imported: {str(error).splitlines()[0]}")
    with TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        place.mkdir(parents=True, exist_ok=True)
        paths = [case.make(place) for case in CASES]
        verdicts = {reader: judge_all(reader, paths) for reader in readers}
    print(", ".join(f"{reader} {_version(reader)}".strip() for reader in readers), end="\n\n")
    print(*summary(verdicts), "", *details(verdicts, all), sep="\n")


def _version(reader: str) -> str:
    package = {"opencv": "opencv-python-headless", "player": "av", "pyav": "av"}.get(reader, reader)
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    tyro.cli(main)
