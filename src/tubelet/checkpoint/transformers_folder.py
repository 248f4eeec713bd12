"""A folder that `from_pretrained` of the `transformers` package loads: config, weights and video processor."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.checkpoint.hub import CARD_FILE, WEIGHTS_FILE, card_description
from tubelet.checkpoint.transformers import Values
from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD
from tubelet.io.files import atomic_write, directory_lock, file_errors
from tubelet.io.overwrite_checks import MODEL_MARK, check_output

_ZOOM = 256 / 224
"""Short side of a resized video over that of its center crop, in the evaluation of V-JEPA 2.0."""
_LOCK = ".convert.lock"
# A published constant of PIL: bilinear resampling.
_BILINEAR = 2


def write_folder(
    out: Path, values: Values, tensors: Mapping[str, Tensor], processor: Values, model_id: str, card: ModelCard
) -> str:
    """Write a model of `transformers`, and its card as README.md, unless there is one.

    Args:
        out: the folder.
        values: fields of config.json.
        tensors: tensors by name.
        processor: fields of video_preprocessor_config.json.
        model_id: name and fingerprint of the encoder.
        card: the model card.

    Returns:
        which card is in the folder, for a message.

    Raises:
        FileError: if the folder has files that this package did not write, or cannot be written.
    """
    check_output(out, "transformers")
    mark = {MODEL_MARK: model_id}
    values = values | {"dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch.")}
    with directory_lock(out, _LOCK, "write to another directory"), file_errors(out, "choose another directory"):
        try:
            with atomic_write(out / WEIGHTS_FILE, also=(SafetensorError,)) as partial:
                contiguous = {name: value.contiguous() for name, value in tensors.items()}
                save_file(contiguous, partial, {"format": "pt"} | mark)
            for name, fields in (("video_preprocessor_config.json", processor), ("config.json", values)):
                with atomic_write(out / name) as partial:
                    partial.write_text(json.dumps(fields | mark, indent=2) + "\n", encoding="utf-8")
            description = card_description(out)
            if not (out / CARD_FILE).exists():
                with atomic_write(out / CARD_FILE) as partial:
                    partial.write_text(str(card), encoding="utf-8")
            return description
        finally:
            (out / _LOCK).unlink(missing_ok=True)  # the directory is uploaded as it is


def vjepa2_processor(image_size: int) -> Values:
    """Fields of the `VJEPA2VideoProcessor`, which resizes to 256 / 224 of the crop."""
    return _processor("VJEPA2VideoProcessor", image_size, int(image_size * _ZOOM))


def tubelet_processor(image_size: int, frames: int, fps: float, resize: int | None = None) -> Values:
    """Fields of `tubelet.hf.TubeletVideoProcessor`.

    Args:
        image_size: side of the center crop.
        frames: frames of a clip.
        fps: frames per second of a clip.
        resize: length that the short side is resized to; None is `image_size`.
    """
    return _processor("TubeletVideoProcessor", image_size, resize or image_size) | {"num_frames": frames, "fps": fps}


def _processor(name: str, image_size: int, short_side: int) -> Values:
    return {
        "video_processor_type": name,
        "crop_size": {"height": image_size, "width": image_size},
        "size": {"shortest_edge": short_side},
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": list(IMAGENET_STD),
        "resample": _BILINEAR,
        "rescale_factor": 1 / 255,
    }
