"""Sources with weights: the stated shares, no gap in any source's epochs, any visit found alone."""

import json

import numpy as np
import pytest

from tubelet.config import DataConfig, TrainConfig
from tubelet.data.loader import build_samplers
from tubelet.data.sampler import BLOCK, apportion, epoch_order
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.grid import Modality

SIZES = {"a": 50, "b": 7, "c": 3000}
WEIGHTS = (0.335, 0.1, 0.565)


@pytest.fixture
def sources(tmp_path):
    """Three manifests of videos; the first lists images too."""
    for name, size in SIZES.items():
        lines = [f"{name}-{i}.mp4" for i in range(size)] + (["still.png", "another.png"] if name == "a" else [])
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"path": line}) + "\n" for line in lines))
    return tuple(str(tmp_path / f"{name}.jsonl") for name in SIZES)


def sampler_of(sources, weights, modality=Modality.VIDEO):
    config = TrainConfig(data=DataConfig(sources=sources, source_weights=weights))
    return build_samplers(config, list_media(sources))[modality]


def names(sampler, visits):
    return [index.name(sample).rsplit("/", 1)[1] for index, sample in map(sampler.sample_at, visits)]


def test_every_block_has_the_requested_shares(sources):
    for block in (0, 3):
        visited = names(sampler_of(sources, WEIGHTS), range(block * BLOCK, (block + 1) * BLOCK))
        counts = [sum(name.startswith(source) for name in visited) for source in SIZES]
        assert counts == [3350, 1000, 5650]
    begun = names(sampler_of(sources, WEIGHTS), range(200))
    assert 40 < sum(name.startswith("a") for name in begun) < 95  # in random order, not one after the other


def test_a_source_is_passed_through_without_a_gap_whatever_else_is_in_the_mix(sources):
    visited = names(sampler_of(sources, WEIGHTS), range(2 * BLOCK))
    for source, size in SIZES.items():
        own = [name for name in visited if name.startswith(source)]
        epochs = [own[i : i + size] for i in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 1
        assert all(len(set(epoch)) == size for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_any_visit_is_found_without_those_before(sources):
    visits = [3, BLOCK - 1, BLOCK, 2 * BLOCK + 77]
    whole = names(sampler_of(sources, WEIGHTS), range(2 * BLOCK + 78))
    assert [names(sampler_of(sources, WEIGHTS), [visit])[0] for visit in visits] == [whole[visit] for visit in visits]


def test_images_come_from_the_sources_that_have_some(sources):
    sampler = sampler_of(sources, WEIGHTS, Modality.IMAGE)
    assert sampler.fractions() == {0: 1.0}
    assert set(names(sampler, range(2))) == {"still.png", "another.png"}


def test_without_weights_every_file_comes_once_an_epoch_in_one_order(sources):
    sampler = sampler_of(sources, ())
    total = sum(SIZES.values())
    assert sampler.fractions() == {}
    order = epoch_order(np.arange(total), (0, 0, 1))
    listed = list_media(sources).videos
    assert names(sampler, range(total, 2 * total)) == [listed[i].rsplit("/", 1)[1] for i in order]


def test_a_file_belongs_to_the_first_source_that_names_it(sources):
    media = list_media((sources[1], sources[0], sources[1]))
    assert [len(media.of_source(i).videos) for i in range(3)] == [7, 50, 0]
    assert len(media.of_source(1).images) == 2


def test_weights_that_cannot_be_meant_are_refused(sources):
    with pytest.raises(TubeletError, match="source_weights has 2 numbers for 3 sources"):
        DataConfig(sources=sources, source_weights=(1, 2))
    with pytest.raises(TubeletError, match=r"source_weights\[2\] is 0.0, expected above 0"):
        DataConfig(sources=sources, source_weights=(1, 2, 0))
    with pytest.raises(TubeletError, match="less than 1/10000 of"):
        apportion([1.0, 1e-6], Modality.VIDEO)


def test_a_source_whose_weight_would_count_for_nothing_is_refused(sources):
    again = (sources[0], sources[1], sources[0])
    with pytest.raises(TubeletError, match=r"a\.jsonl: the sources before it contain all of its files"):
        sampler_of(again, WEIGHTS)
    assert len(sampler_of(again, ())) == 57
    with pytest.raises(TubeletError, match=r"source_weights\[0\] is inf, expected a finite number"):
        sampler_of(sources, (np.inf, 1.0, 1.0))
