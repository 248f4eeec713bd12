"""A trained encoder, and the one function that loads it from wherever it is.

model = tubelet.load("vjepa2.1-vitb16-384")
features = model.encode("film.mp4")
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from tubelet.checkpoint.hub import WEIGHTS_FILE, model_card, save_encoder
from tubelet.checkpoint.registry import HUB_OPTIONS, RELEASED, resolve_checkpoint
from tubelet.checkpoint.vjepa2_1 import load_strict, require_finite
from tubelet.checkpoint.weights import EncoderName, LoadSpec, read_weights
from tubelet.config import ModelConfig, to_dict
from tubelet.config.fields import nearest
from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD, normalise
from tubelet.device import pick_device, pick_dtype
from tubelet.errors import TubeletError, escape_unprintable, first_line
from tubelet.io.files import atomic_write
from tubelet.io.overwrite import check_output
from tubelet.model.encoder import Encoder
from tubelet.model.lora import apply_adapters
from tubelet.model.predictor import Predictor
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.inputs import DEFAULT_FPS, Resize, Sampling, check_resize, read_inputs, step_times
from tubelet.pretrained.sliding_windows import read_windows

FINGERPRINT_DIGITS = 16
_HASHED_AT_ONCE = 2**20  # values


class Backbone(Encoder, ModelHubMixin):
    """An encoder with everything that using it takes; made by `tubelet.load`.

    It has the interface that heads for ViTs expect of `timm`'s (`forward_intermediates` and the names around it), and
    `save_pretrained`, `from_pretrained` and `push_to_hub` of `huggingface_hub`.

    Attributes:
        model_id: name and fingerprint of the weights; the same wherever the file lies and whatever its format.
        encoder_name: "teacher" or "student".
        predictor: the predictor, if it was asked for.
    """

    predictor: Predictor | None
    num_prefix_tokens = 0
    num_classes = 0

    def __init__(self, config: ModelConfig, with_predictor: bool = False) -> None:
        super().__init__(config)
        self.predictor = Predictor(config) if with_predictor else None
        self.name = "untitled"
        self.encoder_name: EncoderName = "teacher"
        self.stored_dtype = self.dtype  # of the file that it was loaded from
        self._identified: tuple[int, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all weights as the file has them, or as they are if they were changed since."""
        if self._identified is None or self._identified[0] != self._changes():
            self.identify()
        assert self._identified is not None
        return self._identified[1]

    def identify(self) -> None:
        """Take the fingerprint of the weights as they are; a cast for computing with them keeps the one before."""
        self._identified = (self._changes(), _fingerprint(self.state_dict()))

    def _changes(self) -> int:
        """How often the weights were written to."""
        return sum(p._version for p in self.parameters() if not p.is_inference())

    def __getstate__(self) -> dict[str, Any]:
        # Copies begin to count at zero.
        return self.__dict__ | {"_identified": (0, self.fingerprint)}

    @property
    def model_id(self) -> str:
        """Such as "vjepa2.1-vitb16-384-teacher-1f2e3d4c5b6a7988": it changes when the weights do."""
        return f"{self.name}-{self.encoder_name}-{self.fingerprint}"

    @property
    def weights_id(self) -> str:
        """The same for the same weights of the same part, whatever they are called: features can be compared."""
        return f"{self.encoder_name}-{self.fingerprint}"

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits that change when a size or setting of the model does."""
        return hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tokenizer.video.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the encoder computes."""
        return self.tokenizer.video.weight.dtype

    @property
    def embed_dim(self) -> int:
        """D; what timm's models call it."""
        return self.config.width

    @property
    def num_features(self) -> int:
        """D, too."""
        return self.config.width

    @property
    def patch_size(self) -> int:
        """Pixels along a patch's side."""
        return self.config.patch_size

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """How pixels are normalised: (x / 255 - mean) / std of each colour, as timm's models tell it."""
        return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear"}

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """Module, channels and reduction of each block, as timm's models tell them."""
        sizes = {"num_chs": self.embed_dim, "reduction": self.patch_size}
        return [{"module": f"blocks.{i}"} | sizes for i in range(self.config.depth)]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, N, D) of normalised pixels (B, C, H, W) or (B, C, T, H, W), with gradients where they are wanted."""
        return self.norms[-1](self.get_intermediate_layers(_as_clip(x).to(self.dtype), [self.config.depth - 1])[0])

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
    ) -> Any:
        """The outputs of some blocks, as timm's ViTs give them.

        Args:
            x: normalised pixels (B, C, H, W) or (B, C, T, H, W).
            indices: the blocks, negative from the end; a number is the last so many, None all. Whatever their order
                here, they are given from shallow to deep, each once.
            return_prefix_tokens: accepted, there are none.
            norm: normalise them: a tapped level by its own norm, others by the last.
            stop_early: accepted; nothing is ever computed beyond what is asked for.
            output_fmt: "NCHW", which is (B, D, H', W') for images and (B, D, T', H', W') for clips, or "NLC" (B, N, D).
            intermediates_only: leave out the final features.
            output_dict: give a dictionary of `image_intermediates` and `image_features` instead.

        Returns:
            the list of intermediates, or the pair (final features (B, N, D), intermediates), or that as a dictionary.

        Raises:
            TubeletError: if a block is asked for that is not there, or another format.
        """
        depth = self.config.depth
        requested = range(depth) if indices is None else range(-indices, 0) if isinstance(indices, int) else indices
        blocks = sorted({int(i) + depth if i < 0 else int(i) for i in requested})
        if output_fmt not in ("NCHW", "NLC") or not blocks or not all(0 <= i < depth for i in blocks):
            raise TubeletError(
                f"blocks {indices} as {output_fmt!r}: expected some of 0..{depth - 1}, as 'NCHW' or 'NLC'"
            )
        clip = _as_clip(x).to(self.dtype)
        numbers = sorted({*blocks} if intermediates_only else {*blocks, depth - 1})
        outputs = dict(zip(numbers, self.get_intermediate_layers(clip, numbers), strict=True))
        intermediates = [self._norm_of(i)(outputs[i]) if norm else outputs[i] for i in blocks]
        if output_fmt == "NCHW":
            grid = self.tokenizer.grid(clip).shape if x.dim() == 5 else self.tokenizer.grid(clip).shape[1:]
            intermediates = [y.mT.unflatten(2, grid).contiguous() for y in intermediates]
        if intermediates_only:
            return {"image_intermediates": intermediates} if output_dict else intermediates
        final = self.norms[-1](outputs[depth - 1])
        return (
            {"image_intermediates": intermediates, "image_features": final} if output_dict else (final, intermediates)
        )

    def _norm_of(self, block: int) -> nn.Module:
        return self.norms[self.config.levels.index(block) if block in self.config.levels else -1]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Backbone:
        """`load` by the name that the Hub's users know."""
        return load(pretrained_model_name_or_path, **options)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As any module's; a warning where training would round most steps away."""
        if requires_grad and self.dtype.itemsize < 4:
            warnings.warn(
                f"weights in {_dtype_name(self.dtype)} round most steps of an optimiser away: "
                "load with dtype=torch.float32 to train them",
                stacklevel=2,
            )
        return super().requires_grad_(requires_grad)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write weights, config.json and, where there is none, a model card; options as of `huggingface_hub`.

        Raises:
            TubeletError: if the folder holds a config or weights that this package did not write.
        """
        check_output(Path(save_directory), "model")  # the mixin removes a config.json before it calls what follows
        result: str | None = super().save_pretrained(save_directory, **options)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.dtype.itemsize < self.stored_dtype.itemsize:
            warnings.warn(
                f"weights rounded to {_dtype_name(self.dtype)} are saved: load with dtype=torch.float32 to keep all",
                stacklevel=2,
            )
        self.identify()  # what is saved is what is in memory, be it a cast of what was loaded
        save_encoder(save_directory / WEIGHTS_FILE, self.state_dict(), self.config, self.name, self.encoder_name)
        # For readers and for the Hub, which counts its downloads; the weights file says the same in its header.
        stated = {"library_name": "tubelet", "model_id": self.model_id, "model": to_dict(self.config)}
        with atomic_write(save_directory / "config.json") as partial:
            partial.write_text(json.dumps(stated, indent=2) + "\n")

    def generate_model_card(
        self, license: str = "unknown", metrics: Mapping[str, float] | None = None, **_: Any
    ) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write, by their `model_card_kwargs`.

        Args:
            license: the weights' licence, by the Hub's identifiers: it is for their owner to say.
            metrics: what the features are worth, by name.
        """
        parameters = sum(p.numel() for p in self.parameters())
        return model_card(self.config, self.model_id, self.encoder_name, parameters, license, metrics or {})

    @torch.no_grad()
    def encode(
        self,
        x: Any,
        *,
        resize: Resize = None,
        frames: int = 16,
        fps: float | None = None,
        start: float | None = None,
    ) -> DenseFeatures:
        """Encode one picture or clip, or a batch.

        Args:
            x: a tensor or array: (H, W, 3) or (3, H, W) a picture, (T, H, W, 3) or (3, T, H, W) a clip, with a batch
                dimension in front several; uint8 colours, or floats that are normalised already. Or a PIL image; a list
                of pictures, which are the frames of one clip; the path or URL of a video or an image; or a list of any
                of these but pictures, which is a batch. What has one frame goes through the image tokenizer.
            resize: None takes pictures as they are, if they divide into patches; "round" brings each side to the
                nearest size that does; a number makes the middle square of that side; a pair is (height, width).
            frames: T, of a video file; an odd count repeats the last frame, with a warning.
            fps: frames per second that a video file is read at (4 by default); for frames in memory their own rate,
                for `times`.
            start: seconds into a video file at which the clip begins; None takes it from the middle.

        Raises:
            TubeletError: if x cannot be read, or does not divide into patches.
        """
        clips = read_inputs(x, self.config, Sampling(frames, fps, start), resize)
        return self._features(clips.pixels, clips.times)

    def stream(
        self,
        path: str | Path,
        *,
        frames: int = 16,
        overlap: int | None = None,
        fps: float | None = None,
        resize: Resize = None,
    ) -> Iterator[DenseFeatures]:
        """Encode all of a video, however long, in memory that does not grow.

        `DenseFeatures.merge(model.stream(path))` is the whole in one, which does take memory for all of it.

        Args:
            path: the video, or its URL.
            frames: T of a window; a video that is shorter is one window.
            overlap: frames that a window shares with the one before, half of them by default; the last may share more.
            fps: frames per second, 4 by default.
            resize: as in `encode`.

        Yields:
            The features of one window after the other, each a batch of one.

        Raises:
            TubeletError: if the video cannot be read, or the sizes do not divide into patches and tubelets.
        """
        check_resize(resize)
        Sampling(frames, fps)  # refuses odd numbers before a file is opened
        fps = DEFAULT_FPS if fps is None else fps
        if overlap is None:
            overlap = frames // 2 - frames // 2 % self.config.tubelet_size
        if not isinstance(overlap, (int, np.integer)):
            raise TubeletError(f"overlap is {overlap!r}, expected a whole number of frames")
        for pixels, times in read_windows(path, frames, overlap, fps, self.config.tubelet_size):
            clips = read_inputs(pixels, self.config, Sampling(), resize)
            with torch.no_grad():
                features = self._features(clips.pixels, times.unsqueeze(0))
            yield features  # not above: until the next window is asked for, gradients are the caller's affair

    def _features(self, pixels: Tensor, times: Tensor | None) -> DenseFeatures:
        """Features of whole clips (B, C, T, H, W), all levels, the times (B, T) of their frames beside them."""
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalise(pixels, self.dtype)
        elif not (pixels := pixels.to(self.dtype)).isfinite().all():
            raise TubeletError(
                f"pixel values are too large for {_dtype_name(self.dtype)}: normalise them, or give uint8"
            )
        grid = self.tokenizer.grid(pixels)
        outputs = self.get_intermediate_layers(pixels, self.config.levels)
        levels = tuple(norm(x) for norm, x in zip(self.norms, outputs, strict=True))
        return DenseFeatures(levels, grid, step_times(times, grid.t))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_clip(x: Tensor) -> Tensor:
    return x.unsqueeze(2) if x.dim() == 4 else x


def load(
    what: str | Path,
    *,
    encoder: EncoderName | None = None,
    with_predictor: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    heads: int | None = None,
    predictor_heads: int | None = None,
    levels: tuple[int, ...] | None = None,
    adapter: str | Path | None = None,
    sha256: str | None = None,
    **hub: Any,
) -> Backbone:
    """A trained encoder in eval mode, without gradients.

    Weights are mapped from their file and held once: what is not reordered, cast or moved stays there until it is used.

    Args:
        what: a run folder or one of its checkpoints, a .safetensors file or folder that `save_pretrained` wrote, a
            released .pt file, a released name such as "vjepa2.1-vitb16-384", or the id of a repository on the Hub.
        encoder: the teacher (Y-encoder), whose features are the better ones, or the student (X-encoder); None is the
            teacher, or whichever of the two is all that a file holds.
        with_predictor: load the predictor too, as `model.predictor`.
        device: an accelerator if there is one.
        dtype: bfloat16 where the device has units for it, else float32.
        heads: attention heads, of a .pt file of a width outside the family.
        predictor_heads: attention heads of the predictor in a .pt file of a width outside the family.
        levels: tapped blocks, of a .pt file outside the family.
        adapter: the `adapter` folder of a run that was trained with lora_rank from these weights, to be added to them.
        sha256: what the file must have, in hexadecimal.
        hub: revision, token, cache_dir, force_download, local_files_only, as `huggingface_hub` takes them.

    Raises:
        TubeletError: if there is no such model, or one of its tensors is missing, unexpected or misshapen: never is a
            part of it loaded and the rest left to chance.
    """
    for option in hub:
        if option not in HUB_OPTIONS:
            hint = nearest(option, [*signature(load).parameters, *HUB_OPTIONS])
            raise TubeletError(f"tubelet.load has no option {option!r}{hint}")
    chosen = _device(device)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TubeletError(f"dtype is {dtype!r}, expected one of PyTorch's floats, such as torch.bfloat16")
    model = load_unplaced(what, LoadSpec(encoder, with_predictor, heads, predictor_heads, levels), sha256, **hub)
    if adapter is not None:
        apply_adapters(model, Path(adapter))
        require_finite(model.state_dict(), str(adapter))
        model.identify()
    model = model.to(chosen, dtype or pick_dtype("auto", chosen))
    if model.dtype == torch.float16:
        require_finite(model.state_dict(), f"{what} as float16, which ends at 65,504 (bfloat16 does not)")
    return model


def random_init_like(model: Backbone, seed: int) -> Backbone:
    """The same network with the initial weights that `seed` gives, on the same device; what training has to beat."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = Backbone(model.config, model.predictor is not None)
    twin.name = "random"
    twin.identify()
    return twin.requires_grad_(False).eval().to(model.device, model.dtype)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return pick_device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # PyTorch raises any of them
        raise TubeletError(f"device is {str(device)!r}, which cannot be used here ({first_line(error)})") from error


def load_unplaced(what: str | Path, spec: LoadSpec, sha256: str | None = None, **hub: Any) -> Backbone:
    """`load`, the numbers as they are in the file."""
    if spec.encoder is not None and spec.encoder not in get_args(EncoderName):
        raise TubeletError(f"encoder is {spec.encoder!r}, expected 'teacher' or 'student'")
    path = resolve_checkpoint(what, sha256, **hub)
    weights = read_weights(path, _name_of(what, path), spec)
    with torch.device("meta"):
        model = Backbone(weights.config, spec.predictor)
    state = weights.encoder | {f"predictor.{name}": value for name, value in weights.predictor.items()}
    load_strict(model, state, str(path), assign=True)
    model.name, model.encoder_name = escape_unprintable(weights.name), weights.encoder_name
    model.stored_dtype = model.dtype
    model.identify()
    return model.requires_grad_(False).eval()


def _name_of(what: str | Path, path: Path) -> str:
    """A released name, also of a file that is given by its path; a Hub id; or the name of the file or folder."""
    released = {file: name for name, file in RELEASED.items()}
    if not Path(what).expanduser().exists():
        return str(what)
    path = path.resolve()
    return released.get(path.name, path.name if path.is_dir() else path.stem)


def _fingerprint(state: Mapping[str, Tensor]) -> str:
    """Of the names, shapes and all values of an encoder's tensors, whatever float type they are stored in."""
    names = [name for name in sorted(state) if not name.startswith("predictor.")]
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashing lets other threads run meanwhile
        digests = list(pool.map(lambda name: _hash_values(state[name]), names))
    digest = hashlib.sha256()
    for name, own in zip(names, digests, strict=True):
        digest.update(f"{name}{tuple(state[name].shape)}".encode() + own)
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


@torch.no_grad()
def _hash_values(tensor: Tensor) -> bytes:
    """A hash of all values of a tensor as fp32, piece by piece: a cast of all of it would take memory."""
    digest = hashlib.sha256()
    for values in tensor.detach().reshape(-1).split(_HASHED_AT_ONCE):
        digest.update(values.to("cpu", torch.float32).contiguous().numpy())
    return digest.digest()
