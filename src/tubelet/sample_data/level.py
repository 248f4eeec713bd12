"""The geometry of a level, read from its file: where one can stand, and what lies on a ray.

The engine's depth is coarse (7 units a step) and short of range; the level file has exact walls and heights. They serve
to choose viewpoints without rendering, to tell sky from far walls and to place tracked points exactly.
"""

import struct
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import MissingPackageError

PLAYER_RADIUS = 16.0
PLAYER_HEIGHT = 56.0
PLAYER_STEP = 24.0  # the highest step that the player climbs
SKY_FLAT = b"F_SKY1"
MULTIPLAYER_THING = 16
START_THINGS = (1, 2, 3, 4, 11, 14)  # player starts and teleport destinations: places, not objects


@dataclass(frozen=True)
class Level:
    """A level's lines, sectors and things. N lines, M things; lengths in map units.

    Attributes:
        name: e.g. MAP07.
        lines: (N, 4) float64 x1, y1, x2, y2.
        front, back: (N,) int64 sectors on the right and on the left of a line, -1 for none (a solid wall).
        floors, ceilings: (S,) float64 heights of the sectors as the level starts.
        sky: (S,) bool, the sector has sky for a ceiling.
        solid: (N,) bool, a line that stops a player who walks on its lower side.
        things: (M, 2) float64 where objects stand.
        is_object: (M,) bool, something that can be seen stands there.
    """

    name: str
    lines: NDArray[np.float64]
    front: NDArray[np.int64]
    back: NDArray[np.int64]
    floors: NDArray[np.float64]
    ceilings: NDArray[np.float64]
    sky: NDArray[np.bool_]
    solid: NDArray[np.bool_]
    things: NDArray[np.float64]
    is_object: NDArray[np.bool_]

    @cached_property
    def barriers(self) -> tuple[NDArray[np.float64], ...]:
        """Start, end, lower and upper corner of the solid lines, (K, 2) each."""
        a, b = self.lines[self.solid, :2], self.lines[self.solid, 2:]
        return a, b, np.minimum(a, b), np.maximum(a, b)


def wad_root() -> Path:
    """Where the level files are, found without starting the engine.

    Raises:
        MissingPackageError: ViZDoom, which carries them, is not installed.
    """
    spec = find_spec("vizdoom")
    if spec is None or spec.origin is None:
        raise MissingPackageError("the sample data set is rendered by ViZDoom: pip install vizdoom")
    return Path(spec.origin).parent


class _Wad(NamedTuple):
    """A file of levels as it is now: another version of it is another key of a cache."""

    path: Path
    size: int
    mtime_ns: int
    inode: int


def _wad(name: str) -> _Wad:
    path = wad_root() / name
    if not path.is_file():
        raise MissingPackageError(f"{path}: the levels that ViZDoom carries are missing; reinstall vizdoom")
    status = path.stat()
    return _Wad(path.resolve(), status.st_size, status.st_mtime_ns, status.st_ino)


def wad_directory(wad: str) -> dict[str, dict[str, tuple[int, int]]]:
    """The levels of freedoom1.wad or freedoom2.wad: name -> {part: (offset, bytes)}."""
    return _directory(_wad(wad))


@cache
def _directory(wad: _Wad) -> dict[str, dict[str, tuple[int, int]]]:
    with wad.path.open("rb") as file:
        count, offset = struct.unpack("<4xii", file.read(12))
        file.seek(offset)
        table = file.read(16 * count)
    entries = [
        (name.rstrip(b"\0").decode("latin-1"), at, size) for at, size, name in struct.iter_unpack("<ii8s", table)
    ]
    levels: dict[str, dict[str, tuple[int, int]]] = {}
    for i, (name, _, _) in enumerate(entries[:-1]):
        if entries[i + 1][0] == "THINGS":
            levels[name] = {part: (at, size) for part, at, size in entries[i + 1 : i + 11]}
    return levels


def all_levels() -> list[tuple[str, str]]:
    """(file, level) of all levels, in the files' order."""
    return [(wad, name) for wad in ("freedoom1.wad", "freedoom2.wad") for name in wad_directory(wad)]


def load_level(wad: str, name: str) -> Level:
    """Read one level's geometry."""
    return _load(_wad(wad), name)


@cache
def _load(wad: _Wad, name: str) -> Level:
    parts = _directory(wad)[name]

    def part(which: str, fields: list[tuple[str, str]]) -> NDArray:
        at, size = parts[which]
        with wad.path.open("rb") as file:
            file.seek(at)
            return np.frombuffer(file.read(size), dtype=np.dtype(fields))

    vertexes = part("VERTEXES", [("x", "<i2"), ("y", "<i2")])
    lines = part("LINEDEFS", [(k, "<u2") for k in ("start", "end", "flags", "special", "tag", "right", "left")])
    sidedefs = part("SIDEDEFS", [("x", "<i2"), ("y", "<i2"), ("textures", "S24"), ("sector", "<u2")])
    sectors = part(
        "SECTORS",
        [("floor", "<i2"), ("ceiling", "<i2"), ("floor_flat", "S8"), ("ceiling_flat", "S8"), ("rest", "S6")],
    )
    things = part("THINGS", [("x", "<i2"), ("y", "<i2"), ("angle", "<i2"), ("type", "<i2"), ("flags", "<i2")])
    things = things[(things["flags"] & MULTIPLAYER_THING) == 0]

    # The number 65535 says "none": no side at all, or a side that belongs to no sector.
    sector_of_side = np.append(sidedefs["sector"].astype(np.int64), -1)
    sector_of_side[sector_of_side >= len(sectors)] = -1
    front = sector_of_side[np.minimum(lines["right"], len(sidedefs))]
    back = sector_of_side[np.minimum(lines["left"], len(sidedefs))]
    lines, front, back = lines[front >= 0], front[front >= 0], back[front >= 0]  # the others are an editor's leftovers
    floors, ceilings = sectors["floor"].astype(np.float64), sectors["ceiling"].astype(np.float64)
    other = np.where(back >= 0, back, front)
    opening = np.minimum(ceilings[front], ceilings[other]) - np.maximum(floors[front], floors[other])
    step = np.abs(floors[front] - floors[other])
    blocking = (lines["flags"] & 1) != 0
    xy = np.stack([vertexes["x"], vertexes["y"]], axis=1).astype(np.float64)
    return Level(
        name=name,
        lines=np.concatenate([xy[lines["start"]], xy[lines["end"]]], axis=1),
        front=front,
        back=back,
        floors=floors,
        ceilings=ceilings,
        sky=np.char.rstrip(sectors["ceiling_flat"], b"\0") == SKY_FLAT,
        solid=(back < 0) | blocking | (opening < PLAYER_HEIGHT) | (step > PLAYER_STEP),
        things=np.stack([things["x"], things["y"]], axis=1).astype(np.float64),
        is_object=~np.isin(things["type"], START_THINGS),
    )


def heading(yaw: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors ahead and to the right of a yaw in degrees."""
    ahead = np.array([np.cos(np.radians(yaw)), np.sin(np.radians(yaw))])
    return ahead, np.array([ahead[1], -ahead[0]])


def distance_to_segment(
    points: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distance of points (..., 2) to segments start (..., 2) - end (..., 2), broadcast."""
    along = end - start
    length = np.maximum((along**2).sum(-1), 1e-9)
    where = np.clip(((points - start) * along).sum(-1) / length, 0, 1)
    return np.hypot(*np.moveaxis(points - start - where[..., None] * along, -1, 0))


def _side(at: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positive where `at` lies left of the line start -> end; all (..., 2), broadcast."""
    return (end[..., 0] - start[..., 0]) * (at[..., 1] - start[..., 1]) - (end[..., 1] - start[..., 1]) * (
        at[..., 0] - start[..., 0]
    )


def can_walk(level: Level, start: NDArray[np.float64], end: NDArray[np.float64], margin: float) -> bool:
    """Whether no solid line comes nearer than `margin` to the straight way from start (2,) to end (2,)."""
    a, b, lower, upper = level.barriers
    # Only lines whose box meets that of the way can come near.
    low, high = np.minimum(start, end) - margin, np.maximum(start, end) + margin
    close = (lower[:, 0] <= high[0]) & (upper[:, 0] >= low[0]) & (lower[:, 1] <= high[1]) & (upper[:, 1] >= low[1])
    a, b = a[close], b[close]
    if not len(a):
        return True
    crossing = (_side(start, a, b) * _side(end, a, b) < 0) & (_side(a, start, end) * _side(b, start, end) < 0)
    if crossing.any():
        return False
    near = np.minimum.reduce(
        [
            distance_to_segment(start, a, b),
            distance_to_segment(end, a, b),
            distance_to_segment(a, start, end),
            distance_to_segment(b, start, end),
        ]
    )
    return bool(near.min() >= margin)


def ray_hits(
    level: Level, origin: NDArray[np.float64], directions: NDArray[np.float64], reach: float = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Where rays meet the lines of the level, seen from above.

    Args:
        level: its geometry.
        origin: (2,) map units.
        directions: (R, 2), one unit of depth each, so that the answer is in depth; less than 180 degrees apart.
        reach: depth from which on nobody asks; crossings beyond it may be left out.

    Returns:
        (R, K) depth of the crossing of each ray with each of K lines, +inf for none, and (K,) which lines these are.
    """
    a, b = level.lines[:, :2] - origin, level.lines[:, 2:] - origin
    # Lines outside the wedge of the rays are most of them; a line is outside if both ends are, on the same side.
    middle = directions.mean(axis=0)
    turn = (middle[0] * directions[:, 1] - middle[1] * directions[:, 0]) / (directions @ middle)
    left, right = directions[turn.argmax()], directions[turn.argmin()]
    beyond_left = np.minimum(left[0] * a[:, 1] - left[1] * a[:, 0], left[0] * b[:, 1] - left[1] * b[:, 0]) > 1
    beyond_right = np.maximum(right[0] * a[:, 1] - right[1] * a[:, 0], right[0] * b[:, 1] - right[1] * b[:, 0]) < -1
    a_ahead, b_ahead = a @ middle, b @ middle
    behind = np.maximum(a_ahead, b_ahead) <= 0
    too_far = np.minimum(a_ahead, b_ahead) > reach * (directions @ middle).max()
    hit = np.nonzero(~(beyond_left | beyond_right | behind | too_far))[0]
    a, along = a[hit], (b - a)[hit]
    across = directions[:, :1] * along[:, 1] - directions[:, 1:] * along[:, 0]
    across = np.where(np.abs(across) < 1e-9, 1e-9, across)
    depth = (a[:, 0] * along[:, 1] - a[:, 1] * along[:, 0]) / across
    where = (a[:, 0] * directions[:, 1:] - a[:, 1] * directions[:, :1]) / across
    return np.where((depth > 0) & (where >= 0) & (where <= 1), depth, np.inf), hit


def is_sky(
    level: Level,
    origin: NDArray[np.float64],
    directions: NDArray[np.float64],
    ray: NDArray[np.int64],
    slopes: NDArray[np.float64],
    beyond: float,
) -> NDArray[np.bool_]:
    """Whether pixels that show neither a ceiling nor anything up to `beyond` show the sky rather than a far wall.

    Args:
        level: its geometry, heights as the level starts.
        origin: (3,) the camera.
        directions: (R, 2) of the rays seen from above, one unit of depth each.
        ray: (Q,) which ray each pixel lies on.
        slopes: (Q,) rise per unit of depth of each pixel.
        beyond: depth in map units up to which the pixels show no wall.
    """
    depth, hit = ray_hits(level, origin[:2], directions)
    on_front = _side(origin[:2], level.lines[hit, :2], level.lines[hit, 2:]) <= 0
    near = np.where(on_front, level.front[hit], level.back[hit])
    far = np.where(on_front, level.back[hit], level.front[hit])
    # Nothing goes on behind the first solid wall beyond the range: only crossings up to there are put in order.
    last = np.where((far < 0) & (depth > beyond), depth, np.inf).min(axis=1, initial=np.inf)
    rays, lines = np.nonzero((depth <= last[:, None]) & np.isfinite(depth))
    order = np.lexsort((depth[rays, lines], rays))
    lines = lines[order]
    counts = np.bincount(rays, minlength=len(directions))
    starts = np.cumsum(counts) - counts
    # What a crossing means for a pixel depends on its height there: above `open_above` it is out under the sky, else
    # below `wall_below` or above `wall_above` it shows a wall.
    at = depth[rays[order], lines]
    near, far = near[lines], far[lines]
    near_sky, far_sky = (near >= 0) & level.sky[near], level.sky[far]
    open_above = np.where(near_sky, level.ceilings[near], np.inf)
    wall_below = np.where(at > beyond, np.where(far < 0, np.inf, level.floors[far]), -np.inf)
    wall_above = np.where((at > beyond) & ~(level.sky[near] & far_sky), level.ceilings[far], np.inf)
    sky = np.ones(len(ray), dtype=bool)  # until a wall is met; so is a ray that leaves the level
    left = np.arange(len(ray))
    for k in range(int(counts.max(initial=0))):
        left = left[counts[ray[left]] > k]
        crossing = starts[ray[left]] + k
        height = origin[2] + slopes[left] * at[crossing]
        out = height > open_above[crossing]
        wall = ~out & ((height < wall_below[crossing]) | (height > wall_above[crossing]))
        sky[left[wall]] = False
        left = left[~out & ~wall]
        if not len(left):
            break
    return sky
