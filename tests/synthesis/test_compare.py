"""Images with and without merging, from the command to the contact sheet."""

import csv
from types import SimpleNamespace

import pytest
import torch
from commands import SD_MINI, compose_config
from omegaconf import OmegaConf
from PIL import Image

from mame_lab import MameLabError, Ward, apply
from mame_lab.benchmarks.denoiser import run
from mame_lab.data.prompts import Prompts
from mame_lab.measure.flops import gflops_by_shapes
from mame_lab.measure.result import Result
from mame_lab.merging import ToMeSD
from mame_lab.models import shared_copy
from mame_lab.models.diffusers import load
from mame_lab.models.settings import ModelSettings
from mame_lab.synthesis import quality
from mame_lab.synthesis.generate import generate
from mame_lab.synthesis.quality import fid, high_frequency_energy, likeness


@pytest.fixture(scope="module")
def pipe():
    cfg = compose_config("eval", SD_MINI).model
    torch.manual_seed(0)
    return load(ModelSettings(name=cfg.name, pretrained=False, args=OmegaConf.to_container(cfg.args)))


def test_one_command_makes_images_table_and_contact_sheet(entry_point, tmp_path, capsys, pipe):
    entry_point("eval", tmp_path, *SD_MINI, "mame.r=0.5")
    result, tomesd = (Result.load(tmp_path / f"{name}.json") for name in ("result", "tomesd"))
    assert result.evaluated_by == "images"
    assert set(result.merged.quality) == {"psnr_db", "ssim", "high_frequency_energy"}
    assert set(result.unmerged.quality) == {"high_frequency_energy"}
    assert 10 < result.merged.quality["psnr_db"] < 100
    assert result.merged.tokens == [192, 48, 24]
    assert result.unmerged.tokens == [384, 96, 24]
    assert result.merged.gflops < result.unmerged.gflops
    step = run.noise(pipe.unet, 8, 1) | {"sample": torch.randn(1, 4, 16, 24)}
    counted = gflops_by_shapes(lambda sample: pipe.unet(**step | {"sample": sample}), step["sample"])
    assert result.unmerged.gflops == pytest.approx(2 * 2 * counted)  # Two steps, each with and without the prompt.
    assert tomesd.merged.tokens == result.merged.tokens
    assert tomesd.unmerged == result.unmerged
    assert result.conditions.more["merging"] == "ward(r=0.5)"
    assert tomesd.conditions.more["merging"] == "tomesd(r=0.5)"
    assert result.conditions.more["pixels"] == "96x64"
    assert "diffusers" in result.conditions.versions
    images = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert images == [f"{i:03d}_{arm}.png" for i in range(2) for arm in ("merged", "tomesd", "unmerged")]
    assert Image.open(tmp_path / "images" / images[0]).size == (96, 64)
    width, height = Image.open(tmp_path / "contact_sheet.png").size
    assert width > 3 * 400
    assert height > 2 * 250
    printed = capsys.readouterr().out
    assert "ward(r=0.5)" in printed
    assert "weights are random" in printed
    with (tmp_path / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["quality/psnr_db"]) == pytest.approx(result.merged.quality["psnr_db"])


@pytest.mark.slow
def test_windows_run_and_random_weights_follow_from_the_seed(entry_point, tmp_path):
    for name in ("one", "other"):
        entry_point("eval", tmp_path / name, *SD_MINI, "mame.r=0.9", "mame.clamp=true", "dataset.count=1",
                    "mame.grid.window=4")  # fmt: skip
    one, other = (Result.load(tmp_path / name / "result.json") for name in ("one", "other"))
    assert one.conditions.weights == other.conditions.weights
    assert one.merged.quality == other.merged.quality
    assert one.merged.tokens == [96, 24, 24]


def test_nothing_merged_is_the_same_image(entry_point, tmp_path):
    entry_point("eval", tmp_path, *SD_MINI, "mame=off", "dataset.count=1")
    result = Result.load(tmp_path / "result.json")
    assert result.merged.quality["psnr_db"] == 100
    assert result.merged.gflops == result.unmerged.gflops
    one, other = (Image.open(tmp_path / "images" / f"000_{arm}.png").tobytes() for arm in ("merged", "unmerged"))
    assert one == other
    assert not (tmp_path / "tomesd.json").exists()


def test_an_image_follows_from_prompt_seed_and_arm(pipe):
    unets = {"unmerged": pipe.unet, "tomesd": apply(shared_copy(pipe.unet), ToMeSD(r=0.5))}
    options = {"num_inference_steps": 2, "height": 64, "width": 64}
    requests = [("a fox", 0), ("a fox", 1), ("a fox", 0), ("a lighthouse", 0)]
    first, other_seed, again, other_prompt = generate(pipe, unets, requests, options)
    pipe.unet = unets["unmerged"]
    plain = pipe("a fox", generator=torch.Generator().manual_seed(0), output_type="pt", **options).images[0]
    assert torch.equal(first.images["unmerged"], plain)
    assert not torch.equal(first.images["tomesd"], plain)
    for arm in unets:
        assert first.images[arm].shape == (3, 64, 64)
        assert torch.equal(first.images[arm], again.images[arm])
        assert not torch.equal(first.images[arm], other_seed.images[arm])
        assert not torch.equal(first.images[arm], other_prompt.images[arm])
        assert first.seconds[arm] > 0


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_pipelines_merge_with_and_without_guidance(pipe, guidance):
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "guidance_scale": guidance, "output_type": "pt"}
    make = lambda prompts: pipe(prompts, generator=torch.Generator().manual_seed(0), **options).images  # noqa: E731
    plain = make(["a fox", "a cat"])
    apply(pipe, Ward(r=0.5))
    merged = make(["a fox", "a cat"])
    apply(pipe, r=0)
    assert torch.equal(make(["a fox", "a cat"]), plain)
    assert not torch.equal(merged, plain)
    assert likeness(merged, plain)["psnr_db"] > 20


def test_a_pipeline_is_loaded_from_a_folder(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    loaded = load(ModelSettings(name="any", weights=str(tmp_path)))
    for name, tensor in pipe.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"weights": "no/such"}, "model.weights=no/such is no folder: give one"),
        ({"weights": "."}, "model.weights=. holds no pipeline: give a folder"),
        ({"img_size": 512}, "model.img_size=512 is not for a pipeline"),
        ({"pretrained": True}, "model.name=sd .*model.weights=FOLDER.*model=sd_mini"),
        ({"pretrained": False}, "model.name=sd with model.pretrained=false needs model.args"),
    ],
)
def test_what_cannot_be_loaded_names_the_ways_out(changes, named, monkeypatch):
    from mame_lab.models import hub

    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:9")
    with pytest.raises(MameLabError, match=named) as error:
        load(ModelSettings(name="sd", **changes))
    assert "\n" not in str(error.value)


def test_likeness_is_what_its_names_say():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) / 2
    assert likeness(images, images) == {"psnr_db": 100, "ssim": pytest.approx(1)}
    assert likeness(images + 0.1, images)["psnr_db"] == pytest.approx(20, abs=1e-3)
    one_equal = images.clone()
    one_equal[0] += 0.1
    assert likeness(one_equal, images)["psnr_db"] == pytest.approx(60, abs=1e-3)
    assert likeness(images.flip(0), images)["ssim"] < 0.2


def test_high_frequencies_are_those_above_half_of_nyquist():
    x_W = torch.arange(64) * 2 * torch.pi
    wave = lambda cycles: (0.5 + 0.4 * torch.cos(x_W * cycles)).expand(1, 3, 64, 64)  # noqa: E731
    assert high_frequency_energy(wave(8 / 64)) == pytest.approx(0, abs=1e-9)
    assert high_frequency_energy(wave(24 / 64)) == pytest.approx(1)
    assert high_frequency_energy((wave(8 / 64) + wave(24 / 64)) / 2) == pytest.approx(0.5)
    assert high_frequency_energy(wave(24 / 64).mT) == pytest.approx(1)
    assert high_frequency_energy(torch.full((1, 3, 8, 8), 0.5)) == pytest.approx(0, abs=1e-9)


def test_judges_whose_weights_are_missing_are_left_out_by_name(monkeypatch, caplog):
    monkeypatch.setattr(quality, "_lpips", lambda: Image.open("no/such/weights"))
    monkeypatch.setattr(quality, "_clip_score", lambda: lambda images, prompts: 31.5)
    images = torch.rand(2, 3, 32, 32)
    judges = quality.ImageMetrics(["lpips", "clip_score"])
    assert judges(images, images + 0, ["a", "b"]) == {"clip_score": 31.5}
    assert "lpips is left out" in caplog.text


def test_a_reference_is_looked_for_first():
    with pytest.raises(MameLabError, match=r"dataset.reference=no/such is no folder"):
        Prompts(reference="no/such")


def test_fid_needs_real_images(tmp_path):
    with pytest.raises(MameLabError, match=r"dataset.reference=.* holds 0 images"):
        fid(torch.rand(2, 3, 32, 32), str(tmp_path))


def test_fid_takes_all_images_of_a_folder(tmp_path, monkeypatch, caplog):
    (tmp_path / "more" / ".cache").mkdir(parents=True)
    Image.new("L", (8, 8), 255).save(tmp_path / "a.avif")
    Image.new("I;16", (8, 8), 65535).save(tmp_path / "more" / "b.png")
    Image.new("RGBA", (8, 8), "white").save(tmp_path / "more" / "c.tga")
    Image.new("L", (8, 8)).save(tmp_path / "more" / ".cache" / "d.png")
    (tmp_path / "notes.txt").touch()
    seen = []
    metric = SimpleNamespace(update=lambda image, real: seen.append((image, real)), compute=lambda: 5.0)
    monkeypatch.setattr(quality, "_fid", lambda: metric)
    assert fid(torch.zeros(1, 3, 8, 8), str(tmp_path)) == 5
    assert [(image.shape, round(image.mean().item(), 2), real) for image, real in seen] == [
        *[((1, 3, 8, 8), 1.0, True)] * 3,
        ((1, 3, 8, 8), 0.0, False),
    ]
    assert f"dataset.reference={tmp_path} leaves out 1 file (notes.txt)" in caplog.text


@pytest.mark.slow
def test_denoiser_sets_methods_side_by_side(entry_point, tmp_path):
    read = [override for override in SD_MINI if not override.startswith(("speed.", "dataset."))]
    entry_point("eval", tmp_path, *read, "benchmark=denoiser", "benchmark.latents=[24]", "benchmark.rounds=2")
    with (tmp_path / "denoiser.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["latents"], row["tokens"], row["arm"]) for row in rows] == [
        ("24", "576", arm) for arm in ("unmerged", "ward", "tomesd")
    ]
    for row in rows:
        merges = row["arm"] != "unmerged"
        assert (float(row["error"]) > 0) == merges
        assert (float(row["saved_ideally"]) > 0.1) == merges
        assert bool(row["merging_ms"]) == merges
        assert (float(row["saved"]) != 0) == merges
        assert float(row["ms"]) > 0
    assert float(rows[1]["saved_ideally"]) > float(rows[2]["saved_ideally"])
