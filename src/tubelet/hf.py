"""Models of this package in the `transformers` package: importing this module registers them with its Auto classes.

A folder of `tubelet convert MODEL FOLDER --to transformers` then loads by `AutoModel`, with a head by
`AutoModelForVideoClassification` and `pipeline("video-classification")`, its clips by `AutoVideoProcessor`, and it is
trained by `Trainer` and `peft` like any other model.

Example:
    ```python
    import tubelet.hf
    from transformers import AutoModel, AutoVideoProcessor

    model = AutoModel.from_pretrained("transformers-model")
    processor = AutoVideoProcessor.from_pretrained("transformers-model")
    tokens = model(**processor("video.mp4")).last_hidden_state
    ```
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tubelet.checkpoint.transformers import MODEL_TYPE
from tubelet.config import ModelConfig, to_dict
from tubelet.config.fields import from_dict
from tubelet.config.model import vit_b
from tubelet.data.clips import center_clip_times, normalize, resize_center_crop
from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.stacks import is_image_file
from tubelet.errors import DataError, MissingPackageError
from tubelet.heads.head_file import HeadInput, make_network, reduce_tokens
from tubelet.heads.standardization import Standardization
from tubelet.model.encoder import Encoder
from tubelet.model.layers import INIT_STD
from tubelet.model.predictor import Predictor
from tubelet.pretrained.dense_features import DenseFeatures

try:
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForVideoClassification,
        BatchFeature,
        PreTrainedConfig,
        PreTrainedModel,
    )
    from transformers.modeling_outputs import ImageClassifierOutput, ModelOutput
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor  # without torchvision it is only here
    from transformers.video_processing_utils import VideoProcessorMixin
except ImportError as error:
    raise MissingPackageError("tubelet.hf needs transformers 5.20 or later: pip install 'tubelet[hf]'") from error

_DEFAULT_HEAD: dict[str, Any] = {
    "network": "attentive",
    "options": {},
    "temperature": 1.0,
    "input": {"levels": [-1], "cells": 0},
}


class TubeletConfig(PreTrainedConfig):
    """Config of a model of this package.

    Attributes:
        model: fields of `tubelet.config.ModelConfig`.
        with_predictor: whether the folder has the predictor's weights.
        name: name of the weights.
        encoder_name: "teacher" or "student".
        image_size: side of the images in pixels.
        num_frames: frames of a clip.
        fps: frames per second of a clip.
        head: network, options, input and temperature of the classification head; None is an attentive probe.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        with_predictor: bool = False,
        name: str = "untitled",
        encoder_name: str = "teacher",
        image_size: int = 256,
        num_frames: int = 16,
        fps: float = 4.0,
        head: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.model = to_dict(vit_b()) if model is None else model
        self.with_predictor = with_predictor
        self.name = name
        self.encoder_name = encoder_name
        self.image_size = image_size
        self.num_frames = num_frames
        self.fps = fps
        self.head = head
        sizes = self.architecture
        kwargs |= {
            "hidden_size": sizes.width,
            "num_hidden_layers": sizes.depth,
            "num_attention_heads": sizes.heads,
        }
        super().__init__(**kwargs)

    @property
    def architecture(self) -> ModelConfig:
        """The architecture of encoder and predictor."""
        config: ModelConfig = from_dict(ModelConfig, self.model, "config.json")
        return config


@dataclass
class TubeletOutput(ModelOutput):
    """Output of `TubeletModel`.

    Attributes:
        last_hidden_state: (B, N, D), the deepest level.
        levels: output levels, (B, N, D) each, shallow to deep.
    """

    last_hidden_state: Tensor | None = None
    levels: tuple[Tensor, ...] | None = None


class TubeletPreTrainedModel(PreTrainedModel):
    """What the models have in common: the config, and initial weights of tensors that a folder does not have."""

    config_class = TubeletConfig
    base_model_prefix = MODEL_TYPE
    main_input_name = "pixel_values_videos"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Standardization):
            nn.init.zeros_(module.mean)
            nn.init.ones_(module.scale)
        for parameter in module.parameters(recurse=False):
            if not isinstance(module, (nn.Linear, nn.LayerNorm)):
                nn.init.trunc_normal_(parameter, std=INIT_STD)


class TubeletModel(TubeletPreTrainedModel):
    """An encoder, with its predictor if the folder has it."""

    def __init__(self, config: TubeletConfig) -> None:
        super().__init__(config)
        self.gradient_checkpointing = False
        self.encoder = Encoder(config.architecture)
        self.predictor = Predictor(config.architecture) if config.with_predictor else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The video tokenizer."""
        return self.encoder.tokenizer.video

    def forward(
        self, pixel_values_videos: Tensor, return_dict: bool | None = None, **_: Any
    ) -> TubeletOutput | tuple[Any, ...]:
        """Encode clips.

        Args:
            pixel_values_videos: (B, T, C, H, W) normalized pixels of the video processor; T = 1 is an image.
            return_dict: whether to return an object rather than a tuple; by default as the config says.

        Returns:
            The features of all output levels.
        """
        self.encoder.recompute_activations = self.gradient_checkpointing and self.training
        pixels = pixel_values_videos.transpose(1, 2).to(self.dtype)
        outputs = self.encoder.get_intermediate_layers(pixels, self.encoder.config.levels)
        levels = tuple(norm(x) for norm, x in zip(self.encoder.norms, outputs, strict=True))
        output = TubeletOutput(last_hidden_state=levels[-1], levels=levels)
        as_object = self.config.return_dict if return_dict is None else return_dict
        return output if as_object else output.to_tuple()


class TubeletForVideoClassification(TubeletPreTrainedModel):
    """An encoder with a head of this package for the classes of clips."""

    def __init__(self, config: TubeletConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.tubelet = TubeletModel(config)
        head = _DEFAULT_HEAD | (config.head or {})
        self.temperature = float(head["temperature"])
        defaults = {"image_size": config.image_size, "frames": config.num_frames, "fps": config.fps, "stride_s": 1.0}
        self.head_input: HeadInput = from_dict(HeadInput, defaults | head["input"], "config.json: head.input")
        width = config.hidden_size * len(self.head_input.levels)
        self.head = make_network(head["network"], width, config.num_labels, head["options"])
        self.post_init()

    def forward(
        self,
        pixel_values_videos: Tensor,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> ImageClassifierOutput | tuple[Any, ...]:
        """Classify clips.

        Args:
            pixel_values_videos: (B, T, C, H, W) normalized pixels, as the video processor gives them.
            labels: (B,) classes, or (B, K) 0 or 1 for each class of a multilabel head.
            return_dict: whether to return an object rather than a tuple; by default as the config says.

        Returns:
            The loss, where there are labels, and (B, K) logits.
        """
        outputs = self.tubelet(pixel_values_videos, return_dict=True)
        grid = self.tubelet.encoder.tokenizer.grid(pixel_values_videos.transpose(1, 2))
        tokens = reduce_tokens(DenseFeatures(outputs.levels, grid, None), self.head_input)
        logits = self.head(tokens.to(next(self.head.parameters()).dtype)) / self.temperature
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        as_object = self.config.return_dict if return_dict is None else return_dict
        return output if as_object else output.to_tuple()


class TubeletVideoProcessor(VideoProcessorMixin):
    """Videos and images to normalized clips, as `tubelet predict` prepares them: the middle square, resized.

    Files are decoded by this package, at `fps` from their middle.
    """

    model_input_names = ("pixel_values_videos",)

    def __init__(
        self,
        crop_size: int | dict[str, int] = 256,
        num_frames: int = 16,
        fps: float = 4.0,
        size: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        side = crop_size["height"] if isinstance(crop_size, dict) else crop_size
        self.size = {"shortest_edge": side} if size is None else size
        self.crop_size = {"height": side, "width": side}
        self.num_frames = num_frames
        self.fps = fps

    def __call__(self, videos: Any, **kwargs: Any) -> BatchFeature:
        """As `preprocess`."""
        return self.preprocess(videos, **kwargs)

    def preprocess(
        self, videos: Any, num_frames: int | None = None, do_sample_frames: bool | None = None, **_: Any
    ) -> BatchFeature:
        """Prepare one video or a batch.

        Args:
            videos: the path or URL of a video or an image; frames (T, H, W, 3) or (T, 3, H, W) of uint8 colors, as an
                array, a tensor or a list of images; or a list of any of these.
            num_frames: frames to read of a file; None is the number in the config.
            do_sample_frames: whether to take `num_frames` of frames in memory too, at equal distances.

        Returns:
            `pixel_values_videos`, (B, T, 3, S, S) floats.

        Raises:
            DataError: if a video cannot be read, or is not of uint8 colors.
        """
        if isinstance(videos, (str, Path, Image.Image)) or getattr(videos, "ndim", 0) == 4 or _is_frames(videos):
            videos = [videos]
        count = num_frames or self.num_frames
        side, short = self.crop_size["height"], self.size["shortest_edge"]
        frames = [self._frames(video, count, bool(do_sample_frames)) for video in videos]
        clips = [resize_center_crop(each, side, short) for each in frames]
        pixels = normalize(torch.stack(clips)).transpose(1, 2).contiguous()
        return BatchFeature(data={"pixel_values_videos": pixels})

    def _frames(self, video: Any, count: int, sample: bool) -> Tensor:
        """(T, H, W, 3) uint8 frames of one video."""
        if isinstance(video, (str, Path)):
            return self._read(video, count)
        if isinstance(video, Image.Image):
            video = [video]
        images = video if isinstance(video, (np.ndarray, Tensor)) else np.stack([np.asarray(image) for image in video])
        frames = torch.as_tensor(images)
        if frames.dim() == 4 and frames.shape[-1] != 3 and frames.shape[1] == 3:
            frames = frames.permute(0, 2, 3, 1)
        if frames.dim() != 4 or frames.shape[-1] != 3 or frames.dtype != torch.uint8:
            raise DataError(
                f"a video has shape {tuple(frames.shape)} and type {frames.dtype}, expected (frames, height, width, 3) "
                "of uint8"
            )
        if sample and len(frames) > count:
            frames = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
        return frames

    def _read(self, path: str | Path, count: int) -> Tensor:
        if is_image_file(path):
            return read_image(path).unsqueeze(0)
        with Video(path) as video:
            times, _ = center_clip_times(video.info, count, self.fps)
            (clip,) = video.clips([times])
        return clip.pixels


def _is_frames(videos: Any) -> bool:
    """Whether a list is of the frames of one video."""
    return isinstance(videos, (list, tuple)) and all(
        isinstance(frame, Image.Image) or getattr(frame, "ndim", 0) == 3 for frame in videos
    )


AutoConfig.register(MODEL_TYPE, TubeletConfig)
AutoModel.register(TubeletConfig, TubeletModel)
AutoModelForVideoClassification.register(TubeletConfig, TubeletForVideoClassification)
AutoVideoProcessor.register(TubeletConfig, TubeletVideoProcessor)
