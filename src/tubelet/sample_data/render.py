"""Recording in the engine: viewpoints, camera motions, frames and the buffers that truth is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.errors import ConfigError
from tubelet.sample_data import truth
from tubelet.sample_data.level import Level, heading, is_sky
from tubelet.sample_data.tracks import no_tracks, track
from tubelet.sample_data.truth import Camera, ClipTruth
from tubelet.sample_data.viewpoints import WARM_TICS, Anchors, RejectedError, ViewPlan, plan_view

TICS_PER_SECOND = 35
# Resolutions of the engine with the same shape (4:3), for which the depth bytes were measured.
RESOLUTIONS = ((400, 300), (512, 384), (640, 480))
DEPTH_FULL_HEIGHT = 480  # rows at which the depth byte of walls uses its whole range
SETTLE_TICS = 18  # after a jump to a new place: fall to the floor, lift the eyes
JUMP_UNITS = 64.0  # more between two frames is a teleporter
NEAR_UNITS, OBJECT_NEAR_UNITS, NEAR_FRACTION = 56.0, 40.0, 0.3
EFFECT_FRACTION = 0.04  # of a frame; more is an explosion in the player's face
DROP_UNITS = 2.0  # between two frames without a step of the player: a lift, or a fall that has not ended
DARK_LUMA = 34.0
FLAT_DEVIATION = 9.0
OBJECT_PIXELS = 0.003  # share of the view that an object must fill to count as seen


class DarkError(RejectedError):
    """A view that is too dark, as others near it will be."""


@dataclass(frozen=True)
class FrameScaling:
    """How a rendered image becomes the written frame.

    Attributes:
        width, height: pixels that the engine renders.
        factor: engine pixels per written pixel.
        size: pixels of the written square.
    """

    width: int
    height: int
    factor: int
    size: int

    @property
    def camera(self) -> Camera:
        """The pinhole of the written frame: a rendered image spans 90 degrees horizontally."""
        focal = self.width / 2 / self.factor
        return Camera(fx=focal, fy=1.2 * focal, cx=self.size / 2, cy=self.size / 2)

    @property
    def inside(self) -> float:
        """Where in a written pixel, from its left or upper edge, the engine's pixel lies that gives its truth."""
        return (self.factor // 2 + 0.5) / self.factor

    @property
    def last_wall_code(self) -> int:
        """The depth byte at which walls and objects saturate; the engine draws the sky with it as well."""
        return 255 * self.height // DEPTH_FULL_HEIGHT

    @property
    def degrees(self) -> float:
        """Horizontal field of view."""
        return float(2 * np.degrees(np.arctan(self.size / 2 / self.camera.fx)))


@dataclass(frozen=True)
class RenderSettings:
    """Settings of all levels of a set.

    Attributes:
        root: folder of the splits.
        seed: seed of the set.
        frames: frames of a clip.
        fps: frames per second of the files.
        view: how frames are rendered.
        scratch: folder in which engines work.
    """

    root: Path
    seed: int
    frames: int
    fps: int
    view: FrameScaling
    scratch: Path = Path()

    @property
    def tics(self) -> int:
        """Tics of the engine per frame."""
        return TICS_PER_SECOND // self.fps


@dataclass(frozen=True)
class Shot:
    """Frames as recorded. T frames.

    Attributes:
        pixels: (T, size, size, 3) uint8.
        truth: of the same frames.
        codes: (T, size, size) uint8 depth bytes.
        steps: (3, 256) float32, what they mean.
        shows_object: an object that fills at least `OBJECT_PIXELS` of some frame.
    """

    pixels: NDArray[np.uint8]
    truth: ClipTruth
    codes: NDArray[np.uint8]
    steps: NDArray[np.float32]
    shows_object: bool


def view_of(size: int) -> FrameScaling:
    """The rendering for frames of `size` pixels: reduced from at least twice as many, so that colors are smooth.

    Raises:
        ConfigError: no resolution fits that size.
    """
    for width, height in RESOLUTIONS:
        for factor in range(2, 9):
            if size % 2 == 0 and 0.6 * width <= size * factor <= height:  # the video's colors are at half size
                return FrameScaling(width, height, factor, size)
    raise ConfigError(f"size {size}: must be an even number of pixels from 32 to 240, such as 64, 128 or 224")


@dataclass(frozen=True)
class _Frame:
    """One frame at written size, before it is part of a clip. Arrays (size, size)."""

    large: NDArray[np.uint8]  # colors as rendered, (size·k, size·k, 3): reduced when they are needed
    codes: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    labels: NDArray[np.uint8]  # the engine's numbers in this frame, 0 and 1 for what is no object
    ids: dict[int, int]  # label -> the engine's number of the object, the same in all frames
    pose: NDArray[np.float32]


def reduce_square(pixels: NDArray[np.uint8], k: int) -> NDArray[np.uint8]:
    """(n·k, n·k, 3) to (n, n, 3): the rounded mean of each k x k block."""
    # Pillow's box reduction is several times faster than sums of numpy slices.
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(k))


def grab(game: Any, view: FrameScaling) -> _Frame:
    """Read the engine's current image and buffers, cropped to the square and reduced. Sky still has the class of walls.

    Raises:
        RejectedError: the level was left, or there are more objects than the engine can tell apart.
    """
    state = game.get_state()
    if state is None:
        raise RejectedError("level left")
    k, size = view.factor, view.size
    x0, y0 = (view.width - size * k) // 2, (view.height - size * k) // 2
    square = (slice(y0, y0 + size * k), slice(x0, x0 + size * k))
    every = (slice(y0 + k // 2, y0 + size * k, k), slice(x0 + k // 2, x0 + size * k, k))
    labels, codes = state.labels_buffer[every], state.depth_buffer[every].copy()

    class_of, ids = np.zeros(256, np.uint8), {}
    class_of[0] = truth.WALL
    for label in state.labels:
        if label.value <= 1:
            raise RejectedError("too many objects")
        class_of[label.value] = truth.OBJECT_CLASSES.get(label.object_category, truth.OTHER_OBJECT)
        ids[label.value] = label.object_id
    classes = class_of[labels]
    # The engine marks floors and ceilings alike; the camera never tilts, so the horizon tells them apart.
    plane = labels == 1
    classes[: size // 2][plane[: size // 2]] = truth.CEILING
    classes[size // 2 :][plane[size // 2 :]] = truth.FLOOR
    # Nearer than its first step, the byte of a floor or ceiling wraps to that of 1,400 units: there, this far from the
    # horizon, one would be 600 units above a floor.
    far_from_horizon = np.abs(np.arange(size) + 0.5 - size / 2) > 600 / 1400 * view.camera.fy
    codes[plane & far_from_horizon[:, None] & (codes >= 192)] = 255
    x, y, z, yaw = state.game_variables
    pose = np.array([x, y, z, yaw, 0], np.float32)
    return _Frame(state.screen_buffer[square], codes, classes, labels, ids, pose)


def check_view(frame: _Frame, view: FrameScaling, steps: NDArray[np.float32]) -> None:
    """Refuse a view that shows too little.

    Raises:
        RejectedError: with the reason.
    """
    if np.count_nonzero(frame.classes == truth.OTHER_OBJECT) > EFFECT_FRACTION * frame.classes.size:
        raise RejectedError("explosion")
    depth = truth.depth_from_codes(frame.codes, frame.classes, steps)
    surface = frame.classes < truth.FIRST_OBJECT
    if np.mean(surface & (depth < NEAR_UNITS)) > NEAR_FRACTION or np.mean(depth < OBJECT_NEAR_UNITS) > NEAR_FRACTION:
        raise RejectedError("too near")
    luma = reduce_square(frame.large, view.factor) @ np.array([0.299, 0.587, 0.114], np.float32)
    if luma.mean() < DARK_LUMA:
        raise DarkError("too dark")
    if luma.std() < FLAT_DEVIATION:
        raise RejectedError("nothing to see")


def _name_sky(frame: _Frame, view: FrameScaling, level: Level, limit: float) -> None:
    """Turn the saturated wall pixels of a frame into sky where the level says so, in place."""
    rows, columns = np.nonzero((frame.classes == truth.WALL) & (frame.codes >= view.last_wall_code))
    if not len(rows):
        return
    camera = view.camera
    ahead, right = heading(float(frame.pose[3]))
    across = (np.arange(view.size, dtype=np.float64) + 0.5 - camera.cx) / camera.fx
    directions = ahead + across[:, None] * right
    slopes = (camera.cy - rows.astype(np.float64) - 0.5) / camera.fy
    is_used = np.zeros(view.size, dtype=bool)
    is_used[columns] = True
    used, column_index = np.nonzero(is_used)[0], (np.cumsum(is_used) - 1)[columns]
    sky = is_sky(level, frame.pose[:3].astype(np.float64), directions[used], column_index, slopes, limit)
    frame.classes[rows[sky], columns[sky]] = truth.SKY


def go(game: Any, action: list[float], tics: int, draw: bool = False) -> None:
    """Hold the buttons for some tics; an image is rendered at the end only with `draw`."""
    game.set_action(action)
    game.advance_action(tics, draw)


def record(
    game: Any, level: Level, anchors: Anchors, motion: int, settings: RenderSettings, rng: np.random.Generator
) -> Shot:
    """Go to a new viewpoint and record a clip with the given motion, or a single frame.

    Args:
        game: from `engine`.
        level: geometry of the level.
        anchors: candidate viewpoints of the level; dark ones are removed.
        motion: index of `MOTIONS`; -1 for a single frame.
        settings: number, rate and view of the frames.
        rng: draws the viewpoint and the speed.

    Raises:
        RejectedError: the recorded frames are not worth keeping.
    """
    view, frames = settings.view, 1 if motion == truth.NO_MOTION else settings.frames
    steps = truth.depth_steps(view.last_wall_code)
    plan = plan_view(level, anchors.left, motion, frames, settings.tics, view.degrees, rng)
    first = _enter(game, plan, motion, view)
    try:
        check_view(first, view, steps)
    except DarkError:
        anchors.remove_near(plan.anchor)
        raise
    taken = [first, *_move(game, first, plan, motion, frames, settings)]
    pose = np.stack([frame.pose for frame in taken])
    if frames > 1:
        check_view(taken[-1], view, steps)
        if truth.motion_of(pose) != motion:
            raise RejectedError("ambiguous motion")
    limit = float(np.nanmax(steps[0]))
    for frame in taken:
        _name_sky(frame, view, level, limit)
    classes = np.stack([frame.classes for frame in taken])
    codes = np.stack([frame.codes for frame in taken])
    tracks, visible = (
        track(classes, codes, steps, pose, level, view.camera, view.inside, rng) if frames > 1 else no_tracks(1)
    )
    clip = ClipTruth(
        depth=np.zeros((0, 0, 0), np.float32),  # made from the codes by the reader
        classes=classes,
        instances=_number_instances(taken),
        pose=pose,
        motion=motion,
        tracks=tracks,
        visible=visible,
        camera=view.camera,
        level=level.name,
    )
    pixels = np.stack([reduce_square(frame.large, view.factor) for frame in taken])
    object_visible = bool(((classes >= truth.FIRST_OBJECT).mean(axis=(1, 2)) >= OBJECT_PIXELS).any())
    return Shot(pixels, clip, codes, steps, object_visible)


def _enter(game: Any, plan: ViewPlan, motion: int, view: FrameScaling) -> _Frame:
    """The first frame at a planned viewpoint.

    Raises:
        RejectedError: the player is somewhere else, or did not move as planned.
    """
    yaw = float(game.get_state().game_variables[3])
    game.send_game_command(f"warp {round(plan.at[0])} {round(plan.at[1])}")
    # A tic costs the engine next to nothing and an image milliseconds: only the frames that are kept are drawn.
    go(game, [0, 0, (yaw - plan.yaw + 180) % 360 - 180], 1)
    go(game, [0, 0, 0], SETTLE_TICS, draw=motion <= 0)
    if motion > 0:
        go(game, list(plan.action), WARM_TICS, draw=True)
    first = grab(game, view)
    if np.hypot(*(first.pose[:2] - plan.at)) > 150 or first.pose[2] < -20000:
        raise RejectedError("jumped")
    way = float(np.hypot(*plan.lead))
    if way and (first.pose[:2] - plan.at) @ plan.lead < 0.4 * way**2:
        raise RejectedError("ambiguous motion")  # something stands in the way
    return first


def _move(
    game: Any, first: _Frame, plan: ViewPlan, motion: int, frames: int, settings: RenderSettings
) -> Iterator[_Frame]:
    """The frames after the first.

    Raises:
        RejectedError: the player was moved by something else, or the view is hidden.
    """
    poses, view = [first.pose], settings.view
    for k in range(1, frames):
        go(game, list(plan.action), settings.tics, draw=True)
        frame = grab(game, view)
        poses.append(frame.pose)
        moved = float(np.hypot(*(poses[-1][:2] - poses[-2][:2])))
        if moved > JUMP_UNITS:
            raise RejectedError("jumped")
        if moved < 1 and abs(float(poses[-1][2] - poses[-2][2])) > DROP_UNITS:
            raise RejectedError("lifted")
        if np.count_nonzero(frame.classes == truth.OTHER_OBJECT) > EFFECT_FRACTION * view.size**2:
            raise RejectedError("explosion")
        if k == min(3, frames - 1) and truth.motion_of(np.stack(poses)) != motion:
            raise RejectedError("ambiguous motion")  # most often something stood in the way
        yield frame


def _number_instances(taken: list[_Frame]) -> NDArray[np.uint16]:
    """(T, size, size) numbers of objects, the same in all frames, from 1 in the order in which they appear."""
    numbers: dict[int, int] = {}
    instances = np.zeros((len(taken), *taken[0].labels.shape), np.uint16)
    for frame, instance in zip(taken, instances, strict=True):
        number_of = np.zeros(256, np.uint16)
        for label in np.nonzero(np.bincount(frame.labels.ravel(), minlength=256))[0].tolist():
            if label in frame.ids:
                number_of[label] = numbers.setdefault(frame.ids[label], len(numbers) + 1)
        instance[:] = number_of[frame.labels]
    return instances
