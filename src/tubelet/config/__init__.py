"""Settings of the package: frozen dataclasses with the unit of every field; presets are functions."""

from tubelet.config.data import BlockMask, DataConfig, MaskConfig, ShardConfig
from tubelet.config.embed import EmbedConfig
from tubelet.config.evaluate import HEAD_SETTINGS, EvaluateConfig
from tubelet.config.fields import from_dict, require, to_dict
from tubelet.config.fit import FitConfig
from tubelet.config.model import (
    MODELS,
    ModelConfig,
    PixelStatistics,
    PredictorConfig,
    RopeVersion,
    model_preset,
    output_levels_for_depth,
    resized,
    vit_b,
    vit_g,
    vit_gigantic,
    vit_l,
    vit_pico,
    vit_s,
    vit_ti,
)
from tubelet.config.plan import PlanConfig
from tubelet.config.predict import PredictConfig
from tubelet.config.train import GuardConfig, OptimConfig, Precision, TrainConfig
from tubelet.config.view import ViewConfig

__all__ = [
    "HEAD_SETTINGS",
    "MODELS",
    "BlockMask",
    "DataConfig",
    "EmbedConfig",
    "EvaluateConfig",
    "FitConfig",
    "GuardConfig",
    "MaskConfig",
    "ModelConfig",
    "OptimConfig",
    "PixelStatistics",
    "PlanConfig",
    "Precision",
    "PredictConfig",
    "PredictorConfig",
    "RopeVersion",
    "ShardConfig",
    "TrainConfig",
    "ViewConfig",
    "from_dict",
    "model_preset",
    "output_levels_for_depth",
    "require",
    "resized",
    "to_dict",
    "vit_b",
    "vit_g",
    "vit_gigantic",
    "vit_l",
    "vit_pico",
    "vit_s",
    "vit_ti",
]
