"""Elements of self-contained HTML pages: data URIs, heat maps, outlines, strips of frames, charts as inline SVG.

A page has each frame once, as a background image. Overlays have the size of the token grid and are enlarged by the
browser, so that a page with a hundred images is smaller than a megabyte and sharp at any size.

The content security policy of a page allows its own scripts, by their hashes, and no other: a script that a name or a
label smuggles in is not run, and the page connects to no network.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from jinja2 import BytecodeCache, ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tubelet.errors import escape_unprintable
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_COLUMNS = 8
TARGET_RGBA = (224, 122, 42, 150)  # the page's color of target tokens, see base.html

_POLICY = "@content-security-policy@"
# Placeholder colors of charts, replaced by the page's own colors, which depend on its theme.
_INK, _FAINT = "#010203", "#010204"
_SERIES = ("#010205", "#010206", "#010207", "#010208")
_CHART_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tubelet",
    "font.family": "sans-serif",
    "font.size": 8.5,
}


@dataclass(frozen=True)
class Cell:
    """One image of a strip.

    Attributes:
        frame: number of the background frame; None for none.
        layer: data URI of a small image, enlarged over the frame; empty for none.
        outline: SVG path on top, in units of the token grid or the frame; empty for none.
        box: columns and rows of the outline's units.
        kind: CSS class of the outline.
        opacity: opacity of the layer.
    """

    frame: int | None = None
    layer: str = ""
    outline: str = ""
    box: tuple[int, int] = (1, 1)
    kind: str = "edge"
    opacity: float = 1.0


@dataclass(frozen=True)
class Row:
    """A labeled row of images, one per time step."""

    label: str
    cells: list[Cell]
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """Rows of images with common column headings.

    Attributes:
        heads: headings of the columns.
        rows: each of as many cells as there are heads.
        grid: columns and rows of the patch grid drawn over every cell, None for none.
    """

    heads: list[str]
    rows: list[Row]
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Scale:
    """Color scale of heat maps."""

    low: float
    high: float
    colors: str
    unit: str = ""


@dataclass(frozen=True)
class Line:
    """A curve of a chart.

    Attributes:
        label: name of the curve.
        x, y: coordinates of its points.
        faint: whether it is drawn faint, behind its smoothed version.
        style: further arguments of matplotlib's `plot`.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False
    style: Mapping[str, Any] = field(default_factory=dict)


def data_uri(pixels: NDArray[np.uint8], kind: str = "png") -> Markup:
    """Encode (H, W, 3 or 4) uint8 pixels as a data URI.

    Args:
        pixels: RGB or RGBA.
        kind: "png", exact, or "jpeg", small.
    """
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": 86} if kind == "jpeg" else {"optimize": True}
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format=kind, **options)
    return Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")


def heat(values: NDArray[Any], low: float, high: float, colors: str) -> NDArray[np.uint8]:
    """Map values (...) to a color scale: (..., 4) uint8, transparent where a value is NaN."""
    shares = (np.asarray(values, dtype=np.float64) - low) / max(high - low, 1e-12)
    rgba = np.array(matplotlib.colormaps[colors](np.nan_to_num(shares).clip(0, 1), bytes=True))
    rgba[np.isnan(shares), 3] = 0
    return rgba


def colormap(name: str) -> NDArray[np.uint8]:
    """(256, 3) uint8 colors of a color scale."""
    return np.array(matplotlib.colormaps[name](np.arange(256), bytes=True))[:, :3]


def gradient(colors: str) -> Markup:
    """A color scale as a CSS background."""
    stops = [matplotlib.colors.to_hex(matplotlib.colormaps[colors](i / 8)) for i in range(9)]
    return Markup(f"linear-gradient(to right, {', '.join(stops)})")


def boundary(inside: NDArray[np.bool_]) -> str:
    """Outline of a region as an SVG path in cells, x along columns and y along rows, without lines at the border."""
    path = []
    for y, x in zip(*np.nonzero(inside[:, 1:] != inside[:, :-1]), strict=True):
        path.append(f"M{x + 1} {y}v1")
    for y, x in zip(*np.nonzero(inside[1:] != inside[:-1]), strict=True):
        path.append(f"M{x} {y + 1}h1")
    return "".join(path)


def columns(steps: int, limit: int = MAX_COLUMNS) -> list[int]:
    """Time steps that a strip shows: all, or `limit` evenly spaced ones, the first and the last included."""
    if steps <= limit:
        return list(range(steps))
    return [round(i * (steps - 1) / (limit - 1)) for i in range(limit)]


def chart(
    lines: Sequence[Line], *, y: str, x: str = "step", size: tuple[float, float] = (5.0, 2.0), margin: float = 0.01
) -> Markup:
    """Curves as inline SVG in the page's colors.

    Args:
        lines: the curves; a faint curve has the color of the next curve that is not faint.
        y: label of the y axis.
        x: label of the x axis.
        size: width and height in inches, of 72 pixels where there is room.
        margin: free fraction left and right of the curves.
    """
    from matplotlib.figure import Figure  # slow to import, and most pages have no chart

    with matplotlib.rc_context({**_CHART_STYLE, "svg.hashsalt": y}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        number = 0
        for line in lines:
            color = _SERIES[number % len(_SERIES)]
            if line.faint:
                axes.plot(line.x, line.y, **{"color": color, "alpha": 0.28, "linewidth": 0.8, **line.style})
                continue
            axes.plot(line.x, line.y, color=color, linewidth=1.7, label=line.label, **line.style)
            number += 1
        if number > 1:
            legend = axes.legend(frameon=False, labelcolor=_INK, ncols=min(number, 3), loc="best")
            legend.set_zorder(9)
        axes.set_xlabel(x, color=_INK)
        axes.set_ylabel(y, color=_INK)
        axes.tick_params(which="both", color=_FAINT, labelcolor=_INK)
        axes.grid(True, color=_FAINT, linewidth=0.5, alpha=0.35)
        axes.set_axisbelow(True)
        axes.margins(x=margin)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_FAINT)
        return inline_svg(figure)


def inline_svg(figure: "Figure") -> Markup:
    """A figure as an SVG element without header, metadata or background."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    start, end = text.find("<metadata>"), text.find("</metadata>")
    if start >= 0:
        text = text[:start] + text[end + len("</metadata>") :]
    for stand_in, variable in zip((_INK, _FAINT, *_SERIES), ("ink2", "faint", "s1", "s2", "s3", "s4"), strict=True):
        text = text.replace(stand_in, f"var(--{variable})")
    return Markup(text.replace("<svg ", '<svg class="chart" ', 1))


def json_block(name: str, data: Any) -> Markup:
    """JSON as an element of a page, which text in the data cannot end; `readJson` of page.js reads it.

    Args:
        name: id of the element.
        data: what `json.dumps` takes, without NaN and infinity.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def binary_block(name: str, data: bytes) -> Markup:
    """Bytes as an element of a page; `readBinary` of page.js reads them.

    Args:
        name: id of the element.
        data: the bytes.
    """
    text = base64.b64encode(data).decode()
    return Markup(f'<script type="application/octet-stream" id="{name}">{text}</script>')


def write_page(
    template: str, out: Path, values: Mapping[str, Any], folder: Path | None = None, *, links_media: bool = False
) -> None:
    """Render a template and write it atomically.

    Templates inline their scripts by `inline_script("page.js", "mine.js")`, which concatenates files of the folder of
    templates.

    Args:
        template: file name of the template.
        out: the page.
        values: values of the template.
        folder: folder of a template outside the package, which may extend and import the package's templates.
        links_media: whether the page shows images and videos of other files.

    Raises:
        TubeletError: if it cannot be written.
    """
    check_output(out, "page")
    text = render_page(template, values, folder, links_media=links_media)
    with atomic_write(out) as partial:
        partial.write_text(text, encoding="utf-8")


def render_page(
    template: str,
    values: Mapping[str, Any],
    folder: Path | None = None,
    *,
    links_media: bool = False,
    fetches: bool = False,
) -> str:
    """Render a template with its content security policy.

    Args:
        template: file name of the template.
        values: values of the template.
        folder: folder of a template outside the package.
        links_media: whether the page shows images and videos of other files.
        fetches: whether the page fetches data from the server that it came from.
    """
    environment, hashes = _templates(folder), list[str]()
    environment.globals["inline_script"] = _script_inliner(environment, hashes)
    # The scripts are known when the page is rendered; the policy stands before them.
    text = environment.get_template(template).render(**values, content_security_policy=_POLICY)
    return text.replace(_POLICY, _security_policy(hashes, links_media, fetches), 1)


def _script_inliner(environment: Environment, hashes: list[str]) -> Callable[..., Markup]:
    def inline_script(*names: str) -> Markup:
        assert environment.loader is not None
        text = "\n" + "".join(environment.loader.get_source(environment, name)[0] for name in names)
        hashes.append(base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())
        return Markup(f"<script>{text}</script>")

    return inline_script


def _security_policy(hashes: Sequence[str], links_media: bool, fetches: bool) -> str:
    media = "'self' file: data: blob:" if links_media else "data: blob:"
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{each}'" for each in hashes) or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": media,
        "media-src": media,
        "connect-src": "'self'" if fetches else "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _shown(value: Any) -> Any:
    """Escape control characters in values, such as file names."""
    return escape_unprintable(value, keep="\n\t") if isinstance(value, str) and not isinstance(value, Markup) else value


class _CompiledTemplates(BytecodeCache):
    """The templates that this process has compiled, which takes longer than to render them."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Set the code of a template; its checksum is that of the source."""
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the code of a template."""
        self._code[bucket.key, bucket.checksum] = bucket.code


_COMPILED_TEMPLATES = _CompiledTemplates()


def _templates(folder: Path | None) -> Environment:
    loaders = [FileSystemLoader(folder)] if folder else []
    environment = Environment(
        loader=ChoiceLoader([*loaders, PackageLoader("tubelet.view")]),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        bytecode_cache=_COMPILED_TEMPLATES,
    )
    environment.filters |= {"count": count, "shape": shape, "significant": significant, "percent": percent}
    return environment


def shape(sizes: Sequence[int]) -> str:
    """Format a tensor's shape as in code, with non-breaking spaces."""
    return "(" + ",\u00a0".join(str(size) for size in sizes) + ")"


def count(number: float) -> str:
    """Format a whole number with thousands separators."""
    return f"{round(number):,}"


def significant(number: float, digits: int = 3) -> str:
    """Format a number with significant digits."""
    if number == 0:
        return "0"
    if 1e-3 <= abs(number) < 1e5:
        decimals = max(0, digits - 1 - int(np.floor(np.log10(abs(number)))))
        return f"{number:,.{decimals}f}"
    return f"{number:.{digits - 1}e}"


def percent(fraction: float) -> str:
    """Format a fraction in percent."""
    return f"{100 * fraction:.0f} %" if fraction == 0 or fraction >= 0.1 else f"{100 * fraction:.1f} %"
