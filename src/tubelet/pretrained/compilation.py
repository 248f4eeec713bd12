"""torch.compile of the blocks for inference."""

import logging
import time

import torch

from tubelet.errors import ConfigError, first_line
from tubelet.io.files import remove_incomplete_libraries, set_compile_cache
from tubelet.pretrained.backbone import Backbone

logger = logging.getLogger(__name__)


def compile_encoder(model: Backbone) -> None:
    """Compile the blocks of a model in place, and one small clip with them, so that what fails fails here.

    All blocks share one graph in which batch, frames and size are symbols; a batch of one and larger batches have a
    graph each, as do autocast and gradients. Graphs are kept in the cache directory. Copies of the model run
    uncompiled.

    Raises:
        ConfigError: if PyTorch cannot compile here.
    """
    set_compile_cache()
    remove_incomplete_libraries()
    for block in model.blocks:
        block.compile(dynamic=True)
    logger.info(f"{model.name}: compiling the blocks, which takes up to a minute the first time")
    start, config = time.perf_counter(), model.config
    clip = torch.zeros(1, config.channels, 2 * config.tubelet_size, 2 * config.patch_size, 2 * config.patch_size)
    try:
        with torch.no_grad():
            model.dense_features(clip)
    except Exception as error:  # compilers and their drivers fail in every way there is
        reason = first_line(getattr(error, "inner_exception", error))  # PyTorch's own words are in front of the reason
        raise ConfigError(
            f"compile=True: the blocks cannot be compiled on this machine ({reason}); install a C++ "
            "compiler (for CUDA: Triton), or leave compile out"
        ) from error
    model.compiled = True
    logger.info(f"{model.name}: compiled the blocks in {time.perf_counter() - start:.0f} s")
