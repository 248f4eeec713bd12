"""Figures of the explain page, step by step, drawn from a trace."""

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from tubelet.grid import Modality
from tubelet.model.rope import axis_size
from tubelet.view.input_trace import MaskTrace, Trace
from tubelet.view.page import (
    HIDDEN_RGBA,
    TARGET_RGBA,
    Cell,
    Row,
    Scale,
    Strip,
    boundary,
    columns,
    data_uri,
    gradient,
    heat,
    percent,
    significant,
    tint,
)
from tubelet.view.pca import Projection, fit_projection

COSINE, LOSS, WEIGHT = "coolwarm", "magma", "viridis"
LAYERS = 5  # of the token grid, drawn beside each other


class TraceFigures:
    """Figures of one trace. Every strip has a column for each shown time step; frame numbers count the shown steps."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.steps = columns(trace.grid.t)
        self.box = (trace.grid.w, trace.grid.h)
        self.step_frames = trace.source.pixels.shape[1] // trace.grid.t
        times = [float(trace.source.times[step * self.step_frames]) for step in self.steps]
        still = trace.modality is Modality.IMAGE
        self.heads = ["the image"] if still else [f"{time:.2f} s" for time in times]
        self.projections = [fit_projection(level) for level in trace.targets[0].split(trace.level_width, dim=-1)]

    def frames(self) -> list[Markup]:
        """The first frame of every shown time step."""
        pixels = self.trace.source.pixels
        return [data_uri(pixels[:, step * self.step_frames].permute(1, 2, 0).numpy(), "jpeg") for step in self.steps]

    def patches(self) -> Strip:
        """Step 1: the frames under the patch grid."""
        cells = [Cell(frame=i) for i in range(len(self.steps))]
        return Strip(self.heads, [Row("", cells)], grid=self.box)

    def chosen_token(self) -> tuple[int, int, int]:
        """Time step, row and column of the patch with the most contrast halfway through the clip."""
        grid, p = self.trace.grid, self.trace.model.config.patch_size
        t = self.steps[len(self.steps) // 2]
        frame = self.trace.source.pixels[:, t * self.step_frames].float()
        contrast = frame.view(3, grid.h, p, grid.w, p).std(dim=(2, 4)).mean(0)
        h, w = divmod(int(contrast.argmax()), grid.w)
        return t, h, w

    def tubelet(self) -> list[Markup]:
        """Pixels of `chosen_token`, one image per frame."""
        t, h, w = self.chosen_token()
        p = self.trace.model.config.patch_size
        first = t * self.step_frames
        pixels = self.trace.source.pixels[:, first : first + self.step_frames, h * p : h * p + p, w * p : w * p + p]
        return [data_uri(frame.permute(1, 2, 0).numpy()) for frame in pixels.unbind(1)]

    def tubelet_place(self) -> Strip:
        """Frame of `tubelet`, with the patch outlined."""
        t, h, w = self.chosen_token()
        cell = Cell(frame=self.steps.index(t), outline=f"M{w} {h}h1v1h-1z", box=self.box, kind="pick")
        return Strip(
            ["at " + self.heads[self.steps.index(t)] if len(self.steps) > 1 else ""], [Row("", [cell])], self.box
        )

    def rotary_axes(self) -> list[tuple[str, Markup, int]]:
        """Step 2: cosines of the angles along each axis: name, image (pairs down, positions across), positions."""
        grid = self.trace.grid
        cos = self._rotary()
        pairs = axis_size(2 * cos.shape[-1]) // 2
        tables = (cos[:, 0, 0, :pairs], cos[0, :, 0, pairs : 2 * pairs], cos[0, 0, :, 2 * pairs : 3 * pairs])
        names = ("time", "row", "column")
        return [
            (name, data_uri(heat(table.T, -1, 1, COSINE)), size)
            for name, table, size in zip(names, tables, grid.shape, strict=True)
        ]

    def rotary_maps(self) -> Strip:
        """Step 2: cosine of the fastest pair of each axis at every position."""
        cos = self._rotary()
        pairs = axis_size(2 * cos.shape[-1]) // 2
        names = ("fastest time pair", "fastest row pair", "fastest column pair")
        rows = [
            Row(name, [self._map(heat(cos[t, ..., axis * pairs], -1, 1, COSINE)) for t in self.steps])
            for axis, name in enumerate(names)
        ]
        return Strip(self.heads, rows)

    def masks(self) -> Strip:
        """Step 3: masked tokens, in the color of target tokens."""
        rows = []
        for i, mask in enumerate(self.trace.masks):
            hidden = self._hidden(mask)
            cells = [
                Cell(k, data_uri(tint(hidden[t], TARGET_RGBA)), boundary(hidden[t]), self.box)
                for k, t in enumerate(self.steps)
            ]
            spec = mask.spec
            note = f"{spec.blocks} blocks of {percent(spec.area)}, here {mask.block[0]}×{mask.block[1]} patches each"
            rows.append(Row(f"Mask {i + 1}", cells, note))
        return Strip(self.heads, rows)

    def visible(self) -> Strip:
        """Step 4: the student's input."""
        rows = []
        for i, mask in enumerate(self.trace.masks):
            hidden = self._hidden(mask)
            cells = [Cell(k, data_uri(tint(hidden[t], HIDDEN_RGBA))) for k, t in enumerate(self.steps)]
            rows.append(Row(f"Mask {i + 1}", cells, f"{percent(mask.visible_fraction)} of the tokens"))
        return Strip(self.heads, rows)

    def predictions(self) -> Strip | None:
        """Step 7: the teacher's last level and its predictions, in the same colors."""
        if self.trace.losses is None:
            return None
        projection, width = self.projections[-1], self.trace.level_width
        rows = [self._frame_row(), self._pca_row("Teacher's last level", self.trace.targets[0, :, -width:], projection)]
        for i, mask in enumerate(self.trace.masks):
            prediction = torch.empty(self.trace.grid.tokens, width)
            prediction[mask.mask.target[0]] = mask.predicted[0, :, -width:]
            prediction[mask.mask.context[0]] = mask.reconstructed[0, :, -width:]
            rows.append(self._pca_row(f"Predicted under mask {i + 1}", prediction, projection, self._hidden(mask)))
        return Strip(self.heads, rows)

    def teacher(self) -> Strip:
        """Step 8: every level of the teacher as colors, by its own three principal components."""
        blocks = self.trace.model.config.levels[-len(self.projections) :]
        rows = [self._frame_row()]
        levels = self.trace.targets[0].split(self.trace.level_width, dim=-1)
        for level, projection, block in zip(levels, self.projections, blocks, strict=True):
            note = f"shows {percent(float(projection.shares.sum()))} of the variance"
            rows.append(self._pca_row(f"After block {block + 1}", level, projection, note=note))
        return Strip(self.heads, rows)

    def weights(self) -> tuple[Strip, Scale]:
        """Step 8: weight of each context token's error."""
        rows = []
        least = 1.0
        for i, mask in enumerate(self.trace.masks):
            least = min(least, float(mask.counts.min()))
            rows.append((f"Mask {i + 1}", self._scatter([(mask.mask.context, mask.counts)]), self._hidden(mask)))
        unit = "weight 1/√d" if self.trace.model.distance_weighting else "weight"
        return self._heat_strip(rows, least, 1.0, WEIGHT), Scale(least, 1.0, gradient(WEIGHT), unit)

    def errors(self) -> tuple[Strip, Scale] | None:
        """Step 8: contribution of each token to the loss: L1 of targets, weighted L1 of context tokens."""
        rows = []
        for i, mask in enumerate(self.trace.masks):
            if mask.target_error is None or mask.context_error is None:
                return None
            weighted = mask.context_error * mask.counts
            values = self._scatter([(mask.mask.target, mask.target_error), (mask.mask.context, weighted)])
            rows.append((f"Mask {i + 1}", values, self._hidden(mask)))
        low, high = np.quantile(np.concatenate([values.ravel() for _, values, _ in rows]), [0.01, 0.99])
        return self._heat_strip(rows, float(low), float(high), LOSS), Scale(
            float(low), float(high), gradient(LOSS), "L1"
        )

    def positions(self) -> list[tuple[str, Markup]]:
        """Step 6: for each mask the token grid as a stack of time steps, context and mask tokens in their colors."""
        return [(f"Mask {i + 1}", stack(self._hidden(mask))) for i, mask in enumerate(self.trace.masks)]

    def _heat_strip(
        self, rows: list[tuple[str, NDArray, NDArray[np.bool_]]], low: float, high: float, colors: str
    ) -> Strip:
        drawn = [
            Row(label, [self._map(heat(values[t], low, high, colors), hidden[t]) for t in self.steps])
            for label, values, hidden in rows
        ]
        return Strip(self.heads, drawn)

    def _pca_row(
        self, label: str, tokens: Tensor, projection: Projection, hidden: NDArray | None = None, note: str = ""
    ) -> Row:
        colors = projection.colors(tokens).view(*self.trace.grid.shape, 3).numpy()
        return Row(label, [self._map(colors[t], None if hidden is None else hidden[t]) for t in self.steps], note)

    def _frame_row(self) -> Row:
        label = "Image" if self.trace.modality is Modality.IMAGE else "Frames"
        return Row(label, [Cell(frame=k) for k in range(len(self.steps))])

    def _map(self, pixels: NDArray[np.uint8], hidden: NDArray[np.bool_] | None = None) -> Cell:
        return Cell(None, data_uri(pixels), "" if hidden is None else boundary(hidden), self.box)

    def _hidden(self, mask: MaskTrace) -> NDArray[np.bool_]:
        """(T', H', W') bool: the target tokens."""
        hidden = torch.zeros(self.trace.grid.tokens, dtype=torch.bool)
        hidden[mask.mask.target[0]] = True
        return hidden.view(self.trace.grid.shape).numpy()

    def _scatter(self, parts: list[tuple[Tensor, Tensor]]) -> NDArray[np.float64]:
        """Pairs of indices (1, K) and values (1, K) on the grid: (T', H', W'), NaN elsewhere."""
        grid = torch.full((self.trace.grid.tokens,), torch.nan, dtype=torch.float64)
        for ids, values in parts:
            grid[ids[0]] = values[0].double()
        return grid.view(self.trace.grid.shape).numpy()

    def _rotary(self) -> NDArray[np.float32]:
        """(T', H', W', head_dim / 2) cosines."""
        cos = self.trace.rotary.cos[0, 0]
        return cos.view(*self.trace.grid.shape, -1).numpy()


def stack(hidden: NDArray[np.bool_]) -> Markup:
    """A (T', H', W') region as slanted layers from the first time step to the last, as inline SVG."""
    steps, rows, cols = hidden.shape
    shown = columns(steps, LAYERS)
    side, depth, slant, spacing = 96.0, 62.0, 34.0, 104.0
    width = slant + side + 6 + spacing * (len(shown) - 1)
    parts = [f'<svg class="stack" viewBox="0 0 {width:.0f} {depth + 6:.0f}" role="img" aria-label="the grid over time"']
    parts.append(f' style="max-width:{1.5 * width:.0f}px">')
    for i, step in enumerate(shown):
        # Cells become parallelograms: columns run to the right, rows down and to the left.
        matrix = f"{side / cols:.3f} 0 {-slant / rows:.3f} {depth / rows:.3f} {3 + slant + spacing * i:.1f} 3"
        parts.append(f'<g transform="matrix({matrix})"><path class="context" d="M0 0h{cols}v{rows}h-{cols}z"/>')
        cells = "".join(f"M{w} {h}h1v1h-1z" for h, w in zip(*np.nonzero(hidden[step]), strict=True))
        parts.append(f'<path class="target" d="{cells}"/><path class="lines" d="{_lines(rows, cols)}"/></g>')
    return Markup("".join([*parts, "</svg>"]))


def _lines(rows: int, cols: int) -> str:
    across = "".join(f"M0 {h}h{cols}" for h in range(rows + 1))
    return across + "".join(f"M{w} 0v{rows}" for w in range(cols + 1))


def head_cells(head_dim: int) -> list[str]:
    """Axis that rotates each pair of channels of a head, in the head's order."""
    pairs = axis_size(head_dim) // 2
    rest = head_dim // 2 - 3 * pairs
    return ["time"] * pairs + ["row"] * pairs + ["column"] * pairs + ["rest"] * rest


def summary(mask: MaskTrace, weight: float) -> dict[str, str]:
    """The losses of one mask as text."""
    if mask.losses is None:
        return {}
    return {
        "prediction": significant(float(mask.losses.prediction), 4),
        "context": significant(float(mask.losses.context), 4),
        "total": significant(float(mask.losses.total), 4),
        "weight": significant(weight, 2),
    }
