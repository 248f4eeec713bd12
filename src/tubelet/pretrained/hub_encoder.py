"""The encoder with a name and fingerprint, and with the methods of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard, ModelHubMixin

from tubelet.checkpoint.hub import WEIGHTS_FILE, model_card, save_encoder
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.weights import EncoderName
from tubelet.config import ModelConfig, to_dict
from tubelet.config.fields import check
from tubelet.errors import ConfigError
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import check_output
from tubelet.model.predictor import Predictor
from tubelet.pretrained.fingerprint import hash_weights
from tubelet.pretrained.timm_encoder import TimmEncoder
from tubelet.user_warnings import warn_user


class HubEncoder(TimmEncoder, ModelHubMixin):
    """An encoder with a name, a fingerprint of its weights, and methods to save and upload it.

    Attributes:
        name: what the model is called, wherever its file lies.
        model_id: name and fingerprint of the weights; the same wherever the file lies and whatever its format.
        encoder_name: "teacher" or "student".
        native_clip: size, length and rate of the clips that it is for.
        predictor: the predictor, or None.
        stored_dtype: data type of the weights in the file that they were loaded from.
        int8: whether linear layers have 8-bit weights, see `tubelet.load`.
        compiled: whether blocks were compiled, see `tubelet.load`.
    """

    predictor: Predictor | None
    int8 = False
    compiled = False

    def __init__(self, config: ModelConfig, with_predictor: bool = False) -> None:
        """Create an encoder with random weights, as at the start of training.

        Args:
            config: the architecture, such as `model_preset("vit-b")`, or the `config` of another model.
            with_predictor: whether it has a predictor.
        """
        check(bool, with_predictor, "with_predictor")
        if not isinstance(config, ModelConfig):
            raise ConfigError(
                f"config is of type {type(config).__name__}, expected a ModelConfig, such as model_preset('vit-b'); "
                "tubelet.load takes names and paths"
            )
        super().__init__(config)
        self.predictor = Predictor(config) if with_predictor else None
        self.name = "untitled"
        self.native_clip = NativeClip.of_name(self.name, config)
        self.encoder_name: EncoderName = "teacher"
        self.stored_dtype = self.dtype  # of the file that it was loaded from
        self._identified: tuple[int, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the weights as stored in the file, or of the current ones if they changed."""
        if self._identified is None or self._identified[0] != self._changes():
            self.identify()
        assert self._identified is not None
        return self._identified[1]

    def identify(self, fingerprint: str | None = None) -> None:
        """Compute the fingerprint of the current weights; a later cast of the data type keeps it.

        Args:
            fingerprint: the fingerprint, where it is known already.
        """
        self._identified = (self._changes(), fingerprint or hash_weights(self.state_dict()))

    def _changes(self) -> int:
        """Number of in-place modifications of the weights."""
        return sum(p._version for p in self.parameters() if not p.is_inference())

    def __getstate__(self) -> dict[str, Any]:
        # Copies count from zero.
        return super().__getstate__() | {"_identified": (0, self.fingerprint)}

    @property
    def model_id(self) -> str:
        """Name and fingerprint, such as "vjepa2.1-vitb16-384-teacher-1f2e3d4c5b6a7988"."""
        return f"{self.name}-{self.encoder_name}-{self.fingerprint}"

    @property
    def weights_id(self) -> str:
        """Encoder and fingerprint without the name: features of models with equal `weights_id` are comparable."""
        return f"{self.encoder_name}-{self.fingerprint}"

    @property
    def config_hash(self) -> str:
        """Twelve hexadecimal digits of a hash of the model's config."""
        return hashlib.sha256(json.dumps(to_dict(self.config), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """Alias of `tubelet.load`, under the name of the Hub's mixin."""
        from tubelet.pretrained.load import load

        return load(pretrained_model_name_or_path, **options)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As `nn.Module.requires_grad_`, with a warning if the data type is too coarse for training."""
        if requires_grad and self.dtype.itemsize < 4:
            warn_user(
                f"weights in {_dtype_name(self.dtype)} round most optimizer steps to nothing; "
                "load with dtype=torch.float32 for training"
            )
        return super().requires_grad_(requires_grad)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write weights, config.json and, where there is none, a model card; options as of `huggingface_hub`.

        Raises:
            ConfigError: if the weights are 8-bit ones.
            FileError: if the directory has a config or weights that this package did not write.
        """
        if self.int8:
            raise ConfigError("8-bit weights are not saved; load the model without int8, and save that")
        check_output(Path(save_directory), "model")  # before the mixin deletes config.json
        result: str | None = super().save_pretrained(save_directory, **options)
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        if self.dtype.itemsize < self.stored_dtype.itemsize:
            warn_user(
                f"weights rounded to {_dtype_name(self.dtype)} are saved: load with dtype=torch.float32 to keep all"
            )
        self.identify()  # of the weights in memory, which may be a cast of the loaded ones
        file = save_directory / WEIGHTS_FILE
        save_encoder(file, self.state_dict(), self.config, self.name, self.encoder_name, self.native_clip)
        # For people and for the Hub, which counts its downloads; the header of the weights file has the same.
        config = {"library_name": "tubelet", "model_id": self.model_id, "model": to_dict(self.config)}
        with atomic_write(save_directory / "config.json") as partial:
            partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def generate_model_card(
        self,
        license: str = "unknown",
        metrics: Mapping[str, float] | None = None,
        architecture: str = "",
        classes: Sequence[str] = (),
        **_: Any,
    ) -> ModelCard:
        """The card that `save_pretrained` and `push_to_hub` write, by their `model_card_kwargs`; see `model_card`."""
        parameters = sum(p.numel() for p in self.parameters())
        return model_card(
            self.config, self.model_id, self.encoder_name, parameters, license, metrics or {}, architecture, classes
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
