"""ImageData: what a batch is, in which order batches come, and how errors cross from the workers."""

import traceback
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mame_lab.data import Digits, ImageFolder, MovingDigits
from mame_lab.data.datamodule import ImageData
from mame_lab.data.dataset import ImageDataset
from mame_lab.data.preprocessing import Preprocessing
from mame_lab.data.splits import Splits
from mame_lab.errors import MameLabError

PREPROCESSING = Preprocessing(
    size=(8, 8), mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bicubic", crop_pct=1.0, crop_mode="center"
)
CLIPS = replace(PREPROCESSING, frames=4)


@dataclass
class Counted(ImageDataset):
    """Grey images whose label is their grey value, `size` in each of train, val and test, numbered on from 0.

    It counts how often it is read.
    """

    name: str = "counted"
    size: int = 10
    num_workers: int | None = 0
    augment: str = "none"
    reads: int = 0

    def splits(self) -> Splits:
        self.reads += 1
        images = [(Image.new("RGB", (8, 8), (i, i, i)), i) for i in range(3 * self.size)]
        train, val, test = (images[start : start + self.size] for start in range(0, len(images), self.size))
        return Splits(train, val, test, [str(i) for i in range(len(images))])


def labels(loader):
    return torch.cat([y_B for _, y_B in loader]).tolist()


def test_a_batch_of_digits():
    data = ImageData(Digits(batch_size=16), PREPROCESSING)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.bank_dataloader()):
        x_BCHW, y_B = next(iter(loader))
        assert (x_BCHW.shape, x_BCHW.dtype) == ((16, 3, 8, 8), torch.float32)
        assert (y_B.shape, y_B.dtype) == ((16,), torch.int64)
        assert type(x_BCHW) is torch.Tensor
    assert data.classes == [str(digit) for digit in range(10)]


def test_images_are_read_once_and_not_before_they_are_needed():
    dataset = Counted()
    data = ImageData(dataset, PREPROCESSING)
    assert dataset.reads == 0
    labels(data.train_dataloader())
    labels(data.test_dataloader())
    assert (len(data.classes), dataset.reads) == (30, 1)


def test_images_keep_their_labels_and_evaluation_keeps_order():
    data = ImageData(Counted(batch_size=3), PREPROCESSING)
    assert labels(data.bank_dataloader()) == list(range(10))
    assert labels(data.val_dataloader()) == list(range(10, 20))
    assert labels(data.test_dataloader()) == list(range(20, 30))
    for x_BCHW, y_B in data.train_dataloader():
        torch.testing.assert_close(x_BCHW[:, 0, 0, 0] * 255, y_B.float())


def test_training_order_follows_the_seed_of_the_run():
    def epoch(seed):
        return labels(ImageData(Counted(size=50), PREPROCESSING, seed).train_dataloader())

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert sorted(epoch(1)) == list(range(50))


def trainer_after(epoch, done):
    current = SimpleNamespace(current=SimpleNamespace(processed=done))
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=current))
    return SimpleNamespace(current_epoch=epoch, fit_loop=loops, training=True)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_order_goes_on_with_the_trainer(workers):
    def rest(epoch, done):
        data = ImageData(Counted(size=50, batch_size=10, num_workers=workers), PREPROCESSING)
        data.trainer = trainer_after(0, 0)
        batches = iter(data.train_dataloader())
        data.trainer = trainer_after(epoch, done)  # Lightning restores it only now.
        return labels(batches)

    assert rest(0, 0) != rest(1, 0)
    assert rest(1, 2) == rest(1, 0)[20:]


def test_after_training_the_loader_begins_anew():
    data = ImageData(Counted(size=50, batch_size=10), PREPROCESSING)
    data.trainer = trainer_after(1, 2)
    data.trainer.training = False
    assert len(labels(data.train_dataloader())) == 50


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_follows_the_seed_and_leaves_the_global_generator(workers):
    def batch(seed):
        loader = ImageData(Digits(num_workers=workers), PREPROCESSING, seed).train_dataloader()
        state = torch.get_rng_state()
        loader.dataset[0, seed]
        assert torch.equal(torch.get_rng_state(), state)
        return next(iter(loader))[0]

    torch.manual_seed(0)
    first = batch(1)
    torch.manual_seed(5)
    assert torch.equal(batch(1), first)
    assert not torch.equal(batch(2), first)


@pytest.mark.parametrize(("batch_size", "seen"), [(4, 8), (5, 10), (6, 10), (10, 10), (20, 10)])
def test_a_short_batch_is_dropped_only_beside_two_full_ones(batch_size, seen):
    assert len(labels(ImageData(Counted(batch_size=batch_size), PREPROCESSING).train_dataloader())) == seen


def test_only_training_is_augmented():
    dataset = Digits(augment="crop")
    data = ImageData(dataset, PREPROCESSING)
    plain = ImageData(Digits(augment="none"), PREPROCESSING)
    for name in ("val_dataloader", "test_dataloader", "bank_dataloader"):
        (x_BCHW, _), (expected_BCHW, _) = (next(iter(getattr(d, name)())) for d in (data, plain))
        assert torch.equal(x_BCHW, expected_BCHW)
    (augmented_BCHW, labels_B), (plain_BCHW, same_B) = (next(iter(d.train_dataloader())) for d in (data, plain))
    assert torch.equal(labels_B, same_B)
    assert not torch.equal(augmented_BCHW, plain_BCHW)


@pytest.mark.parametrize(("cpus", "asked", "expected"), [(3, None, 3), (64, None, 8), (64, 0, 0), (8, 5, 5)])
def test_workers(monkeypatch, cpus, asked, expected):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    loader = ImageData(Counted(num_workers=asked), PREPROCESSING).val_dataloader()
    assert (loader.num_workers, loader.persistent_workers) == (expected, expected > 0)
    assert loader.pin_memory == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [20]), (4, [20, 23, 26, 29]), (10, list(range(20, 30))), (13, [*range(20, 30), 20, 21, 22])],
)
def test_a_sample_is_spread_over_the_test_images(count, expected):
    x_BCHW, y_B = ImageData(Counted(), PREPROCESSING).sample(count)
    assert y_B.tolist() == expected
    assert x_BCHW.shape == (count, 3, 8, 8)
    torch.testing.assert_close(x_BCHW[:, 0, 0, 0] * 255, y_B.float())


def test_a_batch_of_videos():
    data = ImageData(MovingDigits(digits=2, batch_size=4), CLIPS)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.bank_dataloader()):
        x_BTCHW, y_B = next(iter(loader))
        assert (x_BTCHW.shape, x_BTCHW.dtype) == ((4, 4, 3, 8, 8), torch.float32)
        assert (y_B.shape, y_B.dtype) == ((4,), torch.int64)
    assert data.sample(5)[0].shape == (5, 4, 3, 8, 8)


@pytest.mark.parametrize("workers", [0, 1])
def test_videos_go_on_after_any_batch_with_the_same_clips(workers):
    dataset = MovingDigits(digits=2, batch_size=4, num_workers=workers)

    def rest(epoch, done, seed=0):
        data = ImageData(dataset, CLIPS, seed)
        data.trainer = trainer_after(epoch, done)
        return torch.cat([x_BTCHW for x_BTCHW, _ in data.train_dataloader()])

    torch.manual_seed(workers)
    whole = rest(1, 0)
    assert len(whole) == 16
    assert torch.equal(rest(1, 2), whole[8:])
    assert not torch.equal(rest(0, 2), whole[8:])
    assert not torch.equal(rest(1, 2, seed=1), whole[8:])


def test_the_views_of_a_test_video_follow_one_another():
    dataset = MovingDigits(digits=1, batch_size=3, clips=2, crops=3)
    many, one = (ImageData(each, CLIPS).test_dataloader() for each in (dataset, replace(dataset, clips=1, crops=1)))
    assert [(len(x), len(y)) for x, y in many] == [(18, 3), (18, 3), (12, 2)]
    assert [(len(x), len(y)) for x, y in one] == [(3, 3), (3, 3), (2, 2)]
    video = dataset.splits().test[1][0]
    x_VTCHW = next(iter(many))[0][6:12]
    for clip, start in enumerate((0, len(video) - 4)):
        expected = CLIPS.evaluation()(video.read(range(start, start + 4)))
        assert all(torch.equal(x_TCHW, expected) for x_TCHW in x_VTCHW[3 * clip : 3 * clip + 3])


def test_videos_without_augmentation_are_seen_as_in_validation():
    plain = ImageData(MovingDigits(digits=1, augment="none"), CLIPS)
    (x_BTCHW, y_B), (expected_BTCHW, _) = (
        next(iter(loader())) for loader in (plain.train_dataloader, plain.bank_dataloader)
    )
    assert torch.equal(x_BTCHW, expected_BTCHW[y_B])


@pytest.mark.parametrize(
    ("dataset", "preprocessing", "message"),
    [
        (Digits(), CLIPS, "dataset=digits holds images and the model takes videos"),
        (MovingDigits(), PREPROCESSING, "dataset=moving_digits holds videos and the model takes images"),
    ],
)
def test_images_are_not_for_models_of_videos_nor_videos_for_models_of_images(dataset, preprocessing, message):
    with pytest.raises(MameLabError, match=f"^{message}: choose") as raised:
        ImageData(dataset, preprocessing)
    assert "\n" not in str(raised.value)


def test_training_images_may_be_missing(make_folder):
    data = ImageData(ImageFolder(root=str(make_folder({"val/cat": 2})), num_workers=0), PREPROCESSING)
    assert labels(data.test_dataloader()) == [0, 0]
    for loader in (data.train_dataloader, data.bank_dataloader):
        with pytest.raises(MameLabError, match=r"^dataset=imagefolder has no training images"):
            loader()


def test_the_last_line_of_a_worker_error_names_the_image(make_folder):
    root = make_folder({"val/cat": 3})
    path = root / "val/cat/1.png"
    path.write_bytes(path.read_bytes()[:40])
    data = ImageData(ImageFolder(root=str(root), num_workers=1), PREPROCESSING)
    with pytest.raises(MameLabError) as raised:
        labels(data.val_dataloader())
    traceback.clear_frames(raised.tb)  # Their reference cycle would keep the worker, and then delay its end by 5 s.
    last_line = str(raised.value).strip().splitlines()[-1]
    assert last_line.startswith(f"mame_lab.errors.MameLabError: image {path} cannot be read (")
    assert last_line.endswith("): replace or delete the file")
