import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tubelet.data.clips import (
    augment,
    center_clip_times,
    clip_times,
    crop_box,
    normalize,
    random_resized_crop,
    resize_center_crop,
    resize_shape,
)
from tubelet.data.decode import VideoInfo

SCALE, ASPECT = (0.3, 1.0), (0.75, 1.35)


def video(seconds: float) -> VideoInfo:
    return VideoInfo("video.mp4", seconds, 30.0, 64, 48, 0)


def noise(t: int = 4, h: int = 48, w: int = 64) -> Tensor:
    return torch.randint(0, 256, (t, h, w, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_clip_has_its_rate_and_stays_within_the_video() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        times, short = clip_times(video(10.0), 16, 4.0, rng)
        assert not short
        assert np.allclose(np.diff(times), 0.25)
        assert times[0] >= 0 and times[-1] + 0.25 <= 10.0


def test_starts_are_uniform() -> None:
    rng = np.random.default_rng(0)
    starts = np.sort([clip_times(video(10.0), 16, 4.0, rng)[0][0] for _ in range(2000)])
    assert np.abs(starts / 6.0 - np.linspace(0, 1, 2000)).max() < 0.04


def test_the_same_seed_draws_the_same_clip() -> None:
    first, again = (clip_times(video(10.0), 16, 4.0, np.random.default_rng(3))[0] for _ in range(2))
    assert np.array_equal(first, again)


def test_a_short_video_is_spread_over_the_clip_and_reported_to_be_short() -> None:
    times, short = clip_times(video(2.0), 16, 4.0, np.random.default_rng(0))
    assert short
    assert np.allclose(times, np.arange(16) * 0.125)


def test_a_video_of_exactly_the_length_is_not_short() -> None:
    times, short = clip_times(video(3.9996), 16, 4.0, np.random.default_rng(0))
    assert not short
    assert np.allclose(times, np.arange(16) / 4)


def test_the_center_clip_lies_in_the_middle() -> None:
    times, short = center_clip_times(video(10.0), 16, 4.0)
    assert not short
    assert times[0] == pytest.approx(3.0) and times[-1] == pytest.approx(6.75)


def test_crops_are_within_the_image_and_in_the_asked_ranges() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        top, left, height, width = crop_box(480, 640, rng, SCALE, ASPECT)
        assert 0 <= top <= 480 - height and 0 <= left <= 640 - width
        assert SCALE[0] * 0.99 <= height * width / (480 * 640) <= SCALE[1]
        assert ASPECT[0] * 0.99 <= width / height <= ASPECT[1] * 1.01


def test_an_image_too_long_for_any_draw_gives_its_middle() -> None:
    top, left, height, width = crop_box(10, 1000, np.random.default_rng(0), SCALE, ASPECT)
    assert (top, height) == (0, 10)
    assert width == round(10 * ASPECT[1]) and left == (1000 - width) // 2


def test_all_frames_get_the_same_crop() -> None:
    still = noise(1).expand(5, -1, -1, -1)
    clip = random_resized_crop(still, 32, np.random.default_rng(1), SCALE, ASPECT)
    assert clip.shape == (3, 5, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()
    assert (clip == clip[:, :1]).all()


def test_resizing_bytes_rounds_the_result_of_resizing_floats() -> None:
    pixels = noise(3, 90, 120)
    ours = random_resized_crop(pixels, 32, np.random.default_rng(2), SCALE, ASPECT).float()
    top, left, height, width = crop_box(90, 120, np.random.default_rng(2), SCALE, ASPECT)
    crop = pixels[:, top : top + height, left : left + width].permute(0, 3, 1, 2).float()
    exact = F.interpolate(crop, (32, 32), mode="bilinear", antialias=True).permute(1, 0, 2, 3)
    assert (ours - exact).abs().max() <= 1.0


def test_half_of_the_clips_are_mirrored() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 1, 64, 1).expand(2, 48, 64, 3)
    rng = np.random.default_rng(0)

    def is_mirrored(flip: bool) -> bool:
        clip = augment(ramp, 16, rng, SCALE, ASPECT, flip)
        return bool(clip[0, 0, 0, 0] > clip[0, 0, 0, -1])

    assert 70 < sum(is_mirrored(True) for _ in range(200)) < 130
    assert not any(is_mirrored(False) for _ in range(20))


def test_augmented_clips_are_contiguous_bytes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        clip = augment(noise(), 32, rng, SCALE, ASPECT, flip=True)
        assert clip.shape == (3, 4, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 32), (17, 501), (20, 20)])
def test_the_center_crop_has_the_asked_size_whatever_the_shape(height: int, width: int) -> None:
    clip = resize_center_crop(noise(2, height, width), 32)
    assert clip.shape == (3, 2, 32, 32) and clip.dtype == torch.uint8 and clip.is_contiguous()


def test_the_center_crop_keeps_the_middle_and_the_shape_of_things() -> None:
    assert resize_shape(480, 640, 240) == (240, 320)
    assert resize_shape(640, 480, 240) == (320, 240)
    pixels = noise(1, 32, 64)
    assert torch.equal(resize_center_crop(pixels, 32)[:, 0], pixels[0, :, 16:48].permute(2, 0, 1))


def test_normalized_pixels_have_imagenet_statistics() -> None:
    means = torch.tensor([0.485, 0.456, 0.406]) * 255
    pixels = means.round().to(torch.uint8).view(1, 3, 1, 1, 1).expand(2, 3, 2, 4, 4)
    result = normalize(pixels)
    assert result.shape == pixels.shape and result.dtype == torch.float32
    assert result.abs().max() < 0.01
    white = normalize(torch.full((1, 3, 1, 1, 1), 255, dtype=torch.uint8))[0, :, 0, 0, 0]
    assert torch.allclose(white, (1 - means / 255) / torch.tensor([0.229, 0.224, 0.225]))
    assert normalize(pixels, dtype=torch.bfloat16).dtype == torch.bfloat16
