"""Tiny encoders, and heads with random weights on them."""

import torch

from tests.helpers.training import tiny_config
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec, SpanRule
from tubelet.heads.novelty import NoveltyModel
from tubelet.pretrained.backbone import Backbone


def tiny_encoder(seed=0):
    """An encoder of 24 channels and 3 blocks with random weights, for clips of 4 frames of 32 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Backbone(tiny_config("none").model).eval().requires_grad_(False)
    model.native_clip = NativeClip(32, frames=4, fps=12.0)
    return model


def tiny_head(model, task, classes=("a", "b", "c"), network=None, options=None, seed=0, **changes):
    """A head with random weights for clips of 4 frames of 32 pixels at 12 frames per second."""
    given = {"image_size": 32, "frames": 4, "fps": 12.0, "stride_s": 4 / 12, "cells": 0} | changes.pop("input", {})
    spans = tuple(SpanRule(on=0.5, off=0.4, min_length_s=0.0, max_gap_s=0.0) for _ in classes)
    spec = HeadSpec(
        task=task,
        network=network or ("temporal" if task == "timeline" else "linear"),
        options=options or ({"hidden": 8, "layers": 2} if task == "timeline" else {}),
        width=model.config.width,
        classes=tuple(classes),
        input=HeadInput(**given),
        encoder=EncoderId(
            source="none", model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
        ),
        exclusive=changes.pop("exclusive", task == "classification"),
        spans=changes.pop("spans", spans if task == "timeline" else ()),
        novelty_quantiles=tuple(torch.linspace(0, 3, 101).tolist()),
        **changes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(spec, novelty=NoveltyModel.fit(torch.randn(20, spec.width)))
        for parameter in head.network.parameters():
            torch.nn.init.normal_(parameter, std=1.0)
    return head.eval().requires_grad_(False)
