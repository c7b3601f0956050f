"""Samples come back from disk as they were put there, or not at all."""

import os
import time
from types import SimpleNamespace

import pytest
import torch

from mame_lab import MameLabError
from mame_lab.data import disk_cache
from mame_lab.models.split_forward import Sample
from mame_lab.training.feature_cache.store import CachedSample, Store, create, described, find


def samples(count, sizes):
    generator = torch.Generator().manual_seed(0)
    for label in range(count):
        tokens = 3 + label % 4
        x_NC = torch.randn(tokens, 5, generator=generator)
        size_N1 = torch.rand(tokens, 1, generator=generator) + 1
        yield CachedSample(Sample(x_NC, size_N1, torch.arange(tokens) + label) if sizes else Sample(x_NC), label)


@pytest.fixture
def made(tmp_path):
    """A store of 7 samples in files of 3."""
    made = Store(tmp_path / "it", 7, 3, 100)

    def make(sizes=True, dtype=torch.float32):
        cached = list(samples(7, sizes))
        for file in made.files:
            made.write(file, [cached[index] for index in made.indices(file)], dtype)
        return cached

    made.folder.mkdir()
    made.make = make
    return made


@pytest.mark.parametrize("sizes", [True, False])
def test_every_sample_comes_back_to_the_bit(made, sizes):
    cached = made.make(sizes)
    assert [len(made.indices(file)) for file in made.files] == [3, 3, 1]
    fresh = Store(made.folder, 7, 3, 100)
    for index in (6, 0, 3, 2, 1, 5, 4):
        sample, label = fresh[index]
        assert label == cached[index].label
        for tensor, expected in zip(sample, cached[index].sample, strict=True):
            assert (tensor is None) == (expected is None)
            assert tensor is None or (tensor.dtype == expected.dtype and torch.equal(tensor, expected))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 3e-4), (torch.bfloat16, 3e-3)])
def test_half_precision_says_how_far_off_it_is(made, dtype, error):
    cached = made.make(dtype=dtype)
    x, expected = (torch.cat([each.sample.x_NC for each in some]) for some in ([made[i] for i in range(7)], cached))
    assert x.dtype == torch.float32
    assert made.error() == pytest.approx(float((x - expected).norm() / expected.norm()), rel=1e-4)
    assert error / 10 < made.error() < error
    assert torch.equal(made[4].sample.size_N1, cached[4].sample.size_N1)


def test_tokens_too_large_for_half_precision_are_refused(made):
    with pytest.raises(MameLabError, match=r"finetune.cache_dtype=float16 cannot hold"):
        made.write(0, [CachedSample(Sample(torch.full((2, 5), 7e4)), 0)], torch.float16)


def test_a_store_is_found_again_unless_its_description_is_damaged(made):
    made.make()
    create(made, {"split": "train"})
    found = find(made.folder)
    assert (found.samples, found.per_file, found.sample_bytes) == (7, 3, 100)
    assert list(described(made.folder.parent)) == [{"split": "train"}]
    (made.folder / "about.json").write_text("{")
    assert list(described(made.folder.parent)) == []
    assert find(made.folder) is None


def test_files_of_another_number_of_samples_do_not_count(made, capsys):
    """So they are made again where another run found another first sample, and reads nobody's labels."""
    made.make()
    fresh = Store(made.folder, 7, 2, 100)
    assert fresh.missing(fresh.files) == [0, 1, 2, 3]
    made.folder.joinpath("000002.safetensors").rename(made.folder / "000003.safetensors")
    assert Store(made.folder, 7, 2, 100).missing(range(3, 4)) == []


def test_only_old_parts_of_files_go(made):
    for name, age in (("old", 4000), ("new", 3000)):
        part = made.folder / f"000000.{name}.part"
        part.write_bytes(b"half")
        os.utime(part, (time.time() - age,) * 2)
    find(made.folder)
    assert [path.name for path in made.folder.iterdir()] == ["000000.new.part"]


@pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: content[:-1] + b"?", lambda _: b""])
def test_damaged_files_are_missing(made, damage, capsys):
    made.make()
    path = made.folder / "000001.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    fresh = Store(made.folder, 7, 3, 100)
    with pytest.raises(MameLabError, match="is gone or damaged"):
        fresh[3]
    assert fresh.missing(fresh.files) == [1]
    assert "000001.safetensors is damaged: made again." in capsys.readouterr().out
    assert fresh.absent() == []
    path.unlink()
    assert fresh.absent() == [1]
    with pytest.raises(MameLabError, match="is gone or damaged"):
        fresh[3]


def test_a_file_that_is_cut_short_is_not_there(made, monkeypatch):
    def cut_short(tensors, path, about):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(disk_cache, "save_file", cut_short)
    with pytest.raises(OSError, match="no space"):
        made.make()
    assert not list(made.folder.iterdir())


def test_what_is_absent_must_fit_on_the_disk(made, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=600))
    with pytest.raises(OSError, match="it takes about 7e-07 GB, and 6e-07 GB are free"):
        made.check_room()
    made.make()
    made.folder.joinpath("000001.safetensors").unlink()
    made.check_room()
