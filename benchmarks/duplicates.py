"""Near-duplicates among the clips of the sample set: precision and recall, compared with a perceptual hash.

    python -m benchmarks.duplicates SET --model MODEL

For each kind of modification, copies of `--copies` videos are added to the videos of the set. Each method is measured
at its best threshold (of F1), and the features also at the default of `tubelet map`. The hash is dHash (64 signs of
horizontal differences of a frame at 9 x 8 pixels) of one frame per clip, with the same alignment.
"""

import tempfile
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import tubelet
from benchmarks.measure import sample_set_parser
from tubelet.config import EmbedConfig
from tubelet.config.embed import DUPLICATE_MARGIN
from tubelet.data.decode import read_frames
from tubelet.embed.clip_vectors import ClipVectors, read_clip_vectors
from tubelet.embed.collection import embed_collection
from tubelet.embed.duplicates import DuplicatePair, find_duplicates
from tubelet.prediction.video_writer import write_frames
from tubelet.pretrained.load import random_init_like
from tubelet.sample_data.truth import read_index

Frames = NDArray[np.uint8]
SPEED, TRIM = 1.5, 0.35


def scale(frames: Frames, height: int, width: int) -> Frames:
    return np.stack([np.asarray(Image.fromarray(frame).resize((width, height))) for frame in frames])


def crop(frames: Frames) -> Frames:
    height, width = frames.shape[1:3]
    y, x = height // 8, width // 16
    return scale(frames[:, y : y + height * 3 // 4, x : x + width * 3 // 4], height, width)


def brighten(frames: Frames) -> Frames:
    """Brighter, with a logo in a corner."""
    changed = np.clip(frames.astype(np.float32) * 1.2 + 20, 0, 255).astype(np.uint8)
    side = frames.shape[1] // 6
    changed[:, 4 : 4 + side, 4 : 4 + side] = (230, 40, 40)
    return changed


def unchanged(frames: Frames) -> Frames:
    return frames


def trim(frames: Frames) -> Frames:
    return frames[round(TRIM * len(frames)) :]


# Name -> change of the frames, constant rate factor, speed.
DAMAGES: dict[str, tuple[Callable[[Frames], Frames], int, float]] = {
    "re-encoded": (unchanged, 38, 1.0),
    "cropped": (crop, 23, 1.0),
    "scaled": (lambda frames: scale(frames, frames.shape[1] // 2, frames.shape[2] // 2), 23, 1.0),
    "faster": (unchanged, 23, SPEED),
    "trimmed": (trim, 23, 1.0),
    "brighter, logo": (brighten, 23, 1.0),
}


def write_copy(source: Path, out: Path, damage: str) -> None:
    change, crf, speed = DAMAGES[damage]
    found = read_frames(source)
    frames, fps = change(found.pixels.numpy()), 7.0 * speed

    def timed() -> Iterator[tuple[Frames, float]]:
        for i, frame in enumerate(frames):
            yield frame, i / fps

    write_frames(timed(), out, Fraction(1, 1000), len(frames) / fps, crf=crf)


def hash_vectors(clips: ClipVectors) -> ClipVectors:
    """The same clips with the signs of dHash in place of features."""
    hashes = []
    for number, path in enumerate(clips.paths):
        own = clips.file == number
        found = read_frames(path)
        for start, end in zip(clips.start_s[own], clips.end_s[own], strict=True):
            frame = found.pixels[int(np.abs(found.times - (start + end) / 2).argmin())].numpy()
            gray = np.asarray(Image.fromarray(frame).convert("L").resize((9, 8)), np.int32)
            hashes.append(np.where(np.diff(gray, axis=1) > 0, 1, -1).ravel() / 8)
    return ClipVectors(clips.paths, clips.file, clips.start_s, clips.end_s, np.array(hashes, np.float32))


def rate(
    pairs: list[DuplicatePair], truth: dict[tuple[int, int], str], margin: float
) -> tuple[float, float, dict[str, float]]:
    """Precision, recall, and recall of each kind of damage, of pairs from a margin on."""
    found = {pair.files for pair in pairs if pair.margin >= margin}
    right = found & truth.keys()
    each = {kind: np.mean([pair in found for pair, own in truth.items() if own == kind]) for kind in DAMAGES}
    return len(right) / max(1, len(found)), len(right) / len(truth), {kind: float(x) for kind, x in each.items()}


def best_margin(pairs: list[DuplicatePair], truth: dict[tuple[int, int], str]) -> float:
    """The margin of the best F1."""
    right = np.cumsum([pair.files in truth for pair in pairs])  # by descending margin
    f1 = 2 * right / (np.arange(1, len(pairs) + 1) + len(truth))
    return pairs[int(f1.argmax())].margin


def report(name: str, clips: ClipVectors, truth: dict[tuple[int, int], str], margin: float | None = None) -> None:
    pairs = find_duplicates(clips, 0.05 if margin is None else margin)
    margin = best_margin(pairs, truth) if margin is None else margin
    precision, recall, each = rate(pairs, truth, margin)
    kinds = "  ".join(f"{kind} {value:.2f}" for kind, value in each.items())
    print(f"{name:<26} margin {margin:.2f}  precision {precision:.3f}  recall {recall:.3f}  | {kinds}", flush=True)
    errors = [
        abs(pair.spans_s[1][0] - pair.spans_s[0][0] - TRIM * 16 / 7 * sign)
        for pair in pairs
        if truth.get(pair.files) == "trimmed" and pair.margin >= margin
        for sign in [1 if "trimmed" in clips.paths[pair.files[0]] else -1]
        if pair.speed == 1.0
    ]
    if errors:
        print(f"{'':<26} median error of the offset of trimmed copies {np.median(errors):.2f} s")


def main() -> None:
    parser = sample_set_parser(__doc__, max_videos=1000)
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    videos = [entry.media for split in ("train", "val") for entry in read_index(arguments.set, split)]
    videos = videos[: arguments.max_videos]
    chosen = np.random.default_rng(arguments.seed).permutation(len(videos))[: arguments.copies * len(DAMAGES)]
    with tempfile.TemporaryDirectory() as folder:
        copies = {}
        for number, which in enumerate(chosen):
            damage = list(DAMAGES)[number % len(DAMAGES)]
            copy = Path(folder) / f"{damage.split(',')[0]}-{number:03d}.mp4"
            write_copy(videos[which], copy, damage)
            copies[copy] = (videos[which], damage)
        model = tubelet.load(arguments.model)
        size = EmbedConfig(image_size=64, frames=4, fps=7.0, workers=0, batch_size=32)
        sources = [str(file) for file in (*videos, *copies)]
        hashed = False
        for name, encoder in (("trained", model), ("random weights", random_init_like(model, 0))):
            table = Path(folder) / name
            embed_collection(encoder, sources, table, size)
            clips = read_clip_vectors(table)
            number_of = {Path(path).resolve(): number for number, path in enumerate(clips.paths)}
            truth = {}
            for copy, (source, damage) in copies.items():
                low, high = sorted((number_of[copy.resolve()], number_of[source.resolve()]))
                truth[low, high] = damage
            if not hashed:
                report("dHash, best threshold", hash_vectors(clips), truth)
                hashed = True
            report(f"{name}, best threshold", clips, truth)
            report(f"{name}, default", clips, truth, DUPLICATE_MARGIN)


if __name__ == "__main__":
    main()
