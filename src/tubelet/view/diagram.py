"""Diagram of the data flow with the sizes of one input: inline SVG, for wide and for narrow screens."""

from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape
from torch import Tensor

from tubelet.grid import Modality
from tubelet.view.input_trace import Trace
from tubelet.view.page import count, significant

LINE, TOP = 15, 24  # height of a line of text, and of a box's title


@dataclass(frozen=True)
class Node:
    """A box.

    Attributes:
        number: number of the step that the box belongs to and links to.
        title: title of the box.
        lines: sizes, one a line.
        kind: CSS class.
        rotary: whether step 2 happens inside it.
    """

    number: int
    title: str
    lines: tuple[str, ...]
    kind: str = ""
    rotary: bool = False


@dataclass(frozen=True)
class Box:
    """Position and size of a node: left, top, width and height."""

    x: float
    y: float
    w: float
    h: float


def overview(trace: Trace) -> Markup:
    """Both drawings; the style sheet shows the one that fits the screen."""
    nodes = _nodes(trace)
    wide = _draw(nodes, _wide_boxes(), _wide_edges(), (980, 318), "wide")
    tall = _draw(nodes, _tall_boxes(), _tall_edges(), (360, 746), "tall")
    return wide + tall


def _nodes(trace: Trace) -> dict[str, Node]:
    config, grid = trace.model.config, trace.grid
    _, _, T, H, W = trace.pixels.shape
    visible = " | ".join(count(mask.mask.context.shape[1]) for mask in trace.masks)
    first, levels = trace.masks[0], len(trace.teacher_levels)
    still = trace.modality is Modality.IMAGE
    losses = trace.losses
    loss_lines = (
        ("teacher of the", "distillation is", "not in the file")
        if losses is None
        else (
            f"predict {significant(float(losses.prediction))}",
            f"context {significant(float(losses.context))}",
            f"λ {significant(trace.context_weight, 2)}",
        )
    )
    return {
        "input": Node(1, "Image" if still else "Video", ("1 frame" if still else f"{T} frames", f"{H} × {W} px")),
        "tokens": Node(1, "Tokenize", (f"{count(grid.tokens)} tokens", " × ".join(map(str, grid.shape)))),
        "mask": Node(3, "Mask", (f"sees {visible}", f"of {count(grid.tokens)}"), "targets"),
        "student": Node(
            4, "X-encoder", (f"{config.depth} blocks", f"{levels} × {_size(first.levels[0])}"), "context", True
        ),
        "fusion": Node(5, "Fuse", (f"{first.concatenated.shape[-1]} channels", f"→ {_size(first.fused)}"), "context"),
        "sequence": Node(
            6,
            "Mask tokens",
            (
                f"{count(first.mask.context.shape[1])} + {count(first.mask.target.shape[1])}",
                f"→ {_size(first.sequence)}",
            ),
            "targets",
        ),
        "predictor": Node(
            7,
            "Predictor",
            (f"{config.predictor.depth} blocks", _size(first.predicted), f"+ {_size(first.reconstructed)}"),
            "targets",
            True,
        ),
        "loss": Node(8, "Loss", loss_lines),
        "teacher": Node(
            8,
            "Y-encoder",
            (f"{config.depth} blocks, no gradient", f"{levels} × {_size(trace.teacher_levels[0])}"),
            "",
            True,
        ),
        "targets": Node(8, "Targets", ("each level normalized", _size(trace.targets[0]))),
    }


def _size(tensor: Tensor) -> str:
    """A tensor's last two sizes."""
    return " × ".join(str(size) for size in tensor.shape[-2:])


def _wide_boxes() -> dict[str, Box]:
    top = ("input", "tokens", "mask", "student", "fusion", "sequence", "predictor", "loss")
    boxes = {name: Box(4 + 123 * i, 44, 112, 76) for i, name in enumerate(top)}
    boxes["teacher"] = Box(boxes["student"].x - 24, 206, 156, 76)
    boxes["targets"] = Box(boxes["predictor"].x - 36, 206, 144, 76)
    return boxes


def _wide_edges() -> list[tuple[str, str, str]]:
    b = _wide_boxes()
    names = ("input", "tokens", "mask", "student", "fusion", "sequence", "predictor", "loss")
    edges = [(f"M{b[i].x + 112} 82H{b[j].x - 3}", "", "") for i, j in pairwise(names)]
    teacher, targets, loss = b["teacher"], b["targets"], b["loss"]
    middle, end = b["student"].x + 54, loss.x + 54
    edges += [
        (f"M58 120V244H{teacher.x - 3}", "", "all patches, nothing hidden|160|238"),
        (f"M{teacher.x + 156} 244H{targets.x - 3}", "", ""),
        (f"M{targets.x + 144} 244H{end}V123", "", ""),
        (f"M{middle} 120V203", "dashed", f"moving average of the weights|{middle + 8}|166"),
        (
            f"M{b['mask'].x + 54} 44V22H{b['sequence'].x + 54}V41",
            "dashed",
            f"where the hidden tokens are|{b['student'].x + 8}|16",
        ),
    ]
    return edges


def _tall_boxes() -> dict[str, Box]:
    left = ("tokens", "mask", "student", "fusion", "sequence", "predictor")
    boxes = {name: Box(4, 96 + 92 * i, 162, 76) for i, name in enumerate(left)}
    boxes |= {"input": Box(4, 4, 344, 62), "loss": Box(4, 656, 344, 76)}
    boxes |= {"teacher": Box(186, 280, 162, 76), "targets": Box(186, 556, 162, 76)}
    return boxes


def _tall_edges() -> list[tuple[str, str, str]]:
    b = _tall_boxes()
    chain = ("input", "tokens", "mask", "student", "fusion", "sequence", "predictor", "loss")
    edges = [(f"M87 {b[i].y + b[i].h}V{b[j].y - 3}", "", "") for i, j in pairwise(chain)]
    return [
        *edges,
        ("M300 66V277", "", "all patches|232|150"),
        ("M300 356V553", "", ""),
        ("M300 632V653", "", ""),
        ("M166 318H183", "dashed", "moving average|196|270"),
    ]


def _draw(
    nodes: dict[str, Node], boxes: dict[str, Box], edges: list[tuple[str, str, str]], size: tuple[int, int], name: str
) -> Markup:
    parts = [
        f'<svg class="overview {name}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        'aria-label="The data flow from input to loss, with the sizes of this input">'
        f'<defs><marker id="tip-{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    ]
    for path, kind, label in edges:
        parts.append(f'<path class="flow {kind}" d="{path}" marker-end="url(#tip-{name})"/>')
        if label:
            text, x, y = label.split("|")
            parts.append(f'<text class="note" x="{x}" y="{y}">{escape(text)}</text>')
    for key, node in nodes.items():
        parts.append(_box(node, boxes[key]))
    if name == "wide":
        parts.append('<g class="badge"><circle cx="12" cy="306" r="8"/><text x="12" y="310">2</text></g>')
        parts.append('<text class="note" x="26" y="310">inside: every attention layer rotates by 3-D position</text>')
    return Markup("".join([*parts, "</svg>"]))


def _box(node: Node, box: Box) -> str:
    lines = "".join(
        f'<text class="size" x="{box.x + 8}" y="{box.y + TOP + 14 + LINE * i}">{escape(line)}</text>'
        for i, line in enumerate(node.lines)
    )
    badge = ""
    if node.rotary:
        x, y = box.x + box.w - 2, box.y + 2
        badge = f'<g class="badge"><circle cx="{x}" cy="{y}" r="8"/><text x="{x}" y="{y + 4}">2</text></g>'
    return (
        f'<a href="#step-{node.number}"><g class="box {node.kind}">'
        f'<rect x="{box.x}" y="{box.y}" width="{box.w}" height="{box.h}" rx="7"/>'
        f'<text class="title" x="{box.x + 8}" y="{box.y + 20}">'
        f'<tspan class="number">{node.number}</tspan> {escape(node.title)}</text>{lines}</g></a>{badge}'
    )
