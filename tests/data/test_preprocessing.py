"""Preprocessing: evaluation as timm does it, and what training adds."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from mame_lab.data.preprocessing import Preprocessing
from mame_lab.errors import MameLabError

PREPROCESSING = Preprocessing(
    size=(32, 32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bicubic",
    crop_pct=0.875,
    crop_mode="center",
)


def noise(width, height):
    return Image.merge("RGB", [Image.effect_noise((width, height), 100) for _ in range(3)])


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "lanczos", "nearest"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_evaluation_is_that_of_timm(crop_mode, interpolation, crop_pct, size):
    preprocessing = replace(
        PREPROCESSING, size=size, crop_mode=crop_mode, interpolation=interpolation, crop_pct=crop_pct
    )
    reference = create_transform(
        input_size=(3, *size),
        is_training=False,
        interpolation=interpolation,
        mean=PREPROCESSING.mean,
        std=PREPROCESSING.std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    for image in (noise(8, 8), noise(71, 50), noise(33, 64), noise(32, 32)):
        x_CHW = preprocessing.evaluation()(image)
        assert x_CHW.dtype is torch.float32
        assert type(x_CHW) is torch.Tensor
        torch.testing.assert_close(x_CHW, reference(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"), [("crop_mode", "border"), ("crop_mode", "middle"), ("interpolation", "random")]
)
def test_what_is_not_supported_is_refused(key, value):
    with pytest.raises(MameLabError, match=f"the model's {key}={value} is not supported"):
        replace(PREPROCESSING, **{key: value})


def test_training_without_augmentation_is_evaluation():
    image = noise(50, 40)
    assert torch.equal(PREPROCESSING.training("none", 0.35)(image), PREPROCESSING.evaluation()(image))


@pytest.mark.parametrize(("augment", "flips"), [("crop", False), ("crop_flip", True)])
def test_crops_vary_and_only_crop_flip_flips(augment, flips):
    gradient = Image.linear_gradient("L").rotate(90).convert("RGB")  # Dark on the left, bright on the right.
    torch.manual_seed(0)
    transform = PREPROCESSING.training(augment, 0.35)
    crops = [transform(gradient) for _ in range(30)]
    assert {(x.shape, x.dtype) for x in crops} == {((3, 32, 32), torch.float32)}
    assert len({x.mean().item() for x in crops}) > 20
    leftward = [bool(x[0, :, 0].mean() > x[0, :, -1].mean()) for x in crops]
    assert 5 < sum(leftward) < 25 if flips else len(set(leftward)) == 1


def test_crops_keep_a_third_of_the_image():
    torch.manual_seed(0)
    gradient = Image.linear_gradient("L").rotate(90).convert("RGB")
    transform = replace(PREPROCESSING, mean=(0, 0, 0), std=(1, 1, 1), size=(64, 64)).training("crop", 0.35)
    widths = [(x[0, 0, -1] - x[0, 0, 0]).abs().item() for x in (transform(gradient) for _ in range(200))]
    assert 0.45 < min(widths) < 0.65  # A crop of area 0.35 and aspect ratio 3/4 has width 0.51.


@pytest.mark.parametrize(("interpolation", "blends"), [("nearest", False), ("bilinear", True)])
def test_crops_use_the_interpolation_of_the_model(interpolation, blends):
    black_and_white = Image.effect_noise((8, 8), 100).point(lambda value: 255 * (value > 127)).convert("RGB")
    transform = replace(PREPROCESSING, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation).training(
        "crop", 0.35
    )
    values = set(transform(black_and_white).unique().tolist())
    assert values > {0.0, 1.0} if blends else values == {0.0, 1.0}


def test_an_unknown_augmentation_is_refused():
    with pytest.raises(KeyError):
        PREPROCESSING.training("flip", 0.35)


def clip(frames, width, height):
    return torch.stack([pil_to_tensor(noise(width, height)) for _ in range(frames)])


@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_the_frames_of_a_clip_are_images(crop_mode, crop_pct):
    preprocessing = replace(PREPROCESSING, crop_mode=crop_mode, crop_pct=crop_pct, std=(1.0,) * 3)
    x_TCHW = clip(3, 71, 50)
    expected = torch.stack([preprocessing.evaluation()(to_pil_image(x_CHW)) for x_CHW in x_TCHW])
    seen = preprocessing.evaluation()(x_TCHW)
    assert (seen.shape, seen.dtype) == ((3, 3, 32, 32), torch.float32)
    torch.testing.assert_close(seen, expected, rtol=0, atol=1.01 / 255)  # Pillow and torch round differently.


def test_a_single_crop_is_that_of_evaluation_and_three_show_the_ends():
    x_TCHW = clip(2, 80, 32)
    preprocessing = replace(PREPROCESSING, crop_pct=1.0)
    plain = preprocessing.evaluation()(x_TCHW)
    assert torch.equal(preprocessing.crops(1)(x_TCHW)[0], plain)
    left, middle, right = preprocessing.crops(3)(x_TCHW)
    assert torch.equal(middle, plain)
    assert torch.equal(left, preprocessing.evaluation()(x_TCHW[..., :32]))
    assert torch.equal(right, preprocessing.evaluation()(x_TCHW[..., -32:]))


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_all_frames_of_a_clip_are_augmented_alike(augment):
    torch.manual_seed(0)
    transform = PREPROCESSING.training(augment, 0.35)
    still = clip(1, 40, 50).expand(4, -1, -1, -1)
    seen = [transform(still) for _ in range(8)]
    assert all(torch.equal(frame, x_TCHW[0]) for x_TCHW in seen for frame in x_TCHW)
    assert len({float(x_TCHW.mean()) for x_TCHW in seen}) == 8
