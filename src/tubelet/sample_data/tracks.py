"""Point tracks: where points of walls, floors and ceilings are seen through a clip, from geometry."""

import numpy as np
from numpy.typing import NDArray

from tubelet.sample_data import truth
from tubelet.sample_data.level import Level, heading, ray_hits
from tubelet.sample_data.truth import Camera

TRACKS = 64
STATIC = (truth.WALL, truth.FLOOR, truth.CEILING)


def no_tracks(frames: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tracks of no points: (0, T, 2) and (0, T)."""
    return np.zeros((0, frames, 2), np.float32), np.zeros((0, frames), bool)


def track(
    classes: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    steps: NDArray[np.float32],
    pose: NDArray[np.float32],
    level: Level,
    camera: Camera,
    inside: float,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Follow points of walls, floors and ceilings, drawn from one random frame, through all frames.

    The engine's depth is too coarse to follow a point over many frames, so each point is moved along its ray onto the
    level's own wall or height; points for which the level has none within one step of depth are left out.

    Args:
        classes: (T, H, W) of the clip.
        codes: (T, H, W) depth bytes.
        steps: (3, 256) what they mean.
        pose: (T, 5), see `ClipTruth`.
        level: its geometry.
        camera: the pinhole.
        inside: where in a pixel its truth was sampled, 0 to 1.
        rng: chooses the points.

    Returns:
        (P, T, 2) float32 pixels and (P, T) bool visible, P at most `TRACKS`.
    """
    size = classes.shape[1]
    at = int(rng.integers(len(pose)))
    ys, xs = np.nonzero(np.isin(classes[at], STATIC))
    if not len(ys):
        return no_tracks(len(pose))
    chosen = rng.permutation(len(ys))[: 3 * TRACKS]
    ys, xs = ys[chosen], xs[chosen]
    kinds = classes[at, ys, xs]
    coarse = truth.depth_from_codes(codes[at, ys, xs], kinds, steps).astype(np.float64)
    pixels = np.stack([xs + inside, ys + inside], axis=1)
    exact = _exact_depth(pixels, coarse, kinds, pose[at], level, camera)
    good = np.nonzero(np.isfinite(exact))[0][:TRACKS]
    points = truth.unproject(pixels[good], exact[good], pose[at], camera)
    where, depth = truth.project(points, pose, camera)
    column, row = np.floor(where[..., 0]).astype(int), np.floor(where[..., 1]).astype(int)
    inside_frame = (depth > 8) & (column >= 1) & (row >= 1) & (column < size - 1) & (row < size - 1)
    column, row = np.clip(column, 1, size - 2), np.clip(row, 1, size - 2)
    time = np.arange(len(pose))[None]
    near = np.full(depth.shape, np.inf)
    far = np.full(depth.shape, -np.inf)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            around = truth.depth_from_codes(
                codes[time, row + dy, column + dx], classes[time, row + dy, column + dx], steps
            )
            near, far = np.fmin(near, around), np.fmax(far, around)
    agrees = (depth > near - truth.WALL_STEP) & (depth < far + truth.WALL_STEP)
    same_kind = classes[time, row, column] == kinds[good][:, None]
    visible = inside_frame & agrees & same_kind
    return where.astype(np.float32), visible


def _exact_depth(
    pixels: NDArray[np.float64],
    coarse: NDArray[np.float64],
    kinds: NDArray[np.uint8],
    pose: NDArray[np.float32],
    level: Level,
    camera: Camera,
) -> NDArray[np.float64]:
    """(P,) depth of the level's surface nearest to the coarse (P,) depth on each pixel's ray, NaN if none is near."""
    ahead, right = heading(float(pose[3]))
    directions = ahead + ((pixels[:, 0] - camera.cx) / camera.fx)[:, None] * right
    # Walls count if they are within a step of a known depth: none is looked for beyond the largest.
    reach = float(np.nanmax(coarse, initial=0)) + truth.WALL_STEP
    walls, _ = ray_hits(level, pose[:2].astype(np.float64), directions, reach)
    walls = walls if walls.shape[1] else np.full((len(pixels), 1), np.inf)
    below = camera.cy - pixels[:, 1]
    slope = np.where(np.abs(below) < 0.5, np.nan, below) / camera.fy
    floors = (np.unique(level.floors)[None] - pose[2]) / slope[:, None]
    ceilings = (np.unique(level.ceilings)[None] - pose[2]) / slope[:, None]
    exact = np.full(len(pixels), np.nan)
    for kind, candidates in ((truth.WALL, walls), (truth.FLOOR, floors), (truth.CEILING, ceilings)):
        rows = np.nonzero((kinds == kind) & np.isfinite(coarse))[0]
        away = np.abs(candidates[rows] - coarse[rows, None])
        away = np.where(np.isfinite(away), away, np.inf)
        best = away.argmin(axis=1)
        close = away[np.arange(len(rows)), best] <= truth.WALL_STEP * 0.75
        exact[rows[close]] = candidates[rows[close], best[close]]
    return exact
