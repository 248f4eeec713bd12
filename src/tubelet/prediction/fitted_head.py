"""A head that can be applied to media, as `tubelet.load_head` and `tubelet.fit` return it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from tubelet.checkpoint.registry import require_name
from tubelet.errors import ConfigError
from tubelet.heads import head_file
from tubelet.heads.head_file import Head
from tubelet.heads.head_hub import push_head
from tubelet.heads.head_import import import_head
from tubelet.prediction.predictions import Predictions
from tubelet.pretrained.backbone import Backbone


class FittedHead(Head):
    """A trained head: an `nn.Module` from tokens to probabilities or values, with `predict` for media."""

    @classmethod
    def of(cls, head: Head) -> Self:
        """The same head with the same weights."""
        fitted = cls(head.spec, head.network, head.novelty, head.encoder_weights)
        fitted.target_mean, fitted.target_scale = head.target_mean, head.target_scale
        fitted.training_files = head.training_files
        return fitted.train(head.training)

    def predict(
        self,
        sources: str | Path | Sequence[str | Path],
        *,
        model: str | Path | Backbone | None = None,
        out: str | Path | None = None,
        **settings: Any,
    ) -> Predictions:
        """Apply the head to videos and images.

        Example:
            ```python
            head = tubelet.load_head("head.safetensors")
            table = head.predict("video.mp4").to_pandas()
            ```

        Args:
            sources: files, folders, globs, lists of files, folders of shards; paths or URLs.
            model: the encoder that the head was trained on, or anything that `tubelet.load` takes; None is where it was
                when the head was trained.
            out: folder to write the tables to, which `tubelet predict` describes; None writes none.
            settings: fields of `tubelet.config.PredictConfig`, such as `threshold` or `workers`.

        Returns:
            the rows of the table.

        Raises:
            ConfigError: for another encoder than the head's, or a setting that does not exist or is out of range.
            TubeletError: for sources that cannot be read.
        """
        from tubelet.prediction.api import predict

        return predict(self, sources, model=model, out=out, **settings)

    def push_to_hub(
        self,
        repository: str,
        name: str,
        *,
        model: Backbone | None = None,
        private: bool | None = None,
        token: str | None = None,
        license: str = "unknown",
    ) -> str:
        """Upload the head to a repository of the Hugging Face Hub, next to its encoder.

        Example:
            ```python
            head.push_to_hub("owner/encoder", "walking", model=model)
            head = tubelet.load_head("owner/encoder/heads/walking.safetensors")
            ```

        Args:
            repository: Hub id, owner/name; it is created if it does not exist.
            name: name of the head in the repository.
            model: the encoder that the head was trained on, to be uploaded too; None if the repository has it already.
            private: whether a new repository is private; None is the owner's default.
            token: access token; None is the one that `hf auth login` stored.
            license: license of the encoder, for the card of a repository that has none.

        Returns:
            what `tubelet.load_head` and `tubelet predict` load the head by.

        Raises:
            ConfigError: for a name that is no file name, or another encoder than the head's.
            FileError: if the Hub does not take the upload.
        """
        return push_head(self, repository, name, model=model, private=private, token=token, license=license)


def load_head(
    path: str | Path,
    device: torch.device | str = "cpu",
    *,
    encoder: str | Path | Backbone | None = None,
    classes: Sequence[str] | None = None,
    **hub: Any,
) -> FittedHead:
    """Load a head, in eval mode.

    Args:
        path: a head file, or one on the Hub: owner/name/heads/HEAD.safetensors. Or a head of others: the .pt file of a
            probe that V-JEPA 2.0 released, a folder or a repository of the Hub with a classification model of
            `transformers`.
        device: device of the head.
        encoder: the encoder of a released probe, or anything that `tubelet.load` takes; None is the one that it was
            trained on, by its file name.
        classes: names of the classes of a head of others; None is those in its config, or numbers.
        hub: options of `huggingface_hub`: revision, token, cache_dir, force_download, local_files_only.

    Raises:
        CheckpointError: if the file is damaged, or is not a head.
        ConfigError: if an option has no effect, or the encoder of a probe is not known.
        MissingFileError: if it does not exist.
    """
    require_name(path, "a head file, a folder or a Hub id")
    if Path(path).suffix == ".safetensors":
        if encoder is not None or classes is not None:
            raise ConfigError(
                f"{path}: encoder= and classes= have no effect for a head file, which has them; omit them"
            )
        return FittedHead.of(head_file.load_head(path, device, **hub))
    return FittedHead.of(import_head(path, encoder, classes, **hub).to(device))
