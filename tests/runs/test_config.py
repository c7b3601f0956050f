"""Every file of conf/ composes and is what the dataclasses say; what does not fit fails and names its key."""

import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import timm
import yaml
from commands import ENTRIES, ROOT, compose_config, typed, values
from hydra.errors import HydraException
from omegaconf import OmegaConf

from mame_lab import MameLabError, Ward
from mame_lab.data import DATASETS
from mame_lab.data.imagefolder import ImageFolder
from mame_lab.merging import ToMe
from mame_lab.runs import cli, config

CHOICES = [(path.parent.name, path.stem) for path in sorted((ROOT / "conf").glob("*/*.yaml"))]
MODELS = sorted((ROOT / "conf/model").glob("*.yaml"))
PIPELINES = {path.stem for path in MODELS if "family: diffusers" in path.read_text()}
PROMPTS = [("model", "sd_mini"), ("dataset", "prompts"), ("benchmark", "denoiser")]


def partners(group: str, choice: str) -> list[str]:
    """What else a choice needs: pipelines go with prompts, and both with a benchmark of their own."""
    if (group, choice) in PROMPTS or (group == "model" and choice in PIPELINES):
        return [f"{other}={value}" for other, value in PROMPTS if other != group and other != "benchmark"]
    return []


@pytest.mark.parametrize(("group", "choice"), CHOICES)
@pytest.mark.parametrize("entry", ENTRIES)
def test_every_choice_composes(entry, group, choice):
    if group not in {field.name for field in fields(ENTRIES[entry])}:
        pytest.skip(f"{entry}.py has no group {group}")
    others = partners(group, choice)
    if others and entry == "train":
        pytest.skip("pipelines are not trained")
    run = typed(entry, f"{group}={choice}", *others)
    assert getattr(run, group) is not None


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_models_are_published_by_timm(path: Path):
    model = yaml.safe_load(path.read_text())
    if model.get("family", "timm") != "timm":
        pytest.skip(f"of {model['family']}")
    assert timm.is_model(model["name"])
    assert model.get("pretrained") is False or model["name"] in timm.list_pretrained()


def test_defaults_are_those_of_the_parts():
    run = typed("train")
    assert run.mame == Ward()
    composed = {name: values("eval", f"dataset={name}", *partners("dataset", name)) for name in DATASETS}
    assert {name: config.typed(config.EvalConfig, each).dataset for name, each in composed.items()} == {
        name: settings() for name, settings in DATASETS.items()
    }


def test_r_on_the_command_line_is_r_in_the_library():
    for r in (8, 0.1, [1, 2, 3, 4]):
        assert typed("train", f"mame.r={r}").mame == Ward(r=r)


@pytest.mark.parametrize(
    "value",
    ["/x/epoch=1.ckpt", "/x/photos (1)", "/x/[a]/{b}", "/x/café", "/it's.pth", '/x/"a', "~/x", "C:\\x;y\\", "/#a&b!"],
)
@pytest.mark.parametrize("key", ["ckpt", "++model.weights"])
def test_a_value_that_hydra_cannot_parse_is_named_and_quoted(key, value):
    with pytest.raises(HydraException) as error:
        compose_config("eval", [f"{key}={value}"])
    told = cli.explain(error.value)
    assert told.startswith(f"{key}={value} cannot be parsed: quote ")
    (quoted,) = shlex.split(told.rpartition("shell: ")[2])
    assert OmegaConf.select(compose_config("eval", [quoted]), key.strip("+")) == value


@pytest.mark.parametrize("value", ["outputs/a,b/best.ckpt", "1,2"])
def test_a_text_that_looks_like_a_sweep_is_quoted(value):
    with pytest.raises(HydraException) as error:
        compose_config("eval", [f"ckpt={value}"])
    told = cli.explain(error.value)
    assert told.startswith(f"ckpt={value} has a comma, as for a sweep: give -m, or quote a text: ")
    (quoted,) = shlex.split(told.rpartition("text: ")[2])
    assert compose_config("eval", [quoted]).ckpt == value


@pytest.mark.parametrize("value", ["[8,,8]", "[a b", "{a"])
def test_a_list_that_cannot_be_parsed_is_shown_as_one(value):
    with pytest.raises(HydraException) as error:
        compose_config("eval", [f"mame.r={value}"])
    assert cli.explain(error.value).endswith("""quote texts, as in 'mame.r=["a b",c]'""")


def test_a_list_for_a_text_is_to_be_quoted():
    with pytest.raises(HydraException) as error:
        compose_config("eval", ["dataset=imagefolder", "dataset.root=[abc]"])
    assert cli.explain(error.value).endswith("'['abc']': quote a text that begins with a bracket")


def test_what_refers_to_nothing_is_named():
    with pytest.raises(MameLabError, match=r"^dataset.root: Interpolation key 'x' not found: in "):
        values("eval", "dataset=imagefolder", "dataset.root=/data/${x}")


@pytest.mark.parametrize("said", ["ckpt", "=3x=", "++=a=b"])
def test_what_is_no_key_and_value_is_named(said):
    with pytest.raises(HydraException) as error:
        compose_config("eval", [said])
    assert cli.explain(error.value).startswith(f"{said} is no KEY=VALUE")


@pytest.mark.parametrize(
    ("entry", "override", "key"),
    [
        ("eval", "ckpt=", "ckpt"),
        ("train", "resume=' '", "resume"),
        ("train", "model.weights=", "model.weights"),
        ("eval", "model.tokenizer=", "model.tokenizer"),
        ("train", "trainer.strategy=''", "trainer.strategy"),
        ("eval", "ckpt=${oc.env:NOT_SET,''}", "ckpt"),
        ("train", "finetune.train=['']", "finetune.train"),
    ],
)
def test_an_empty_value_is_no_value(entry, override, key):
    with pytest.raises(MameLabError, match=f"^{key}= is empty .*null for none$"):
        values(entry, override)


def test_an_empty_negative_prompt_is_a_value():
    assert values("eval", "model=sd_mini", "dataset=prompts", "dataset.negative=")["dataset"]["negative"] == ""


def test_unknown_choice_in_stored_values_is_named():
    stored = values("train")
    stored["mame"]["method"] = "mema"
    with pytest.raises(MameLabError, match=r"mame.method=mema is not known"):
        config.typed(config.TrainConfig, stored)


@pytest.mark.parametrize("name", ["mame.grid.share_guidance", "mame.needs_keys", "model.gone"])
def test_a_key_of_a_checkpoint_that_is_gone_is_named(name):
    stored = OmegaConf.create(values("train"))
    OmegaConf.update(stored, name, True, force_add=True)
    merged = config.override(config.plain(stored), values("eval", "ckpt=x"), ["ckpt=x"])
    with pytest.raises(MameLabError) as error:
        config.typed(config.EvalConfig, merged)
    assert cli.explain(error.value).startswith(f"{name} is not known here (any more), but stored with the checkpoint")


def test_a_schedule_of_a_checkpoint_that_is_gone_is_named():
    stored = values("train", "mame.flops=0.5")
    stored["mame"]["schedule"] = "steep"
    merged = config.override(stored, values("eval", "ckpt=x"), ["ckpt=x"])
    with pytest.raises(MameLabError, match=r"mame.schedule=steep is not known here: choose from"):
        config.typed(config.EvalConfig, merged)


def test_the_command_line_wins_over_a_checkpoint():
    stored = values("train", "mame.r=8", "model.args.depth=3", "dataset.batch_size=5", "seed=7")

    def overridden(*overrides: str) -> config.EvalConfig:
        return config.typed(config.EvalConfig, config.override(stored, values("eval", *overrides), list(overrides)))

    plain = overridden("ckpt=x")
    assert (plain.mame, plain.seed, plain.dataset.batch_size, plain.model.args["depth"]) == (Ward(r=8), 7, 5, 3)
    assert overridden("mame.r=16").mame == Ward(r=16)
    assert overridden("mame=off").mame == Ward(r=0)
    assert overridden("mame.r=null", "mame.tau=0.5").mame == Ward(tau=0.5)
    assert overridden("dataset=imagefolder", "dataset.root=/images").dataset == ImageFolder(root="/images")
    assert overridden("+model.args.qk_norm=true").model.args["qk_norm"] is True


def test_a_loader_workers_traceback_is_one_line():
    wrapped = (
        "Caught MameLabError in DataLoader worker process 0.\nTraceback ...\nmame_lab.errors.MameLabError: a.jpg is bad"
    )
    assert cli.explain(MameLabError(wrapped)) == "a.jpg is bad"


def test_an_experiment_does_not_go_with_a_checkpoint():
    stored = values("train")
    with pytest.raises(MameLabError, match=r"^experiment=mae_b_training_free and ckpt=\.\.\. exclude each other"):
        config.override(stored, values("eval"), ["experiment=mae_b_training_free"])


@pytest.mark.parametrize("said", ["mame.r=16", "mame.tau=0.9", "mame.flops=0.5"])
def test_a_checkpoint_at_another_amount(said):
    stored = values("train", "mame.tau=0.95") if said == "mame.r=16" else values("train", "mame.r=8")
    merged = config.override(stored, values("eval", said), [said])
    key, _, value = said.partition("=")
    amounts = {f"mame.{name}": merged["mame"].get(name) for name in ("r", "tau", "flops", "speedup")}
    assert {name: str(amount) for name, amount in amounts.items() if amount is not None} == {key: value}
    config.typed(config.EvalConfig, merged)


def test_a_method_without_a_threshold_at_another_amount():
    merged = config.override(values("train", "mame=tome", "mame.r=8"), values("eval", "mame.r=16"), ["mame.r=16"])
    assert config.typed(config.EvalConfig, merged).mame == ToMe(r=16)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (["mame.tau=0.9", "mame.batching=packed"], "mame.r=8"),
        (["mame.tau=0.9", "mame.batching=union"], "mame.flops=0.5"),
        (["mame.r=8", "mame.clamp=true"], "mame.tau=0.9"),
        (["mame.r=8", "mame.schedule=linear"], "mame.tau=0.9"),
    ],
)
def test_what_went_with_the_amount_of_a_checkpoint_goes_with_it(stored, said):
    merged = config.override(values("train", *stored), values("eval", said), [said])
    method = config.typed(config.EvalConfig, merged).mame
    assert (method.batching, method.clamp) == ("per_sample", False)


def test_thresholds_of_a_checkpoint_stay_packed_where_others_are_solved_for():
    said = ["mame.flops=0.5", "mame.solve=adaptive"]
    for stored in (["mame.tau=0.9", "mame.batching=packed"], ["mame.r=8", "mame.clamp=true"]):
        merged = config.override(values("train", *stored), values("eval", *said), said)
        method = config.typed(config.EvalConfig, merged).mame
        assert (method.batching == "packed", method.clamp) == ("mame.batching=packed" in stored, False)


def test_a_key_that_is_not_for_the_method_of_a_checkpoint_is_named():
    stored = values("train", "mame=tome", "mame.r=8")
    with pytest.raises(MameLabError, match=r"mame.tau=0.9 is not for mame=tome, which the checkpoint carries: leave"):
        config.override(stored, values("eval", "mame.tau=0.9"), ["mame.tau=0.9"])
    said = ["mame=mame", "mame.tau=0.9"]
    assert config.override(stored, values("eval", *said), said)["mame"]["tau"] == 0.9


def test_a_budget_stays_truncated_at_another_budget():
    merged = config.override(values("train", "mame.r=8", "mame.clamp=true"), values("eval", "mame.r=9"), ["mame.r=9"])
    assert config.typed(config.EvalConfig, merged).mame == Ward(r=9, clamp=True)


def test_other_words_leave_the_amount_of_a_checkpoint():
    merged = config.override(values("train", "mame.r=8"), values("eval", "seed=3"), ["seed=3"])
    assert (merged["mame"]["r"], merged["seed"]) == (8, 3)


def test_an_error_of_a_plugin_is_its_own_line():
    error = HydraException("Error in call to target")
    error.__cause__ = MameLabError("hydra.sweeper.sampler=x is not known")
    assert cli.explain(error) == "hydra.sweeper.sampler=x is not known"
