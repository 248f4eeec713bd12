"""Colors of videos that are not those of BT.709: high dynamic range and wide gamut become what SDR screens show.

The rule: light is computed relative to the reference white of ITU-R BT.2408 (203 cd/m2: 58 % of PQ, 75 % of HLG), its
primaries become those of BT.709 (what lies outside is clipped at zero), and light above 60 % of the white rolls off
exponentially, by one factor for the three channels so that hues stay: x becomes 0.6 + 0.4 (1 - exp((0.6 - x) / 0.4)).
The result is encoded with the gamma of BT.1886, 2.4. Wide gamut without high dynamic range is clipped at its white.
"""

from functools import cache
from typing import Any

import numpy as np

# FFmpeg's numbers, which are those of ISO/IEC 23091-2.
_PQ, _HLG = 16, 18
_BT2020, _DISPLAY_P3 = 9, 12
_UNSPECIFIED_PRIMARIES = (0, 2)
_WHITE_NITS = 203.0
_KNEE = 0.6
_GAMMA = 2.4
_D65 = (0.3127, 0.3290)
# x and y of red, green and blue.
_PRIMARIES = {
    1: ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _DISPLAY_P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_LEVELS = 4096
# How colors may be coded as luma and chroma, or not at all; swscale takes the others for BT.601.
_MATRICES = {0, 1, 2, 3, 4, 5, 6, 7, 9}
_MATRIX_NAMES = {
    8: "YCgCo",
    10: "BT.2020 of constant luminance",
    13: "chromaticity-derived",
    14: "ICtCp",
    15: "IPT-PQ-C2",
}
# Pixels at once, so that what is computed on the way stays in the caches.
_CHUNK = 2**15


def unknown_matrix(frame: Any) -> str | None:
    """The name of the coding of a frame's colors, if it cannot be converted."""
    if frame.colorspace in _MATRICES or frame.format.is_rgb:
        return None
    return _MATRIX_NAMES.get(frame.colorspace, f"number {frame.colorspace}")


def is_plain(frame: Any) -> bool:
    """Whether a frame's colors are taken as they are."""
    return frame.color_trc not in (_PQ, _HLG) and frame.color_primaries not in (_BT2020, _DISPLAY_P3)


def to_bt709(pixels: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """Colors of high dynamic range or wide gamut as those of BT.709.

    Args:
        pixels: (H, W, 3) uint16 RGB.
        transfer: number of the transfer characteristics.
        primaries: number of the primaries; those of high dynamic range are BT.2020 if not specified.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    hdr = transfer in (_PQ, _HLG)
    if hdr and primaries in _UNSPECIFIED_PRIMARIES:
        primaries = _BT2020
    light, matrix, encoded = _light(transfer), _to_bt709(primaries), _encoded()
    flat = pixels.reshape(-1, 3)
    result = np.empty(flat.shape, dtype=np.uint8)
    for at in range(0, len(flat), _CHUNK):
        linear = light[flat[at : at + _CHUNK]]
        if transfer == _HLG:
            # The system gamma of a screen of 1,000 cd/m2 (BT.2100), relative to what it makes of the reference white.
            luma = linear @ _luma(primaries)
            linear *= luma[:, None] ** np.float32(0.2)
        linear = np.maximum(linear @ matrix, 0)
        if hdr:
            brightest = linear.max(axis=1)
            rolled = np.float32(1) - np.float32(1 - _KNEE) * np.exp((_KNEE - brightest) / np.float32(1 - _KNEE))
            linear *= np.where(brightest > _KNEE, rolled / np.maximum(brightest, _KNEE), 1)[:, None]
        indices = np.sqrt(np.minimum(linear, 1)) * np.float32(_LEVELS - 1) + np.float32(0.5)
        result[at : at + _CHUNK] = encoded[indices.astype(np.uint16)]
    return result.reshape(pixels.shape)


@cache
def _light(transfer: int) -> np.ndarray:
    """(65536,) float32: relative light of each code; of HLG, the scene's, before the system gamma."""
    code = np.arange(65536) / 65535
    if transfer == _PQ:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        root = code ** (1 / m2)
        light = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) / _WHITE_NITS
    elif transfer == _HLG:  # ARIB STD-B67
        scene = _hlg_scene(code)
        light = scene / _hlg_scene(np.array(0.75))
    else:
        light = code**_GAMMA
    return light.astype(np.float32)


def _hlg_scene(code: np.ndarray) -> np.ndarray:
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


@cache
def _encoded() -> np.ndarray:
    """(_LEVELS,) uint8: codes of the square roots of light."""
    return np.round(255 * np.linspace(0, 1, _LEVELS) ** (2 / _GAMMA)).astype(np.uint8)


@cache
def _to_bt709(primaries: int) -> np.ndarray:
    """(3, 3) float32, from the right: linear light of some primaries to that of BT.709."""
    if primaries not in _PRIMARIES:
        return np.eye(3, dtype=np.float32)
    return (np.linalg.inv(_to_xyz(1)) @ _to_xyz(primaries)).T.astype(np.float32)


def _luma(primaries: int) -> np.ndarray:
    """(3,) float32: luminance of red, green and blue."""
    return _to_xyz(primaries if primaries in _PRIMARIES else 1)[1].astype(np.float32)


def _to_xyz(primaries: int) -> np.ndarray:
    """(3, 3): linear RGB to XYZ, with the white D65."""

    def xyz(x: float, y: float) -> list[float]:
        return [x / y, 1.0, (1 - x - y) / y]

    columns = np.array([xyz(*point) for point in _PRIMARIES[primaries]]).T
    return columns * np.linalg.solve(columns, np.array(xyz(*_D65)))
