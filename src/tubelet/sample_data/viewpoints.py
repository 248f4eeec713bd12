"""The choice of viewpoints and camera motions from a level's geometry, before anything is rendered."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tubelet.sample_data import truth
from tubelet.sample_data.level import PLAYER_RADIUS, Level, can_walk, distance_to_segment, heading

WARM_TICS = 15  # reach an even speed before recording
STEP_UNITS = (5.0, 14.0)  # map units per frame of a moving camera
TURN_DEGREES = (1.5, 6.0)  # degrees per frame of a turning camera
DARK_RADIUS = 160.0  # map units around the object of a dark view in which no other is tried: rooms are dark as a whole
MIN_ANCHORS = 8  # in a level that is dark throughout, some must be left to try
THING_RADIUS = 20.0  # of most things that one runs into


class RejectedError(Exception):
    """A viewpoint or a clip that is not worth keeping; the message is the reason that is counted."""


class Anchors:
    """The objects of a level near which viewpoints are chosen, less those found in the dark.

    Attributes:
        left: (K, 2) map units, never empty.
    """

    def __init__(self, level: Level) -> None:
        self.left = level.things[level.is_object] if level.is_object.any() else level.things

    def remove_near(self, anchor: NDArray[np.float64]) -> None:
        """Remove the viewpoints near this one, unless too few would remain."""
        away = np.hypot(*(self.left - anchor).T) > DARK_RADIUS
        if away.sum() >= MIN_ANCHORS:
            self.left = self.left[away]


@dataclass(frozen=True)
class ViewPlan:
    """A viewpoint and what the camera does from it.

    Attributes:
        at: (2,) map units, where the player is put.
        yaw: degrees, at the start.
        action: values of the engine's three buttons (ahead, right, turn) per tic.
        lead: (2,) map units from `at` to the first frame, at even speed.
        anchor: (2,) map units, the object in view.
    """

    at: NDArray[np.float64]
    yaw: float
    action: tuple[float, float, float]
    lead: NDArray[np.float64]
    anchor: NDArray[np.float64]


def plan_view(
    level: Level,
    anchors: NDArray[np.float64],
    motion: int,
    frames: int,
    tics: int,
    degrees: float,
    rng: np.random.Generator,
) -> ViewPlan:
    """Choose a place near an object, with the object in view, and a free way for the motion.

    Args:
        level: its geometry.
        anchors: (K, 2) objects to choose from.
        motion: index of `MOTIONS`, -1 for a single frame.
        frames: how many are recorded.
        tics: of the engine, per frame.
        degrees: horizontal field of view.
        rng: decides.

    Raises:
        RejectedError: no free way was found in a few tries.
    """
    kind = truth.MOTIONS[motion] if motion >= 0 else "still"
    for _ in range(60):
        anchor = anchors[rng.integers(len(anchors))]
        bearing, distance = rng.uniform(0, 360), rng.uniform(90, 330)
        middle = anchor + distance * heading(bearing)[0]
        yaw = bearing + 180 + rng.uniform(-0.3, 0.3) * degrees
        ahead, right = heading(yaw)
        speed = rng.uniform(*STEP_UNITS)
        turn = rng.uniform(*TURN_DEGREES)
        action, way = (0.0, 0.0, 0.0), np.zeros(2)
        # The engine's speed settles at a third of the button's value, in units per tic.
        if kind in ("forward", "backward"):
            sign = 1 if kind == "forward" else -1
            way, action = sign * ahead, (sign * 3 * speed / tics, 0.0, 0.0)
        elif kind in ("strafe_left", "strafe_right"):
            sign = 1 if kind == "strafe_right" else -1
            way, action = sign * right, (0.0, sign * 3 * speed / tics, 0.0)
        elif kind in ("turn_left", "turn_right"):
            sign = 1 if kind == "turn_right" else -1  # yaw falls to the right, the button's value rises
            action = (0.0, 0.0, sign * turn / tics)
            yaw += sign * turn * (frames * 0.5 + WARM_TICS / tics)  # the object is in view half-way
        length = speed * (frames - 1 + WARM_TICS / tics) if way.any() else 0.0
        start, end = middle - way * length / 2, middle + way * length / 2
        if kind == "forward" and distance < length / 2 + 40:
            continue
        # Whoever sees the object from the middle of the way is in the same space as the object.
        if not can_walk(level, middle, anchor, 1.0) or not can_walk(level, start, end, _margin(kind)):
            continue
        # Things stop the player as walls do.
        if way.any() and distance_to_segment(level.things, start, end).min() < PLAYER_RADIUS + THING_RADIUS:
            continue
        return ViewPlan(start, yaw, action, way * speed * WARM_TICS / tics, anchor)
    raise RejectedError("no free way")


def _margin(kind: str) -> float:
    """Map units to keep from walls: more than the player's radius, so that walls do not fill the view."""
    return 24.0 if kind == "still" else 20.0
