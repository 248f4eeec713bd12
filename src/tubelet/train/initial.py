"""The model that a run begins with: random weights, or those of a checkpoint, with adapters where asked for."""

import dataclasses

from tubelet.checkpoint import load_vjepa
from tubelet.config import ModelConfig, TrainConfig
from tubelet.model.lora import add_adapters
from tubelet.types import TubeletError
from tubelet.vjepa import VJEPA


def continued_sizes(what: str) -> ModelConfig:
    """The sizes with which a checkpoint's pre-training can go on.

    Those of a distilled release predict a larger teacher's last level; trained on, it is its own teacher, at all
    levels, and its predictor begins anew.
    """
    sizes = load_vjepa(what)[0].config
    if sizes.prediction_width != sizes.num_output_levels * sizes.width:
        predictor = dataclasses.replace(sizes.predictor, output_width=None)
        return dataclasses.replace(sizes, output_levels=None, predictor=predictor)
    return sizes


def initial_model(config: TrainConfig, resumed: bool) -> tuple[VJEPA, str | None]:
    """The model of a run's first step, on the CPU.

    Args:
        config: the run.
        resumed: whether a checkpoint of the run itself will be loaded into it: then only its structure matters.

    Returns:
        the model, and a sentence about where its weights come from if they are not random.

    Raises:
        TubeletError: if the checkpoint does not fit the config's sizes.
    """
    model = VJEPA(config.model)
    model.distance_weighting = config.optim.distance_weighting
    said = None
    if config.init_from and not resumed:
        said = _take_over(model, config.init_from)
    if config.lora_rank:
        # Adapters change one set of weights, which student and teacher must then share.
        model.student.load_state_dict(model.teacher.state_dict())
        for part in (model.student, model.teacher):
            add_adapters(part, config.lora_rank)
        model.teacher.load_state_dict(model.student.state_dict())
        model.teacher.requires_grad_(False)
    return model, said


def _take_over(model: VJEPA, what: str) -> str:
    source = load_vjepa(what)[0]
    ours, theirs = (
        dataclasses.replace(m.config, output_levels=None, predictor=model.config.predictor) for m in (model, source)
    )
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b:
            raise TubeletError(f"{what}: its encoder has {field.name} {b}, the run asks for {a}: leave --model out")
    model.student.load_state_dict(source.student.state_dict())
    model.teacher.load_state_dict(source.teacher.state_dict())
    if (model.config.predictor, model.config.num_output_levels) != (
        source.config.predictor,
        source.config.num_output_levels,
    ):
        return f"starting from {what}; the predictor starts anew, since that one predicts another teacher's features"
    model.predictor.load_state_dict(source.predictor.state_dict())
    return f"starting from {what}"
