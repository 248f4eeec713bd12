"""YUV-to-RGB conversions of swscale: processor time of a 720p frame, and largest errors of flat colors.

    python -m benchmarks.colors

Each frame has blocks of 16 x 16 pixels with random codes. The errors, in levels of 255, are relative to the equations
of the matrix in float64, in the middle of the blocks. The conversions run in turn on one thread.
"""

import statistics
import time
from itertools import product
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from tubelet.data.video.image import make_brighter

HEIGHT, WIDTH, BLOCK, ROUNDS = 720, 1280, 16, 25
# FFmpeg's number of each matrix, and its weights of red and blue.
MATRICES = {"BT.601": (5, 0.299, 0.114), "BT.709": (1, 0.2126, 0.0722), "BT.2020": (9, 0.2627, 0.0593)}
SAMPLINGS, RANGES = ("420", "422", "444"), ("limited", "full")
BILINEAR, ROUND, FULL = Interpolation.BILINEAR, Interpolation.ACCURATE_RND, Interpolation.FULL_CHR_H_INT
# Pixel formats that a frame becomes one after the other, each with its flags; the first and the third are in use.
BRIGHTER = "bilinear, limited range one brighter"
CONVERSIONS = {
    BRIGHTER: (("rgb24", BILINEAR),),
    "bilinear": (("rgb24", BILINEAR),),
    "planar RGB with accurate_rnd, then interleaved": (("gbrp", BILINEAR | ROUND), ("rgb24", BILINEAR)),
    "planar RGB with accurate_rnd": (("gbrp", BILINEAR | ROUND),),
    "planar RGB": (("gbrp", BILINEAR),),
    "with full_chroma_int": (("rgb24", BILINEAR | FULL),),
    "with accurate_rnd": (("rgb24", BILINEAR | ROUND),),
    "with both": (("rgb24", BILINEAR | ROUND | FULL),),
    "4:4:4 first": (("yuv444p", BILINEAR), ("rgb24", BILINEAR)),
}


def make_frame(rng: np.random.Generator, sampling: str, matrix: str, color_range: str) -> tuple[Any, np.ndarray]:
    """A frame of random codes, and the (rows, columns, 3) float64 RGB of its blocks."""
    frame = av.VideoFrame(WIDTH, HEIGHT, f"yuv{sampling}p")
    number, red, blue = MATRICES[matrix]
    full = color_range == "full"
    frame.colorspace, frame.color_range = number, 2 if full else 1
    shape = (HEIGHT // BLOCK, WIDTH // BLOCK)
    low, high, chroma = (0, 255, 255) if full else (16, 235, 240)
    codes = [rng.integers(low, top + 1, shape) for top in (high, chroma, chroma)]
    for plane, values in zip(frame.planes, codes, strict=True):
        rows = np.repeat(values, BLOCK * plane.height // HEIGHT, 0)
        rows = np.repeat(rows, BLOCK * plane.width // WIDTH, 1)
        np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] = rows
    luma = (codes[0] - low) * 255 / (high - low)
    cb, cr = ((each - 128) * 255 / (chroma - low) for each in codes[1:])
    r, b = luma + (2 - 2 * red) * cr, luma + (2 - 2 * blue) * cb
    g = (luma - red * r - blue * b) / (1 - red - blue)
    return frame, np.stack([r, g, b], axis=-1).clip(0, 255)


def convert(frame: Any, name: str, reformatters: list[VideoReformatter]) -> list[np.ndarray]:
    """The planes of a frame in the last format of a name: three of (H, W), or one of (H, W, 3), uint8."""
    brighter = name == BRIGHTER and frame.color_range == 1
    for (kind, flags), reformatter in zip(CONVERSIONS[name], reformatters, strict=True):
        frame = reformatter.reformat(frame, WIDTH, HEIGHT, format=kind, interpolation=flags, threads=1)
    planes = [np.frombuffer(plane, np.uint8).reshape(HEIGHT, -1) for plane in frame.planes]
    if brighter:
        make_brighter(planes[0])
    return planes


def error(planes: list[np.ndarray], colors: np.ndarray) -> float:
    """The largest error of a converted frame."""
    if len(planes) == 3:
        pixels = np.stack([planes[i][:, :WIDTH] for i in (2, 0, 1)], axis=-1)
    else:
        pixels = planes[0][:, : 3 * WIDTH].reshape(HEIGHT, WIDTH, 3)
    middle = slice(BLOCK // 2, None, BLOCK)
    return float(np.abs(pixels[middle, middle] - colors).max())


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    reformatters = {name: [VideoReformatter() for _ in formats] for name, formats in CONVERSIONS.items()}
    errors: dict[str, dict[tuple[str, str], float]] = {name: {} for name in CONVERSIONS}
    for sampling, matrix, color_range in product(SAMPLINGS, MATRICES, RANGES):
        frame, colors = make_frame(rng, sampling, matrix, color_range)
        for name, formats in CONVERSIONS.items():
            # The exact default of 4:4:4 is not made brighter.
            used = "bilinear" if name == BRIGHTER and sampling == "444" else name
            found = error(convert(frame, used, [VideoReformatter() for _ in formats]), colors)
            errors[name][sampling, color_range] = max(found, errors[name].get((sampling, color_range), 0.0))
    seconds: dict[str, list[float]] = {name: [] for name in CONVERSIONS}
    frame, _ = make_frame(rng, "420", "BT.709", "limited")
    for _, name in product(range(ROUNDS), CONVERSIONS):
        start = time.process_time()
        convert(frame, name, reformatters[name])
        seconds[name].append(time.process_time() - start)
    keys = list(product(SAMPLINGS, RANGES))
    names = " | ".join(f"{':'.join(sampling)}, {color_range}" for sampling, color_range in keys)
    print(f"| flags | CPU ms | x | {names} |")
    print("|---" * (3 + len(keys)) + "|")
    base = statistics.median(seconds["bilinear"])
    for name in CONVERSIONS:
        cpu_seconds = statistics.median(seconds[name])
        cells = " | ".join(f"{errors[name][key]:.1f}" for key in keys)
        print(f"| {name} | {1e3 * cpu_seconds:.2f} | {cpu_seconds / base:.1f} | {cells} |")


if __name__ == "__main__":
    main()
