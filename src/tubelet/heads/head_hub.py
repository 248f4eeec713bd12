"""Heads on the Hugging Face Hub, in the repository of their encoder."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

from tubelet.checkpoint.hub import WEIGHTS_FILE
from tubelet.checkpoint.registry import HEADS_FOLDER
from tubelet.errors import ConfigError, FileError, first_line
from tubelet.heads.head_file import Head
from tubelet.pretrained.backbone import Backbone

_NAME = re.compile(r"[\w-][\w.-]*", re.ASCII)


def push_head(
    head: Head,
    repository: str,
    name: str,
    *,
    model: Backbone | None = None,
    private: bool | None = None,
    token: str | None = None,
    license: str = "unknown",
) -> str:
    """Upload a head to a repository of the Hub; see `tubelet.prediction.fitted_head.FittedHead.push_to_hub`.

    The file names the repository as the place of its encoder, if that is there, so that the head can be used anywhere.
    """
    from huggingface_hub import HfApi

    if not _NAME.fullmatch(name):
        raise ConfigError(f"name is {name!r:.100}, expected letters, digits, dots, dashes and underscores")
    if model is not None:
        head.check_encoder(model)
    api = HfApi(token=token)
    file = f"{HEADS_FOLDER}/{name.removesuffix('.safetensors')}.safetensors"
    try:
        if model is not None:
            model.push_to_hub(repository, private=private, token=token, model_card_kwargs={"license": license})
        else:
            api.create_repo(repo_id=repository, private=private, exist_ok=True)
        spec = head.spec
        if model is not None or api.file_exists(repository, WEIGHTS_FILE):
            spec = replace(spec, encoder=replace(spec.encoder, source=repository))
        with tempfile.TemporaryDirectory(prefix="tubelet-hub-") as folder:
            saved = Head(spec, head.network, head.novelty, head.encoder_weights)
            saved.training_files = head.training_files
            saved.target_mean, saved.target_scale = head.target_mean, head.target_scale
            local = Path(folder) / Path(file).name
            saved.save(local)
            api.upload_file(path_or_fileobj=local, path_in_repo=file, repo_id=repository)
    except (ConfigError, FileError):
        raise
    except Exception as error:  # network, repository, permissions: several classes, which change with the version
        raise FileError(
            f"{repository}/{file}: the Hub does not take it ({first_line(error)}); check the name, the network and "
            "HF_TOKEN"
        ) from error
    return f"{repository}/{file}"
