"""The head file: a trained head with everything that is needed to apply it, in one safetensors file.

B clips, T time steps, S cells of a time step, D channels, K classes or targets.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tubelet.checkpoint.registry import resolve_head
from tubelet.checkpoint.state_dict import load_strict
from tubelet.config.fields import Frames, Rate, Seconds, Settings, Side, from_dict, nearest, require, to_dict
from tubelet.data.clips import crops_along, resize_center_crop
from tubelet.errors import CheckpointError, ConfigError, DataError
from tubelet.heads.adaptation import adapted_fingerprint, with_encoder_weights
from tubelet.heads.head_network import CLIP_TASKS, HeadNetwork
from tubelet.heads.novelty import NoveltyModel
from tubelet.io.arrays import read_safetensors
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import file_error, parse_json
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.value_checks import Bounds

FORMAT = "tubelet-head-1"
FORMAT_2 = "tubelet-head-2"
"""Format of the files of heads that use one of `_FIELDS_OF_2`, which code before them would not apply; other heads are
written in the first one."""
NO_LABEL = "no label"
"""Class of time steps without a label, where classes exclude each other; no span is reported of it."""
_REMEDY = "fit the head again with `tubelet fit`"
_ENCODER = "encoder."
_FIELDS_OF_2 = {"causal": False, "resize": None, "views": 1, "padded": False}  # of `HeadInput`, and their defaults


@dataclass(frozen=True, kw_only=True)
class HeadInput(Settings):
    """The clips that a head takes, and how their tokens are reduced.

    Attributes:
        image_size: side of the center crop, in pixels.
        frames: frames of a clip; 1 for images.
        fps: frames per second of a clip.
        stride_s: seconds from clip to clip of a video.
        levels: output levels whose channels are concatenated; -1 is the deepest.
        cells: side of the grid that the tokens of each time step are averaged to; 0 keeps all tokens.
        causal: whether an answer comes from frames up to its time only, of clips that end there.
        resize: length of the short side in pixels that frames are resized to before their center is cropped; None is
            `image_size`.
        views: squares from one end of the long side to the other, over which scores are averaged; 1 is the center.
        padded: whether the last frame of a video shorter than a clip is repeated; otherwise such a video is shown at a
            higher rate. Timelines are always padded.
    """

    image_size: Side
    frames: Frames
    fps: Rate
    stride_s: Seconds
    levels: tuple[int, ...] = (-1,)
    cells: Annotated[int, Bounds(0, 8192)] = 0
    causal: bool = False
    resize: int | None = None
    views: int = 1
    padded: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.resize is None or self.resize >= self.image_size,
            "resize",
            f"is {self.resize}, expected at least image_size, {self.image_size}",
        )
        require(
            self.views == 1 or (self.views > 1 and self.resize is None),
            "views",
            f"is {self.views} and resize is {self.resize}, expected 1, or more without resize",
        )

    def crop_views(self, frames: Tensor) -> Tensor:
        """The squares of decoded frames that the head is shown: (T, H, W, C) -> (views, C, T, S, S), S = image_size."""
        if self.views == 1:
            return resize_center_crop(frames, self.image_size, self.resize).unsqueeze(0)
        crops = crops_along(frames, self.image_size, self.views)
        return crops.expand(self.views, *crops.shape[1:])  # a square frame has one

    def to_fields(self) -> dict[str, Any]:
        """The settings, ready for JSON, without those of format 2 that have their default."""
        return {
            name: value
            for name, value in to_dict(self).items()
            if name not in _FIELDS_OF_2 or value != _FIELDS_OF_2[name]
        }


@dataclass(frozen=True, kw_only=True)
class EncoderId(Settings):
    """The encoder that a head was trained on.

    Attributes:
        source: argument of `tubelet.load` that it was loaded by.
        model_id: name and fingerprint.
        weights_id: encoder and fingerprint, which `check_encoder` compares.
        config_hash: hash of the settings of the model.
    """

    source: str
    model_id: str
    weights_id: str
    config_hash: str


@dataclass(frozen=True, kw_only=True)
class SpanRule(Settings):
    """How the score of one class over time becomes spans; `tubelet.heads.spans` applies it.

    Attributes:
        on: score that a span reaches in at least one of its steps.
        off: score from which a step belongs to a span, at most `on`; edges lie where the score crosses it. Where
            classes exclude each other, 0 means that every moment has a class.
        min_length_s: seconds below which a span is dropped.
        max_gap_s: seconds between two spans up to which they are joined.
    """

    on: float
    off: float
    min_length_s: float
    max_gap_s: float


@dataclass(frozen=True, kw_only=True)
class MetricInterval(Settings):
    """A metric on held-out files.

    Attributes:
        name: name of the metric.
        value: the value in `unit`.
        low: lower end of the 95 % interval; None if that cannot be estimated from so few files.
        high: upper end of the 95 % interval; None if that cannot be estimated from so few files.
        unit: "%", "s", ...; None for a plain number.
        higher_is_better: the better direction.
        files: number of independent files, or groups of files, that the interval is from.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str | None = None
    higher_is_better: bool = True
    files: int = 0

    def __str__(self) -> str:
        digits = 1 if self.unit == "%" else 3
        low, high = ("?" if end is None else f"{end:.{digits}f}" for end in (self.low, self.high))
        return f"{self.value:.{digits}f} [{low}, {high}]" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True, kw_only=True)
class ModelMetrics(Settings):
    """The metrics of the head or of a baseline on the same held-out files.

    Attributes:
        model: "this head", "majority class", "k-NN on pixels", "motion energy", "random weights", ...
        metrics: the metrics, the most important first.
    """

    model: str
    metrics: tuple[MetricInterval, ...]


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Settings):
    """Everything about a head but its weights; the JSON in the header of a head file.

    Attributes:
        task: name of the task, such as "timeline".
        network: name of the module in `tubelet.heads.networks`.
        options: keyword arguments of the network, besides `width` and `classes`.
        width: D, channels of a token over all levels.
        classes: K names of classes, or of the targets of a regression, in the order of the outputs.
        input: the clips.
        encoder: the encoder.
        exclusive: whether one class excludes the others.
        thresholds: score from which each class counts as present; empty where classes are exclusive.
        spans: for each class how its score becomes spans; empty for tasks without spans.
        temperature: divisor of the logits, fitted on a part of the training files that was left out for it.
        novelty_quantiles: distances from the training features at the quantiles 0, 0.01, ..., 1 of held-out features;
            empty if they were not measured.
        labels_file: name of the label table.
        labels_digest: hash of its content.
        labels_rows: number of its rows.
        scores: metrics on held-out files, of this head first, then of baselines.
        finetuned: "lora" or "full" where the encoder was trained too, whose weights are then in the file; None for a
            frozen encoder.
        version: version of the package that wrote the file.
    """

    task: str
    network: str
    options: dict[str, Any]
    width: int
    classes: tuple[str, ...]
    input: HeadInput
    encoder: EncoderId
    exclusive: bool = True
    thresholds: tuple[float, ...] = ()
    spans: tuple[SpanRule, ...] = ()
    temperature: Annotated[float, Bounds(0, 1e6, exclusive=True)] = 1.0
    novelty_quantiles: tuple[float, ...] = ()
    labels_file: str | None = None
    labels_digest: str | None = None
    labels_rows: int = 0
    scores: tuple[ModelMetrics, ...] = ()
    finetuned: Literal["lora", "full"] | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.input.views == 1 or self.task in CLIP_TASKS,
            "views",
            f"is {self.input.views} and task is {self.task!r}, expected 1 for other tasks than those on clips",
        )


class Head(nn.Module):
    """A trained head: the tokens of clips to probabilities or values.

    Attributes:
        spec: everything but the weights.
        network: the network, which gives logits.
        target_mean: (K,) mean of the targets of a regression, 0 for other tasks.
        target_scale: (K,) standard deviation of the targets of a regression, 1 for other tasks.
        novelty: distance of a clip from the training features; None if it was not fitted.
        encoder_weights: name -> tensor, the weights of the encoder that were trained with the network: all of them, or
            those of its adapters; empty for a frozen encoder. They are not parameters of this module, see `adapt`.
        training_files: hashes of the files that it was trained on, see `tubelet.heads.training_files`; empty if they
            are not known.
    """

    target_mean: Tensor
    target_scale: Tensor
    training_files: tuple[str, ...] = ()

    def __init__(
        self,
        spec: HeadSpec,
        network: nn.Module | None = None,
        novelty: NoveltyModel | None = None,
        encoder_weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Create a head.

        Args:
            spec: everything but the weights.
            network: the network; None creates the one that the spec names, with random weights.
            novelty: model of the training features.
            encoder_weights: weights of the encoder that were trained with the network, on the CPU.
        """
        super().__init__()
        self.spec = spec
        self.encoder_weights = dict(encoder_weights or {})
        self.network = network or make_network(spec.network, spec.width, len(spec.classes), spec.options)
        self.novelty = novelty
        self.register_buffer("target_mean", torch.zeros(len(spec.classes)))
        self.register_buffer("target_scale", torch.ones(len(spec.classes)))

    def forward(self, features: Tensor | DenseFeatures) -> Tensor:
        """Apply the head.

        Args:
            features: tokens (B, T, S, D) as `reduce_tokens` gives them, or features of the encoder.

        Returns:
            (B, K) for clips, (B, T, K) for timelines, (B, T, S, K) for segmentation and depth: probabilities of
            classes, or values in the units of the targets.

        Raises:
            DataError: if features are of another type, or have other sizes.
        """
        if isinstance(features, DenseFeatures):
            features = reduce_tokens(features, self.spec.input)
        self._check_tokens(features)
        logits = self.network(features.to(self.target_mean.dtype))
        if self.spec.task in ("regression", "depth"):
            return logits * self.target_scale + self.target_mean
        logits = logits / self.spec.temperature
        return logits.softmax(-1) if self.spec.exclusive else logits.sigmoid()

    def _check_tokens(self, tokens: Tensor) -> None:
        """Refuse what are not tokens (B, T, S, D), such as pixels."""
        width, shape = self.spec.width, tokens.shape if isinstance(tokens, Tensor) else ()
        if len(shape) != 4 or shape[-1] != width or 0 in shape[1:]:
            found = (
                f"a tensor of shape {tuple(shape)}"
                if isinstance(tokens, Tensor)
                else f"of type {type(tokens).__name__}"
            )
            raise DataError(
                f"features are {found}, expected those of model.encode, or tokens of shape (clips, time steps, cells, "
                f"{width})"
            )

    def check_encoder(self, model: Backbone) -> None:
        """Refuse an encoder that the head was not trained on.

        Raises:
            ConfigError: names both encoders.
        """
        if model.weights_id != self.spec.encoder.weights_id:
            raise ConfigError(
                f"this head was trained on the encoder {self.spec.encoder.model_id}, found {model.model_id}; load "
                f"that encoder (it was {self.spec.encoder.source}), or fit the head again"
            )

    def adapt(self, model: Backbone) -> Backbone:
        """The encoder whose features the head takes.

        Args:
            model: the encoder that the head was trained on, as `tubelet.load` returns it. It is not changed.

        Returns:
            `model` itself if the encoder was frozen, or is adapted to this head already; otherwise a copy with the
            trained weights, of the same device and data type, whose `weights_id` differs.

        Raises:
            ConfigError: if the head was trained on another encoder.
            CheckpointError: if the weights in the head file do not fit the encoder.
        """
        if model.weights_id == self.adapted_weights_id:
            return model
        self.check_encoder(model)
        assert self.spec.finetuned is not None
        return with_encoder_weights(model, self.encoder_weights, self.spec.finetuned)

    @cached_property
    def adapted_weights_id(self) -> str:
        """The `weights_id` of the encoder whose features the head takes, see `adapt`."""
        if self.spec.finetuned is None:
            return self.spec.encoder.weights_id
        encoder, _, fingerprint = self.spec.encoder.weights_id.partition("-")
        return f"{encoder}-{adapted_fingerprint(fingerprint, self.encoder_weights)}"

    def save(self, path: str | Path) -> None:
        """Write the head file.

        Raises:
            FileError: if it cannot be written, or the path has a file that is not a head.
        """
        path = Path(path)
        check_output(path, "head")
        clips = self.spec.input.to_fields()
        header = {
            "format": FORMAT_2 if clips.keys() & _FIELDS_OF_2 else FORMAT,
            "head": json.dumps(to_dict(self.spec) | {"input": clips}, sort_keys=True),
        }
        if self.training_files:
            header["training_files"] = " ".join(self.training_files)
        state = self.state_dict() | {_ENCODER + name: value for name, value in self.encoder_weights.items()}
        tensors = {name: value.contiguous().cpu() for name, value in state.items()}
        with atomic_write(path, also=(SafetensorError,)) as partial:
            save_file(tensors, partial, header)


def load_head(path: str | Path, device: torch.device | str = "cpu", **hub: Any) -> Head:
    """Load a head file, in eval mode.

    Args:
        path: the file, or a head on the Hub: owner/name/heads/HEAD.safetensors.
        device: device of the head.
        hub: options of `huggingface_hub`: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        CheckpointError: if the file is damaged, or is not a head.
        MissingFileError: if it does not exist.
    """
    path = resolve_head(path, **hub)
    tensors, header = read_safetensors(path, _REMEDY)
    if header.get("format") not in (FORMAT, FORMAT_2):
        stored_format = header.get("format", "no head")
        problem = f"its format is {stored_format!r:.60}, expected {FORMAT!r} or {FORMAT_2!r}"
        raise file_error(path, problem, _REMEDY, CheckpointError)
    spec: HeadSpec = from_dict(HeadSpec, parse_json(header.get("head", ""), path, dict[str, Any], _REMEDY), str(path))
    novelty = NoveltyModel.empty_like(tensors) if "novelty.mean" in tensors else None
    encoder_weights = {name.removeprefix(_ENCODER): tensors[name] for name in tensors if name.startswith(_ENCODER)}
    if bool(encoder_weights) != bool(spec.finetuned):
        what = "has no weights of an encoder" if spec.finetuned else "has weights of an encoder"
        raise file_error(path, f"finetuned is {spec.finetuned} and the file {what}", _REMEDY, CheckpointError)
    head = Head(spec, novelty=novelty, encoder_weights=encoder_weights)
    head.training_files = tuple(header.get("training_files", "").split())
    load_strict(head, {name: tensors[name] for name in tensors if not name.startswith(_ENCODER)}, str(path))
    return head.to(device).requires_grad_(False).eval()


def reduce_tokens(features: DenseFeatures, head_input: HeadInput) -> Tensor:
    """Tokens of an encoder as a head takes them.

    Args:
        features: of B clips.
        head_input: levels and cells.

    Returns:
        (B, T, S, D): levels are concatenated along D, and the tokens of a time step averaged to S cells, or all kept.

    Raises:
        ConfigError: if there are no such levels.
    """
    count = len(features.levels)
    if not all(-count <= level < count for level in head_input.levels):
        raise ConfigError(
            f"levels are {head_input.levels} in the head, but the encoder has {count}; fit the head again"
        )
    tokens = torch.cat([features.levels[level] for level in head_input.levels], dim=-1)
    grid, cells = features.grid, head_input.cells
    maps = tokens.unflatten(1, grid.shape)  # (B, T, H, W, D)
    if not cells or (grid.h <= cells and grid.w <= cells):
        return maps.flatten(2, 3)
    images = maps.flatten(0, 1).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(images, (min(cells, grid.h), min(cells, grid.w)))
    return pooled.flatten(2).transpose(1, 2).unflatten(0, (-1, grid.t))


def get_network(name: str) -> type[HeadNetwork]:
    """The class of a network by the name of its module in `tubelet.heads.networks`.

    Raises:
        ConfigError: if there is none, naming the nearest.
    """
    if name not in network_names():
        raise ConfigError(
            f"network is {name!r}, expected one of {', '.join(network_names())}{nearest(name, network_names())}"
        )
    network: type[HeadNetwork] = importlib.import_module(f"tubelet.heads.networks.{name}").NETWORK
    return network


def make_network(name: str, width: int, classes: int, options: Mapping[str, Any]) -> HeadNetwork:
    """A network with random weights.

    Args:
        name: name of its module.
        width: D, channels of a token.
        classes: K, number of outputs.
        options: further keyword arguments.
    """
    create: Callable[..., HeadNetwork] = get_network(name)  # each class has keyword arguments of its own
    return create(width, classes, **options)


def network_names() -> list[str]:
    """Names of all networks."""
    package = importlib.import_module("tubelet.heads.networks")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))
