"""Near-duplicates: planted copies are found, aligned and grouped, and nothing else is."""

import numpy as np
import pytest

from tubelet.embed.clip_vectors import ClipVectors, nearest_clips, whiten
from tubelet.embed.duplicates import find_duplicates, group_duplicates

RNG = np.random.default_rng()


@pytest.fixture(autouse=True)
def seed():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def footage(count, width=64):
    """Features of clips that change smoothly, (count, width)."""
    steps = RNG.normal(size=(count + 8, width))
    return np.stack([steps[i : i + 8].mean(0) for i in range(count)])


def collection(*files):
    """Clips of one second, of files given as features (n, D)."""
    file = np.repeat(np.arange(len(files)), [len(each) for each in files])
    start = np.concatenate([np.arange(len(each), dtype=float) for each in files])
    x = np.concatenate(files)
    return ClipVectors([f"{i}.mp4" for i in range(len(files))], file, start, start + 1, whiten(x.astype(np.float32)))


def others(count=60):
    return [footage(12) for _ in range(count)]


def damaged(x):
    return x + RNG.normal(size=x.shape) * 0.05


def test_a_copy_that_begins_later_is_found_with_its_times():
    source = footage(20)
    (pair,) = find_duplicates(collection(source, *others(), damaged(source[6:])))
    assert pair.files == (0, 61) and pair.speed == 1
    np.testing.assert_allclose(pair.spans_s, [[6, 20], [0, 14]])


def test_a_faster_copy_is_found_with_its_speed():
    source = footage(30)
    (pair,) = find_duplicates(collection(source, *others(), damaged(source[::2])))
    assert pair.files == (0, 61) and pair.speed == 0.5
    assert abs(pair.spans_s[0][1] - pair.spans_s[0][0] - 30) <= 2


def test_a_stretch_of_another_file_is_found():
    source = footage(20)
    (pair,) = find_duplicates(
        collection(source, *others(), np.concatenate([footage(9), damaged(source[4:12]), footage(7)]))
    )
    np.testing.assert_allclose(pair.spans_s, [[4, 12], [9, 17]], atol=1)


def test_files_without_copies_have_none():
    assert find_duplicates(collection(*others())) == []
    assert find_duplicates(collection(footage(12))) == []


def test_copies_of_copies_are_one_group():
    source = footage(12)
    clips = collection(damaged(source), *others(), damaged(source), damaged(source))
    assert group_duplicates(find_duplicates(clips)) == [[0, 61, 62]]


def test_images_that_are_equal_are_duplicates():
    source = footage(1, 128)
    (pair,) = find_duplicates(collection(source, *[footage(1, 128) for _ in range(200)], damaged(source)))
    assert pair.files == (0, 201)


@pytest.mark.parametrize("by_file", [False, True])
def test_neighbors_are_exact_in_blocks(by_file, monkeypatch):
    clips = collection(*others(9))
    groups = clips.file if by_file else None
    monkeypatch.setattr("tubelet.embed.clip_vectors._BLOCK_VALUES", 7 * len(clips.file))
    found, similarity = nearest_clips(clips.vectors, 5, groups)
    expected = clips.vectors @ clips.vectors.T
    same = clips.file[:, None] == clips.file[None] if by_file else np.eye(len(clips.file), dtype=bool)
    expected[same] = -np.inf
    np.testing.assert_array_equal(found, np.argsort(-expected, axis=1)[:, :5])
    np.testing.assert_allclose(similarity, np.sort(expected, axis=1)[:, ::-1][:, :5], atol=1e-6)
