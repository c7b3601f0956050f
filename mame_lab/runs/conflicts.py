"""Settings that exclude each other, in one table. It is checked at composition, before any weights load.

What needs the model, such as a class token or whether a head is trained, is checked where the model is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from mame_lab.benchmarks import Denoiser
from mame_lab.errors import MameLabError


class Setting(NamedTuple):
    """A choice that a configuration makes or not.

    Attributes:
        text: as the command line says it; what stands in braces is filled in from the configuration.
        given: whether a configuration makes it.
    """

    text: str
    given: Callable[[Any], Any]


PIPELINE = Setting("model.name={model.name}", lambda run: run.model.family == "diffusers")
CLASSIFIER = Setting("model.name={model.name}", lambda run: run.model.family != "diffusers")
PROMPTS = Setting("dataset={dataset.name}", lambda run: run.generates)
IMAGES = Setting("dataset={dataset.name}", lambda run: not run.generates)
UNAUGMENTED = Setting("dataset.augment=none", lambda run: run.dataset.augment == "none")
COMPILE = Setting("compile=true", lambda run: run.compile)
PACKED = Setting("mame.batching=packed", lambda run: getattr(run.mame, "batching", None) == "packed")
UNION = Setting("mame.batching=union", lambda run: getattr(run.mame, "batching", None) == "union")
RANDOM = Setting("mame={mame.method}", lambda run: run.mame.random)
CLAMP = Setting("mame.clamp=true", lambda run: run.mame.clamp)
CACHE = Setting("finetune.cache=true", lambda run: run.finetune.cache)
NO_CACHE = Setting("finetune.cache=false", lambda run: not run.finetune.cache)
VIEWS = Setting("finetune.views={finetune.views}", lambda run: run.finetune.views > 1)
HALF_CACHE = Setting("finetune.cache_dtype={finetune.cache_dtype}", lambda run: run.finetune.cache_dtype != "float32")
DISTILL = Setting("finetune.distill={finetune.distill}", lambda run: run.finetune.distill > 0)
NO_DISTILL = Setting("finetune.distill=0", lambda run: run.finetune.distill == 0)
TEMPERATURE = Setting("finetune.temperature={finetune.temperature}", lambda run: run.finetune.temperature != 1)
RANDOM_R = Setting("finetune.random_r={finetune.random_r}", lambda run: run.finetune.random_r is not None)
SHARDS = Setting("trainer.strategy={trainer.strategy}", lambda run: run.trainer.shards)
FAST_DEV_RUN = Setting("trainer.fast_dev_run={trainer.fast_dev_run}", lambda run: run.trainer.fast_dev_run)
PRECISION = Setting("trainer.precision={trainer.precision}", lambda run: not run.trainer.float32_weights)
BENCHMARK = Setting("benchmark={benchmark.name}", lambda run: run.benchmark is not None)
DENOISER = Setting("benchmark=denoiser", lambda run: isinstance(run.benchmark, Denoiser))
OTHER_BENCHMARK = Setting("benchmark={benchmark.name}", lambda run: BENCHMARK.given(run) and not DENOISER.given(run))
VISUALIZE = Setting("visualize={visualize}", lambda run: run.visualize)
CKPT = Setting("ckpt={ckpt}", lambda run: run.ckpt)

EITHER = "leave one of the two"
Conflict = tuple[Setting, Setting, str, str]  # why they exclude each other, and what to do

OF_ALL: tuple[Conflict, ...] = (
    (PIPELINE, IMAGES, "pipelines make images from prompts", "give dataset=prompts too, or another model"),
    (CLASSIFIER, PROMPTS, "only pipelines make images from prompts", "give model=sd21 or sd_mini too"),
)
OF_COMPILE: tuple[Conflict, ...] = (
    (COMPILE, PACKED, "its attention is not compiled", "take mame.batching=per_sample or set compile=false"),
)
OF_TRAINING: tuple[Conflict, ...] = (
    *OF_ALL,
    (PIPELINE, PROMPTS, "pipelines are not trained: merging in them is training-free", "use eval.py"),
    (CACHE, COMPILE, "the cache runs the model in two parts", EITHER),
    (CACHE, SHARDS, "the cache needs whole weights", EITHER),
    (CACHE, FAST_DEV_RUN, "the cache computes all images first", EITHER),
    (CACHE, RANDOM_R, "what is cached is merged by one budget", EITHER),
    (CACHE, UNION, "the tokens of a sample depend on its batch", "set mame.batching=per_sample"),
    (CACHE, RANDOM, "it draws anew in every pass", "set finetune.cache=false"),
    (CACHE, PRECISION, "the cache holds float32 activations", "take 32-true or a mixed precision"),
    (VIEWS, NO_CACHE, "views are cached", "set finetune.cache=true, or leave finetune.views out"),
    (VIEWS, UNAUGMENTED, "all views would be the same", "set finetune.views=1 or choose an augmentation"),
    (HALF_CACHE, NO_CACHE, "it is the cache's", "set finetune.cache=true, or leave finetune.cache_dtype out"),
    (TEMPERATURE, NO_DISTILL, "it is distillation's", "set finetune.distill, or leave finetune.temperature out"),
    (DISTILL, SHARDS, "the teacher needs whole weights in every process", "take trainer=ddp"),
    (COMPILE, SHARDS, "torch.compile needs whole weights in every process", "take trainer=ddp"),
    (RANDOM_R, COMPILE, "each budget would be compiled anew", EITHER),
    (RANDOM_R, SHARDS, "sharded blocks cannot change how they merge", EITHER),
    (RANDOM_R, CLAMP, "a truncated budget is another one", EITHER),
    *OF_COMPILE,
)
OF_EVALUATION: tuple[Conflict, ...] = (
    *OF_ALL,
    (PROMPTS, COMPILE, "it is for models that classify", "leave compile out"),
    (PROMPTS, VISUALIZE, "it is for models that classify", "leave visualize out"),
    (PROMPTS, CKPT, "train.py makes models that classify", "leave ckpt out"),
    (PROMPTS, OTHER_BENCHMARK, "it is for models that classify", "take benchmark=denoiser"),
    (IMAGES, DENOISER, "it is for pipelines", "give model=sd_mini dataset=prompts too"),
    (COMPILE, BENCHMARK, "it is for one evaluation", "leave it, or take benchmark=throughput benchmark.compiled=true"),
    (VISUALIZE, BENCHMARK, "one draws one evaluation, and the other compares many", EITHER),
    *OF_COMPILE,
)


def check(run: Any, conflicts: tuple[Conflict, ...]) -> None:
    """Raise MameLabError for the first conflict of which a typed configuration has both sides."""
    for one, other, reason, remedy in conflicts:
        if one.given(run) and other.given(run):
            both = f"{one.text} and {other.text} exclude each other".format(**vars(run))
            raise MameLabError(f"{both}, for {reason}: {remedy}")


def check_read(run: Any, overrides: list[str]) -> None:
    """Raise MameLabError for a key that the command line gives and nothing reads beside the others.

    Args:
        run: what the command line and conf/ make.
        overrides: what the command line says, in Hydra's syntax.
    """
    benchmark, unread = getattr(run, "benchmark", None), {}
    if benchmark is not None:
        unread |= dict.fromkeys(benchmark.unread, f"benchmark={benchmark.name}, which has settings of its own")
    if run.generates:
        unread |= {f"speed.{key}": f"dataset={run.dataset.name}" for key in ("batch_size", "cost_samples")}
    if getattr(run.dataset, "augment", None) == "none":
        unread["dataset.min_crop_area"] = "dataset.augment=none"
    for said in OverridesParser.create().parse_overrides(overrides):
        for group, beside in unread.items():
            if f"{said.key_or_group}.".startswith(f"{group}."):
                raise MameLabError(f"{said.key_or_group}={said.value()} has no meaning beside {beside}: leave it out")
