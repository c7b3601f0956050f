"""The typed schema of conf/, built from the dataclasses of the parts, where the defaults live."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from mame_lab.benchmarks import BENCHMARKS
from mame_lab.data import DATASETS
from mame_lab.data.prompts import Prompts
from mame_lab.errors import MameLabError
from mame_lab.measure.settings import SMOKE, EvaluationSettings, SpeedSettings
from mame_lab.merging import METHODS, Method
from mame_lab.models.renames import upgraded
from mame_lab.models.settings import ModelSettings
from mame_lab.runs import conflicts
from mame_lab.runs.loggers import LOGGERS
from mame_lab.tasks.optim import AdamW
from mame_lab.training.callbacks import CallbackSettings
from mame_lab.training.context import RunContext
from mame_lab.training.freeze import FinetuneSettings
from mame_lab.training.trainer import TrainerSettings

Run = TypeVar("Run", bound="Config")


@dataclass
class Config:
    """What training and evaluation share. `mame`, `dataset` and `logger` hold the dataclass that their group chose.

    Args:
        compile: train and time through torch.compile, the merged and the unmerged model alike. Accuracy,
            multiply-adds and memory are those of the same models without it.
        seed: of weights, order of the data, augmentation and dropout.
    """

    model: ModelSettings
    mame: Any
    dataset: Any
    trainer: TrainerSettings
    logger: Any
    speed: SpeedSettings = field(default_factory=SpeedSettings)
    compile: bool = False
    seed: int = 0

    @property
    def generates(self) -> bool:
        """Whether the model makes images from prompts."""
        return isinstance(self.dataset, Prompts)

    def evaluation(self, method: Method, trained: bool) -> EvaluationSettings:
        """What is measured of the model, merged by a method; `trained`: whether a run of train.py made its weights."""
        speed = SMOKE if self.trainer.fast_dev_run else self.speed
        return EvaluationSettings(self.model, method, speed, self.compile, trained)


@dataclass(kw_only=True)
class TrainConfig(Config):
    """The configuration of train.py.

    Args:
        resume: go on from a checkpoint, with its configuration: "auto" takes the newest one in the run's folder, if
            there is one. The run then continues exactly; with a larger `trainer.max_epochs` it trains on.
    """

    finetune: FinetuneSettings
    optim: AdamW
    callbacks: CallbackSettings = field(default_factory=CallbackSettings)
    resume: str | None = None

    def __post_init__(self) -> None:
        conflicts.check(self, conflicts.OF_TRAINING)
        published = self.model.pretrained and self.model.num_classes is None
        self.finetune.check_head(trained=published or self.model.weights is not None)

    def context(self, values: dict[str, Any], folder: Path) -> RunContext:
        """What the training goes by; `values` is the same configuration as plain values."""
        return RunContext(
            model=self.model,
            method=self.mame,
            finetune=self.finetune,
            optim=self.optim,
            trainer=self.trainer,
            compile=self.compile,
            seed=self.seed,
            values=values | {"mame": asdict(self.mame)},
            folder=folder,
        )


@dataclass(kw_only=True)
class EvalConfig(Config):
    """The configuration of eval.py.

    Args:
        ckpt: a checkpoint of train.py; None evaluates the model's own weights, without training.
        benchmark: instead of one evaluation, many methods side by side.
        visualize: test images, up to 64, over which to draw which patches became which token (merging.png); the tokens
            after each block are drawn too (tokens.png). 0: no pictures.
    """

    ckpt: str | None = None
    benchmark: Any = None
    visualize: int = 0

    def __post_init__(self) -> None:
        conflicts.check(self, conflicts.OF_EVALUATION)
        if not 0 <= self.visualize <= 64:
            raise MameLabError(f"visualize={self.visualize} is out of range: give a number of images from 0 to 64")


# What says how much merges: one of these replaces the others.
AMOUNTS = ("mame.r", "mame.tau", "mame.flops", "mame.speedup")
# Keys of which an empty text is a value.
MAY_BE_EMPTY = ("dataset.negative",)
# Groups with several classes, the key that tells which one, and the classes.
CHOICES = {
    "mame": ("method", METHODS),
    "dataset": ("name", DATASETS),
    "logger": ("name", LOGGERS),
    "benchmark": ("name", BENCHMARKS),
}


def register() -> None:
    """Make the schema known to Hydra: one for each entry point, and one for each choice of `CHOICES`."""
    OmegaConf.register_new_resolver("groups", _groups, replace=True)
    from mame_lab.runs import search, sweep

    for sweeper in (sweep.Sweep, search.Search):
        sweep.register(sweeper)
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for group, (_, classes) in CHOICES.items():
        for name, settings in classes.items():
            store.store(group=f"schema/{group}", name=name, node=settings)


def _groups() -> str:
    """The groups of conf/ and their choices, a line each, for --help."""
    loader = GlobalHydra.instance().config_loader()
    groups = [group for group in loader.list_groups("") if group not in ("hydra", "schema")]
    return "".join(f"{group}: {', '.join(loader.get_group_options(group))}\n" for group in groups)


def plain(config: DictConfig) -> dict[str, Any]:
    """The resolved configuration as dicts, lists, strings and numbers: what a checkpoint stores.

    Raises:
        MameLabError: a value is empty, as where an unset variable of the shell stands for it, or refers to nothing.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except InterpolationResolutionError as error:
        raise MameLabError(
            f"{error.full_key}: {str(error).splitlines()[0]}: in ${{...}} stands a key of the configuration"
        ) from error
    empty = next((key for key in _empty(values) if key not in MAY_BE_EMPTY), None)
    if empty:
        raise MameLabError(f"{empty}= is empty (an unset variable of the shell?): give a value, or null for none")
    return upgraded(values, announce=True)


def _empty(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The full keys of the texts that are empty or blank, also in lists."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _empty(value, f"{prefix}{key}.")
        elif any(str(each).strip() == "" for each in (value if isinstance(value, list) else [value])):
            yield f"{prefix}{key}"


def typed(cls: type[Run], values: dict[str, Any]) -> Run:
    """The configuration as the dataclasses of the parts, from plain values.

    Raises:
        MameLabError: an unknown key or choice, or a value of a wrong type or out of range; the message names it.
    """
    types = get_type_hints(cls)
    stored = values.get("ckpt") is not None
    return cls(**{key: _part(key, types[key], value, stored) for key, value in values.items()})


def override(stored: dict[str, Any], values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`values` with the experiment (model, mame, dataset, seed) of a checkpoint, except for what `overrides` name.

    Where they say how much merges, what the checkpoint says of that (of AMOUNTS) no longer holds.

    Args:
        stored: the configuration that a checkpoint holds.
        values: the configuration composed from `overrides`.
        overrides: what the command line says, in Hydra's syntax.
    """
    merged = OmegaConf.create(values | {key: stored[key] for key in ("model", "mame", "dataset", "seed")})
    parsed = OverridesParser.create().parse_overrides(overrides)
    keys = {said.key_or_group for said in parsed}
    amount_changes = bool(keys & set(AMOUNTS))
    for key in AMOUNTS if amount_changes else ():
        if OmegaConf.select(merged, key) is not None:
            OmegaConf.update(merged, key, None)
    for said in parsed:
        if said.key_or_group.partition(".")[0] not in values:
            raise MameLabError(
                f"{said.key_or_group}={said.value()} and ckpt=... exclude each other: a checkpoint carries the "
                f"configuration of its run; write the values that are to differ"
            )
        if said.key_or_group == "model.weights" and said.value() is not None:
            raise MameLabError(f"model.weights={said.value()} and ckpt=... exclude each other: give one of the two")
        if said.key_or_group.startswith("mame.") and not _has(merged.mame, said.key_or_group.split(".")[1]):
            raise MameLabError(
                f"{said.key_or_group}={said.value()} is not for mame={merged.mame.method}, which the checkpoint "
                f"carries: leave it out, or give another mame as well"
            )
        value = OmegaConf.select(OmegaConf.create(values), said.key_or_group)
        OmegaConf.update(merged, said.key_or_group, value, merge=False)
    if amount_changes:
        _leave_out(merged.mame, keys)
    return plain(merged)


def _has(mame: DictConfig, key: str) -> bool:
    return mame.method not in METHODS or key in {each.name for each in fields(METHODS[mame.method])}


def _leave_out(mame: DictConfig, keys: set[str]) -> None:
    """Drop what a checkpoint says beside its amount of merging and nothing reads beside another; not what is said."""
    target = mame.get("flops") is not None or mame.get("speedup") is not None
    budget = target or mame.get("r") is not None
    adaptive = mame.get("solve") == "adaptive" if target else not budget and mame.get("tau") is not None
    unread = {
        "clamp": (adaptive, False),
        "batching": (not adaptive, "per_sample"),
        "schedule": (not budget, None),
        "solve": (not target, None),
    }
    for key, (is_unread, nothing) in unread.items():
        if is_unread and key in mame and f"mame.{key}" not in keys:
            mame[key] = nothing


def _part(key: str, cls: type, value: Any, stored: bool) -> Any:
    if key in CHOICES and value is not None:
        discriminator, classes = CHOICES[key]
        chosen = value.get(discriminator)
        if chosen not in classes:
            raise MameLabError(f"{key}.{discriminator}={chosen} is not known: choose from {', '.join(classes)}")
        cls = classes[chosen]
    if not is_dataclass(cls):
        return value
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), value))
    except ConfigKeyError as error:
        fault = "is not known: correct it, see --help"
        if stored:
            fault = (
                "is not known here (any more), but stored with the checkpoint: take the version of mame_lab that "
                "wrote it, or its weights alone, as model.weights=FILE.ckpt"
            )
        # `cli.explain` would tell a cause of OmegaConf's instead.
        raise MameLabError(f"{key}.{error.full_key} {fault}") from None
    except OmegaConfBaseException as error:
        raise MameLabError(f"{key}.{error.full_key}: {str(error).splitlines()[0]}") from error
