"""CIFAR: the split of real-format archives, which are not downloaded again, and the word on a failed download."""

import hashlib
import pickle
import urllib.error
import urllib.request

import numpy as np
import pytest
from torchvision import datasets

from mame_lab.data import DATASETS
from mame_lab.errors import MameLabError


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def write_archive(torchvision_class, label_key, class_names, root, monkeypatch):
    """Write 5020 training and 30 test images as torchvision unpacks them; image i shows the number i in two pixels."""

    def write(filename, content):
        data = pickle.dumps(content)
        (root / torchvision_class.base_folder / filename).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def images(count):
        pixels = np.zeros((count, 3 * 32 * 32), np.uint8)
        pixels[:, 0], pixels[:, 1] = np.divmod(np.arange(count), 256)
        return {"data": pixels, label_key: [i % len(class_names) for i in range(count)]}

    (root / torchvision_class.base_folder).mkdir()
    meta = torchvision_class.meta
    monkeypatch.setattr(torchvision_class, "train_list", [["train", write("train", images(5020))]])
    monkeypatch.setattr(torchvision_class, "test_list", [["test", write("test", images(30))]])
    meta_md5 = write(meta["filename"], {meta["key"]: class_names})
    monkeypatch.setattr(torchvision_class, "meta", {**meta, "md5": meta_md5})


@pytest.mark.parametrize(
    ("name", "label_key", "class_count"), [("cifar10", "labels", 10), ("cifar100", "fine_labels", 100)]
)
@pytest.mark.usefixtures("no_network")
def test_val_is_cut_from_train_and_present_files_are_not_downloaded(
    name, label_key, class_count, tmp_path, monkeypatch
):
    class_names = [f"class {k}" for k in range(class_count)]
    write_archive(getattr(datasets, name.upper()), label_key, class_names, tmp_path, monkeypatch)
    splits = DATASETS[name](root=str(tmp_path)).splits()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [20, 5000, 30]
    assert splits.classes == class_names

    def numbers(part):
        pairs = [(np.asarray(image), label) for image, label in (part[i] for i in range(len(part)))]
        found = [256 * int(x[0, 0, 0]) + int(x[0, 1, 0]) for x, _ in pairs]
        assert [label for _, label in pairs] == [number % class_count for number in found]
        return found

    train, val = numbers(splits.train), numbers(splits.val)
    assert sorted(train + val) == list(range(5020))
    assert train != sorted(train)
    assert numbers(DATASETS[name](root=str(tmp_path)).splits().train) == train


@pytest.mark.parametrize(("name", "archive"), [("cifar10", "cifar-10-python"), ("cifar100", "cifar-100-python")])
@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_what_to_do(name, archive, tmp_path):
    with pytest.raises(MameLabError) as raised:
        DATASETS[name](root=str(tmp_path)).splits()
    message = str(raised.value)
    assert message.startswith(f"dataset.root={tmp_path} lacks {name} and its download failed (")
    assert message.endswith(f"put {archive}.tar.gz there, or choose dataset=digits")
    assert "no route to host" in message
    assert "\n" not in message
