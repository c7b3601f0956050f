"""A bad input is one line that names the key, the value and what to do, before any weights load where it can be."""

import shutil
from pathlib import Path

import pytest
import torch
from commands import PIPELINE, TINY, typed, values
from hydra.errors import HydraException
from PIL import Image

from mame_lab import MameLabError
from mame_lab.runs import cli, conflicts

DENOISER = [*PIPELINE, "benchmark=denoiser"]
CACHE, TAUGHT = ["finetune.cache=true"], ["finetune.distill=0.5", "model.weights=w.ckpt"]

EXCLUDE = [
    # Both entry points.
    ("eval", ["dataset=prompts"], "model.name=vit_tiny_patch16_224 and dataset=prompts", "give model=sd21 or sd_mini"),
    ("eval", ["model=sd_mini"], "model.name=sd_mini and dataset=digits", "give dataset=prompts too"),
    (
        "train",
        ["compile=true", "mame.tau=0.9", "mame.batching=packed"],
        "compile=true and mame.batching=packed",
        "mame.batching=per_sample or",
    ),
    # Training.
    ("train", PIPELINE, "model.name=sd_mini and dataset=prompts", "use eval.py"),
    ("train", [*CACHE, "compile=true"], "finetune.cache=true and compile=true", "leave one"),
    ("train", [*CACHE, "trainer=fsdp"], "finetune.cache=true and trainer.strategy=fsdp", "leave one"),
    ("train", [*CACHE, "trainer.fast_dev_run=1"], "finetune.cache=true and trainer.fast_dev_run=1", "leave one"),
    ("train", [*CACHE, "finetune.random_r=[4]"], "finetune.cache=true and finetune.random_r=[4]", "leave one"),
    (
        "train",
        [*CACHE, "mame.tau=0.9", "mame.batching=union"],
        "finetune.cache=true and mame.batching=union",
        "set mame.batching=per_sample",
    ),
    ("train", [*CACHE, "mame=drop", "mame.r=4"], "finetune.cache=true and mame=drop", "set finetune.cache=false"),
    (
        "train",
        [*CACHE, "trainer.precision=bf16-true"],
        "finetune.cache=true and trainer.precision=bf16-true",
        "take 32-true or a mixed",
    ),
    ("train", ["finetune.views=2"], "finetune.views=2 and finetune.cache=false", "set finetune.cache=true"),
    (
        "train",
        [*CACHE, "finetune.views=2", "dataset.augment=none"],
        "finetune.views=2 and dataset.augment=none",
        "choose an augmentation",
    ),
    (
        "train",
        ["finetune.cache_dtype=float16"],
        "finetune.cache_dtype=float16 and finetune.cache=false",
        "set finetune.cache=true",
    ),
    (
        "train",
        ["finetune.temperature=2"],
        "finetune.temperature=2.0 and finetune.distill=0",
        "set finetune.distill, or leave finetune.temperature out",
    ),
    ("train", [*TAUGHT, "trainer=fsdp"], "finetune.distill=0.5 and trainer.strategy=fsdp", "take trainer=ddp"),
    ("train", ["compile=true", "trainer=fsdp"], "compile=true and trainer.strategy=fsdp", "take trainer=ddp"),
    ("train", ["finetune.random_r=[4]", "compile=true"], "finetune.random_r=[4] and compile=true", "leave one"),
    ("train", ["finetune.random_r=[4]", "trainer=fsdp"], "finetune.random_r=[4] and trainer.strategy=fsdp", "leave"),
    (
        "train",
        ["finetune.random_r=[4]", "mame.r=4", "mame.clamp=true"],
        "finetune.random_r=[4] and mame.clamp=true",
        "leave one of the two",
    ),
    # Evaluation.
    ("eval", [*PIPELINE, "compile=true"], "dataset=prompts and compile=true", "leave compile out"),
    ("eval", [*PIPELINE, "visualize=1"], "dataset=prompts and visualize=1", "leave visualize out"),
    ("eval", [*PIPELINE, "ckpt=x.ckpt"], "dataset=prompts and ckpt=x.ckpt", "leave ckpt out"),
    ("eval", [*PIPELINE, "benchmark=frontier"], "dataset=prompts and benchmark=frontier", "take benchmark=denoiser"),
    ("eval", ["benchmark=denoiser"], "dataset=digits and benchmark=denoiser", "give model=sd_mini dataset=prompts"),
    ("eval", ["benchmark=budgets", "compile=true"], "compile=true and benchmark=budgets", "benchmark.compiled=true"),
    ("eval", ["visualize=2", "benchmark=frontier"], "visualize=2 and benchmark=frontier", "leave one of the two"),
]


@pytest.mark.parametrize(("entry", "overrides", "both", "remedy"), EXCLUDE, ids=lambda case: str(case)[:60])
def test_settings_that_exclude_each_other_are_refused_at_composition(entry, overrides, both, remedy):
    with pytest.raises(MameLabError) as error:
        typed(entry, *overrides)
    assert str(error.value).startswith(f"{both} exclude each other, for ")
    assert remedy in str(error.value)
    assert "\n" not in str(error.value)


def test_every_conflict_is_tried():
    assert len(EXCLUDE) == len({*conflicts.OF_TRAINING, *conflicts.OF_EVALUATION})


@pytest.mark.parametrize(
    ("entry", "overrides", "unread"),
    [
        ("eval", ["benchmark=throughput", "mame.r=8"], "mame.r=8 has no meaning beside benchmark=throughput"),
        ("eval", ["benchmark=frontier", "mame=tome"], "mame=tome has no meaning beside benchmark=frontier"),
        ("eval", ["benchmark=grid_attention", "speed.seconds=1"], "speed.seconds=1 has no meaning beside"),
        ("eval", [*DENOISER, "mame.r=0.5"], "mame.r=0.5 has no meaning beside benchmark=den"),
        ("eval", ["benchmark=budgets", "speed.batch_size=8"], "speed.batch_size=8 has no meaning beside benchmark=bud"),
        ("eval", [*DENOISER, "dataset.steps=3"], "dataset.steps=3 has no meaning beside bench"),
        ("eval", [*PIPELINE, "speed.batch_size=3"], "speed.batch_size=3 has no meaning"),
        ("train", ["dataset.augment=none", "dataset.min_crop_area=0.1"], "dataset.min_crop_area=0.1 has no meaning"),
    ],
)
def test_a_key_that_is_given_is_read(entry, overrides, unread):
    run = typed(entry, *overrides)
    with pytest.raises(MameLabError, match=f"^{unread}"):
        conflicts.check_read(run, overrides)


@pytest.mark.parametrize("overrides", [["benchmark=budgets", "mame.blocks=2"], ["mame.r=8", "speed.seconds=1"]])
def test_keys_that_are_read_are_taken(overrides):
    conflicts.check_read(typed("eval", *overrides), overrides)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("mame.tua=0.9", "mame.tua: Key 'tua' not in 'Ward' (did you mean tau?)"),
        ("mame.grid.windows=8", "mame.grid.windows: Key 'windows' not in 'Grid' (did you mean window?)"),
        ("mame.flops=high", "mame.flops: Value 'high' of type 'str' could not be converted to Float"),
        (
            "trainer.max_epoch=3",
            "trainer.max_epoch: Key 'max_epoch' not in 'TrainerSettings' (did you mean max_epochs?)",
        ),
        ("dataset.batch_size=few", "dataset.batch_size: Value 'few' of type 'str' could not be converted to Integer"),
        ("callbacks.early_stop=3", "callbacks.early_stop: Key 'early_stop' not in 'CallbackSettings'"),
        ("learning_rate=1", "learning_rate: Key 'learning_rate' not in 'TrainConfig'"),
        ("model=vit_bb", "model=vit_bb is not known (did you mean vit_b"),
        ("optimizer=sgd", "optimizer"),
        ("mame.r=[1,2", "[1,2"),
    ],
)
def test_a_wrong_key_or_type_fails_at_composition_in_one_line(override, line):
    with pytest.raises(HydraException) as error:
        values("train", override)
    told = cli.explain(error.value)
    assert line in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("entry", "override", "named"),
    [
        ("train", "mame.tau=2", "mame.tau=2"),
        ("train", "mame.r=-1", "mame.r=-1"),
        ("train", "speed.seconds=0", "speed.seconds"),
        ("train", "trainer.max_epochs=0", "trainer.max_epochs=0: set it to 1 or more"),
        ("train", "callbacks.early_stopping=0", "callbacks.early_stopping=0: set it to 1 or more, or to null"),
        ("train", "callbacks.model_summary=-1", "callbacks.model_summary=-1: set it to 1 or more, or to null"),
        ("train", "callbacks.min_delta=0.1", "callbacks.min_delta=0.1 has no meaning without callbacks.early_stopping"),
        ("train", "finetune.random_r=[]", r"finetune.random_r=\[\]: set it to values of mame.r"),
        ("eval", "visualize=-1", "visualize=-1 is out of range"),
        ("eval", "visualize=65", "visualize=65 is out of range"),
        ("eval", "+trainer.epochs=1", "trainer.epochs is not known: correct it"),
        ("eval", "model.templates=simple", "model.templates=simple is for model.family=open_clip"),
        ("eval", "model.tokenizer=/x", "model.tokenizer=/x is for model.family=open_clip"),
    ],
)
def test_a_value_out_of_range_fails_before_anything_is_built(entry, override, named):
    with pytest.raises(MameLabError, match=f"^{named}"):
        typed(entry, override)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Image folders and checkpoints, good and bad; no test writes there."""
    root = tmp_path_factory.mktemp("files")
    for colour, light in (("dark", 60), ("bright", 250)):
        (root / "images" / colour).mkdir(parents=True)
        for number in range(30):
            image = Image.effect_noise((24, 40), light).convert("RGB")
            image.save(root / "images" / colour / f"{number}.png")
    shutil.copytree(root / "images/dark", root / "single/dark")
    shutil.copytree(root / "images", root / "broken")
    broken = root / "broken/dark/0.png"
    broken.write_bytes(broken.read_bytes()[:50])
    for split in ("train", "val"):
        shutil.copytree(root / "images/bright", root / "one" / split / "a")
    (root / "halves/train").mkdir(parents=True)
    (root / "empty/only_class").mkdir(parents=True)
    torch.save({"config": 1, "state_dict": {}}, root / "foreign.ckpt")
    torch.save({"weight": torch.zeros(1)}, root / "weights.pth")
    (root / "empty.ckpt").touch()
    return root


@pytest.fixture
def best(files, entry_point) -> Path:
    """The checkpoint of a run."""
    path = files / "run/checkpoints/best.ckpt"
    if not path.exists():
        entry_point("train", files / "run", *TINY)
    return path


def of(root: Path, overrides: list[str], best: Path | str = "") -> list[str]:
    return [override.replace("FILES", str(root)).replace("BEST", str(best)) for override in overrides]


def images(name: str) -> list[str]:
    return ["dataset=imagefolder", f"dataset.root=FILES/{name}", "dataset.num_workers=0"]


@pytest.mark.parametrize(
    ("entry", "overrides", "message"),
    [
        ("eval", ["ckpt=FILES/foreign.ckpt"], "is no checkpoint of train.py"),
        ("eval", ["ckpt=FILES/weights.pth"], "is no checkpoint of train.py"),
        ("eval", ["ckpt=FILES/empty.ckpt"], r"empty.ckpt is empty \(0 bytes\): give another best.ckpt"),
        ("eval", ["ckpt=FILES/images"], "images is a folder: give the best.ckpt"),
        ("eval", ["ckpt=no.ckpt"], "ckpt=no.ckpt does not exist"),
        ("eval", [*TINY, "mame.r=60"], "mame.r=60 is too large"),
        ("train", [*TINY, *images("one")], "dataset=imagefolder has one class alone, a: add"),
        ("train", [*TINY, *images("halves")], "has no val"),
        ("train", [*TINY, *images("single")], "one class folder alone"),
        ("train", [*TINY, *images("empty")], "only_class"),
        ("train", [*TINY, "dataset=imagefolder", "dataset.root=no/such"], "dataset.root=no/such"),
        ("train", [*TINY, *images("broken"), "trainer.limit_train_batches=1.0"], "0.png"),
        ("train", [*TINY, "finetune=head", "finetune.train=[heads]"], "finetune.train=heads"),
        ("train", [*TINY, "trainer.precision=12"], "trainer"),
        ("train", [*TINY, "finetune.train=[]"], r"finetune.train=\[\] trains nothing: name modules"),
        ("train", [*TINY, "mame.flops=0.6", "mame.schedule=learned"], "mame.schedule=learned is not known here"),
        ("eval", ["ckpt=BEST", "model.weights=BEST"], "exclude each other: give one of the two"),
        ("eval", ["ckpt=BEST", "benchmark=budgets", "mame.flops=0.8"], "benchmark=budgets and mame=ward.flops=0.8"),
        ("eval", ["ckpt=BEST", "model=vit_ti", "model.pretrained=false"], "ckpt=BEST does not fit the model"),
        ("eval", ["ckpt=BEST", *images("images")], "10 classes and the dataset 2"),
    ],
)
def test_what_only_files_and_the_model_tell_names_the_key(
    request, entry_point, files, tmp_path, entry, overrides, message
):
    best = request.getfixturevalue("best") if "ckpt=BEST" in overrides else ""
    with pytest.raises(MameLabError, match=message.replace("BEST", str(best))) as error:
        entry_point(entry, tmp_path, *of(files, overrides, best))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "result.json").exists()
