"""The ground truth of a clip: its classes, its geometry, its form on disk and its reader.

Units and axes. Lengths are map units of the game; `UNITS_PER_METER` are about a meter. World axes are x east, y north,
z up. Yaw is in degrees, counter-clockwise, 0 along x. The camera is a pinhole that never tilts: a point `z` in front of
it (along its axis, not along the ray), `right` to its right and `up` above it is seen at

    x = cx + fx · right / z        y = cy − fy · up / z        (pixels; the first pixel's center is at 0.5)

The game's pixels are not square: fy = 1.2 fx.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from tubelet.data.size_limits import ARRAY_BYTES
from tubelet.errors import DataError, MissingFileError
from tubelet.io.arrays import ArraySpec, read_npz
from tubelet.io.text import file_error, read_json, validate_content
from tubelet.value_checks import Bounds

NAME = "tubelet-sample"
FORMAT = 1
UNITS_PER_METER = 32  # about

CLASSES = (
    "void",  # nothing known: the engine drew neither a surface nor an object that it labels
    "wall",
    "floor",
    "ceiling",
    "sky",
    "monster",
    "item",  # health, armor, ammunition, keys, power-ups
    "weapon",  # lying on the floor; the player's own is not drawn
    "decoration",  # pillars, stalagmites, statues
    "plant",
    "light",  # lamps, torches, candles
    "barrel",
    "remains",  # corpses and gore
    "effect",  # projectiles, puffs, blood, teleport fog
)
VOID, WALL, FLOOR, CEILING, SKY = range(5)
FIRST_OBJECT = 5

# What the engine calls the kinds of its objects -> class id.
OBJECT_CLASSES = {
    "Monster": CLASSES.index("monster"),
    "Health": CLASSES.index("item"),
    "Armor": CLASSES.index("item"),
    "Ammo": CLASSES.index("item"),
    "Key": CLASSES.index("item"),
    "Powerup": CLASSES.index("item"),
    "Weapon": CLASSES.index("weapon"),
    "Decoration": CLASSES.index("decoration"),
    "Vegetation": CLASSES.index("plant"),
    "LightSource": CLASSES.index("light"),
    "Hazard": CLASSES.index("barrel"),
    "Gore": CLASSES.index("remains"),
    "Gibs": CLASSES.index("remains"),
}
OTHER_OBJECT = CLASSES.index("effect")

MOTIONS = ("still", "forward", "backward", "strafe_left", "strafe_right", "turn_left", "turn_right")
NO_MOTION = -1  # of a single frame

_REMEDY = "generate the sample set again with `tubelet sample-data`"
# What the arrays of a truth are: T frames of H x W pixels, P points.
_ARRAYS = {
    "classes": ArraySpec("u", ("T", "H", "W")),
    "depth_steps": ArraySpec("f", (3, 256)),
    "depth_codes": ArraySpec("u", ("T", "H", "W")),
    "instances": ArraySpec("u", ("T", "H", "W")),
    "pose": ArraySpec("f", ("T", 5)),
    "motion": ArraySpec("iu", ()),
    "tracks": ArraySpec("f", ("P", "T", 2)),
    "visible": ArraySpec("b", ("P", "T")),
    "camera": ArraySpec("f", (4,)),
    "level": ArraySpec("U", ()),
}

# The engine writes depth in one byte, in three ways; (step, start) in map units. Measured: objects against positions
# that the game reports, the rest against the lines and sectors of the level files; what is left is rounding (standard
# deviation 2 to 2.8 units).
PLANE_STEP, PLANE_START, PLANE_LAST = 7.1592, 10.925, 254  # floors and ceilings, whatever the resolution
# The bytes of walls and objects stop at a value that grows with the resolution; the sky is drawn with that value too.
WALL_STEP, WALL_START = 7.145, 8.5
OBJECT_STEP, OBJECT_START = 7.342, 3.6


class Parameters(TypedDict):
    """What a sample set was made with."""

    clips: Annotated[int, Bounds(0, 10**9)]
    images: Annotated[int, Bounds(0, 10**9)]
    seed: int
    size: Annotated[int, Bounds(1, 2**14)]
    frames: Annotated[int, Bounds(1, 2**16)]
    fps: Annotated[int, Bounds(1, 1000)]
    validation_share: float


class FileEntry(TypedDict):
    """A file of a sample set; an image has no motion."""

    file: str
    level: str
    motion: NotRequired[str]


class Description(TypedDict):
    """The content of dataset.json."""

    parameters: Parameters
    classes: list[str]
    motions: list[str]
    counts: dict[str, dict[str, int]]
    dropped: dict[str, int]
    files: dict[str, dict[str, list[FileEntry]]]


class Camera(NamedTuple):
    """A pinhole: focal lengths and center in pixels of the written frame."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclass(frozen=True)
class ClipTruth:
    """What is known of each pixel of a clip, and of its camera. T frames of H x W pixels, P tracked points.

    Attributes:
        depth: (T, H, W) float32 map units along the camera's axis (not along the ray), right to about 4 units; +inf in
            the sky; NaN where the engine does not know: walls and objects beyond its range, floors and ceilings
            beyond 1,830 units or nearer than 11, void.
        classes: (T, H, W) uint8 indices of `CLASSES`.
        instances: (T, H, W) uint16, the same number for the same object in all frames of the clip, 0 for no object.
        pose: (T, 5) float32 x, y, z of the camera in map units, yaw, pitch in degrees (pitch is always 0).
        motion: index of `MOTIONS`, -1 for a single frame.
        tracks: (P, T, 2) float32 x, y in pixels of points of walls, floors and ceilings; P = 0 for a single frame.
        visible: (P, T) bool: inside the frame and not hidden.
        camera: the pinhole.
        level: name of the level.
    """

    depth: NDArray[np.float32]
    classes: NDArray[np.uint8]
    instances: NDArray[np.uint16]
    pose: NDArray[np.float32]
    motion: int
    tracks: NDArray[np.float32]
    visible: NDArray[np.bool_]
    camera: Camera
    level: str


@dataclass(frozen=True)
class SampleEntry:
    """One file of a sample set.

    Attributes:
        media: the video or the image.
        truth: its ground truth, for `read_truth`.
        level: name of the level that it was recorded in.
        motion: name of the camera's motion, empty for an image.
    """

    media: Path
    truth: Path
    level: str
    motion: str


def depth_steps(last_wall_code: int) -> NDArray[np.float32]:
    """(3, 256) float32 map units of the engine's depth bytes: row 0 of walls, 1 of floors and ceilings, 2 of objects.

    Args:
        last_wall_code: the byte at which walls and objects saturate; it and those above it mean "unknown", NaN.
    """
    code = np.arange(256)
    wall = np.where(code < last_wall_code, WALL_START + WALL_STEP * (code + 0.5), np.nan)
    plane = np.where(code <= PLANE_LAST, PLANE_START + PLANE_STEP * (code + 0.5), np.nan)
    thing = np.where(code < last_wall_code, OBJECT_START + OBJECT_STEP * (code + 0.5), np.nan)
    return np.stack([wall, plane, thing]).astype(np.float32)


def depth_from_codes(
    codes: NDArray[np.uint8], classes: NDArray[np.uint8], steps: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Depth in map units, of any shape, from the engine's bytes, the classes of the same pixels and `depth_steps`."""
    row_of_class = np.full(len(CLASSES), 2)
    row_of_class[[VOID, WALL, SKY]] = 0
    row_of_class[[FLOOR, CEILING]] = 1
    depth = steps[row_of_class[classes], codes]
    depth[classes == SKY] = np.inf
    depth[classes == VOID] = np.nan
    return depth


def wrapped_planes(codes: NDArray[np.uint8], classes: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Floors and ceilings so near that the engine's byte for them fell below 0, where it goes on from about 194 down.

    It happens at the edge of a frame whose camera is low or high: from the horizon outwards a plane comes nearer, its
    byte reaches 0, and what follows of it is not far away but nearer still. The camera never tilts, so that it is in
    the same row for all of a plane; nothing else of its kind is seen from that row on.

    Args:
        codes: (T, H, W) the engine's bytes.
        classes: (T, H, W) indices of `CLASSES`.

    Returns:
        (T, H, W) bool.
    """
    wrapped = np.zeros(codes.shape, bool)
    for plane, outwards in ((FLOOR, 1), (CEILING, -1)):
        on, code = ((x[:, ::outwards]) for x in (classes == plane, codes))
        high = on & (code > 127)
        begins = (on & (code == 0))[:, :-1] & high[:, 1:]
        beyond = np.logical_or.accumulate(begins.any(axis=2), axis=1)  # (T, H - 1), from the second row on
        wrapped[:, ::outwards][:, 1:] |= high[:, 1:] & beyond[..., None]
    return wrapped


def project(
    points: NDArray[np.float64], pose: NDArray[np.float32], camera: Camera
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where world points are seen.

    Args:
        points: (P, 3) map units.
        pose: (T, 5), see `ClipTruth`.
        camera: the pinhole.

    Returns:
        (P, T, 2) pixels x, y, and (P, T) depth in map units; pixels are meaningless where the depth is not positive.
    """
    moved = points[:, None, :] - pose[None, :, :3].astype(np.float64)
    yaw = np.radians(pose[:, 3].astype(np.float64))
    depth = moved[..., 0] * np.cos(yaw) + moved[..., 1] * np.sin(yaw)
    right = moved[..., 0] * np.sin(yaw) - moved[..., 1] * np.cos(yaw)
    safe = np.where(depth > 1e-3, depth, 1e-3)
    pixels = np.stack([camera.cx + camera.fx * right / safe, camera.cy - camera.fy * moved[..., 2] / safe], axis=-1)
    return pixels, depth


def unproject(
    pixels: NDArray[np.float64], depth: NDArray[np.float64], pose: NDArray[np.float32], camera: Camera
) -> NDArray[np.float64]:
    """(P, 3) world points of (P, 2) pixels x, y of one frame with (P,) depth in map units and its (5,) pose."""
    yaw = np.radians(float(pose[3]))
    right = (pixels[:, 0] - camera.cx) / camera.fx * depth
    up = (camera.cy - pixels[:, 1]) / camera.fy * depth
    return np.stack(
        [
            pose[0] + depth * np.cos(yaw) + right * np.sin(yaw),
            pose[1] + depth * np.sin(yaw) - right * np.cos(yaw),
            pose[2] + up,
        ],
        axis=1,
    )


def motion_of(pose: NDArray[np.float32]) -> int | None:
    """The one motion that the camera makes from the first to the last pose, or None if no single one dominates.

    Per frame step: still is less than 0.3 units and 0.2 degrees; a turn is at least 1 degree with less than 1 unit;
    a translation is at least 2 units with less than 0.3 degrees, within 25 degrees of one of the four directions.

    Args:
        pose: (T, 5), T at least 2.
    """
    steps = len(pose) - 1
    yaw = np.unwrap(np.radians(pose[:, 3].astype(np.float64)))
    turn = float(np.degrees(yaw[-1] - yaw[0])) / steps
    move = (pose[-1, :2] - pose[0, :2]).astype(np.float64) / steps
    ahead = float(move[0] * np.cos(yaw[0]) + move[1] * np.sin(yaw[0]))
    right = float(move[0] * np.sin(yaw[0]) - move[1] * np.cos(yaw[0]))
    speed = float(np.hypot(ahead, right))
    if speed < 0.3 and abs(turn) < 0.2:
        return MOTIONS.index("still")
    if abs(turn) >= 1 and speed < 1:
        return MOTIONS.index("turn_left" if turn > 0 else "turn_right")
    if speed < 2 or abs(turn) >= 0.3:
        return None
    limit = np.cos(np.radians(25)) * speed
    for value, name in ((ahead, "forward"), (-ahead, "backward"), (-right, "strafe_left"), (right, "strafe_right")):
        if value >= limit:
            return MOTIONS.index(name)
    return None


def save_arrays(path: Path, arrays: dict[str, NDArray]) -> None:
    """Write arrays as .npz with light compression and without the time of day, so that equal arrays are equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), allow_pickle=False)


def read_truth(path: str | Path) -> ClipTruth:
    """Read the ground truth of one clip or image.

    Raises:
        TubeletError: the file is missing or is not such a truth.
    """
    path = Path(path)
    arrays = read_npz(path, _ARRAYS, ARRAY_BYTES, _REMEDY)
    classes, codes, motion = arrays["classes"], arrays["depth_codes"], int(arrays["motion"])
    if classes.max(initial=0) >= len(CLASSES) or codes.max(initial=0) > 255:
        raise file_error(path, f"holds a class above {len(CLASSES) - 1} or a depth code above 255", _REMEDY)
    if not NO_MOTION <= motion < len(MOTIONS):
        raise file_error(path, f"motion is {motion}, expected {NO_MOTION} to {len(MOTIONS) - 1}", _REMEDY)
    for name in ("pose", "camera"):
        if not np.isfinite(arrays[name]).all():
            raise file_error(path, f"{name} is not finite", _REMEDY)
    depth = depth_from_codes(codes, classes, arrays["depth_steps"].astype(np.float32))
    depth[wrapped_planes(codes, classes)] = np.nan
    return ClipTruth(
        depth=depth,
        classes=classes,
        instances=arrays["instances"].astype(np.uint16),
        pose=arrays["pose"],
        motion=motion,
        tracks=arrays["tracks"],
        visible=arrays["visible"],
        camera=Camera(*(float(v) for v in arrays["camera"])),
        level=str(arrays["level"]),
    )


def read_description(root: str | Path) -> dict[str, Any]:
    """The content of dataset.json of a sample set.

    Raises:
        TubeletError: the directory holds no sample set of this format.
    """
    path = Path(root) / "dataset.json"
    if not path.is_file():
        raise MissingFileError(
            f"{root}: no sample set here (no dataset.json); `tubelet sample-data FOLDER` makes one in a new folder"
        )
    description: dict[str, Any] = read_json(path, dict[str, Any], _REMEDY)
    if description.get("name") != NAME:
        raise file_error(path, f"its name is {description.get('name')!r:.100}, expected {NAME!r}", _REMEDY)
    if description.get("format") != FORMAT:
        version = description.get("format")
        raise file_error(path, f"its format is {version!r:.100}, this version reads {FORMAT}", _REMEDY)
    validate_content(Description, description, path, _REMEDY)
    for field, expected in (("classes", CLASSES), ("motions", MOTIONS)):
        if description[field] != list(expected):
            raise file_error(path, f"{field} are not those of this version", _REMEDY)
    return description


def read_index(root: str | Path, split: str = "train", kind: str = "videos") -> list[SampleEntry]:
    """The files of one split.

    Args:
        root: directory of the set.
        split: "train" or "val".
        kind: "videos" or "images".

    Raises:
        TubeletError: no sample set there, or it has no such split or kind.
    """
    files = read_description(root)["files"]
    if split not in files or kind not in files[split]:
        raise DataError(f"{root}: no {split}/{kind}; a sample set has train and val, videos and images")
    base = Path(root) / split
    for entry in files[split][kind]:
        if Path(entry["file"]).name != entry["file"]:
            raise DataError(f"{root}: lists {entry['file']!r}, expected the name of a file in {split}/{kind}")
        if entry.get("motion", "") not in ("", *MOTIONS):
            raise DataError(f"{root}: {entry['file']} has the motion {entry['motion']!r}, expected one of {MOTIONS}")
    return [
        SampleEntry(
            media=base / kind / entry["file"],
            truth=base / "truth" / kind / f"{Path(entry['file']).stem}.npz",
            level=entry["level"],
            motion=entry.get("motion", ""),
        )
        for entry in files[split][kind]
    ]
