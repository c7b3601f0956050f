"""What merging costs in accuracy and gains in speed: a model against the same weights unmerged, in one Result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mame_lab.data.datamodule import ImageData
from mame_lab.measure import cost, flops, memory, speed
from mame_lab.measure.comparison import changes, check_classes, compare, scores
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.fidelity import Distance
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import EvaluatedBy, ModelMeasurement, Result
from mame_lab.measure.settings import EvaluationSettings, SpeedSettings
from mame_lab.models import depends_on_batch, family_of, is_adaptive, shared_copy, unmerged_copy
from mame_lab.models.compilation import check_compiles, compile_models
from mame_lab.models.zero_shot import ZeroShotHead

Loss = Callable[[Tensor, Tensor], Tensor]

LOADING = 3.0  # seconds in which the data loader is timed


def evaluate(
    model: nn.Module, data: ImageData, trainer: Trainer, settings: EvaluationSettings, training_loss: Loss | None = None
) -> Result:
    """Compare a merged model with the same weights unmerged, on the test images.

    Args:
        model: with merging applied.
        data: its test images are classified, counted and timed.
        trainer: its device and precision hold for everything.
        settings: what is measured and how long.
        training_loss: of logits and labels; given, a training step is timed too.

    Raises:
        MameLabError: the classes of the model are not those of the data, or it is to be compiled and cannot be.
    """
    device = trainer.strategy.root_device
    check_classes(family_of(model).classifier(model), data.classes)
    if settings.compile:
        check_compiles(model, device)
    model = prepared(model, trainer)
    models = {"merged": shared_copy(model), "unmerged": unmerged_copy(model)}
    outcomes, distances = compare(models, family_of(model).classifier, data, trainer)
    speeds = settings.speed
    images, labels = (converted(tensor, trainer) for tensor in data.sample(speeds.batch_size))
    for each in models.values():
        each.to(device)
    if settings.compile:
        compile_models(*models.values())
    batch = images[: data.dataset.batch_size], labels[: data.dataset.batch_size]
    training, train_speedup = _race_training(models, training_loss, batch, trainer, speeds)
    forwards = {name: _forward(each.eval(), images) for name, each in models.items()}
    inference, speedup = _race(forwards, len(images), trainer, speeds)
    arms = {
        name: ModelMeasurement(
            scores=scores(outcomes[name]),
            **_cost(shared_copy(each), images, speeds.cost_samples, trainer),
            samples_per_s=inference[name].samples_per_s,
            latency_ms_p50=inference[name].latency_ms_p50,
            latency_ms_p95=inference[name].latency_ms_p95,
            train_samples_per_s=training[name].samples_per_s if training else None,
        )
        for name, each in models.items()
    }
    return Result(
        **arms,
        **_fidelity(distances["merged"]),
        evaluated_by=_evaluated_by(family_of(model).classifier(model), settings),
        changes=changes(outcomes["merged"], outcomes["unmerged"]),
        speedup=speedup,
        train_speedup=train_speedup,
        train_batch=len(batch[0]) if training else None,
        loader_samples_per_s=speed.loader_rate(_loader(data, bool(training)), min(LOADING, speeds.seconds)),
        conditions=_conditions(models["merged"], trainer, settings, inference["merged"], images, data),
    )


def _fidelity(distance: Distance) -> dict[str, Any]:
    agreement = None if distance.agreement is None else Proportion(*distance.agreement)
    return distance._asdict() | {"agreement": agreement}


def _conditions(
    model: nn.Module,
    trainer: Trainer,
    settings: EvaluationSettings,
    inference: speed.Timing,
    images: Tensor,
    data: ImageData,
) -> Conditions:
    return gather_conditions(
        images.device,
        trainer.precision,
        batch=inference.batch,
        rounds=inference.rounds,
        seed=data.seed,
        processes=trainer.world_size,
        library=settings.model.family,
        weights=weights_hash(model),
        model=settings.model.name,
        dataset=data.dataset.name,
        merging=str(settings.method),
        attention="scaled_dot_product_attention" if family_of(model).fused_attention(model) else "unfused",
        compiled=settings.compile,
        **data.splits.conditions,
    )


def _evaluated_by(classifier: nn.Module, settings: EvaluationSettings) -> EvaluatedBy:
    """What gives the class. A head of class names is zero-shot only as long as nothing before it was trained here."""
    if isinstance(classifier, nn.Identity):
        return "k-NN"
    untrained = not (settings.trained or settings.model.is_checkpoint)
    return "zero-shot" if untrained and isinstance(classifier, ZeroShotHead) else "classifier"


def _forward(model: nn.Module, images: Tensor) -> Callable[[], object]:
    @torch.inference_mode()
    def forward() -> object:
        return model(images)

    return forward


def _in_precision(call: Callable[[], object], trainer: Trainer) -> Callable[[], object]:
    """Each call casts the weights anew, as a step of training or a request does."""

    def cast() -> object:
        with trainer.precision_plugin.forward_context():
            return call()

    return cast


def _race(
    calls: Mapping[str, Callable[[], object]], batch: int, trainer: Trainer, settings: SpeedSettings
) -> tuple[dict[str, speed.Timing], float]:
    """The timing of each call, and how many times faster merged is."""
    arms = {name: _in_precision(call, trainer) for name, call in calls.items()}
    limits = {"max_rounds": settings.max_rounds, "seconds": settings.seconds}
    taken = speed.time_interleaved(arms, trainer.strategy.root_device, **limits)
    timings = {}
    for name, seconds in taken.items():
        timing = speed.Timing.from_seconds(seconds, batch)
        timings[name] = replace(timing, samples_per_s=_over_processes(timing.samples_per_s, trainer))
    return timings, _over_processes(speed.speedup(taken["merged"], taken["unmerged"]), trainer)


def _race_training(
    models: dict[str, nn.Module],
    loss: Loss | None,
    batch: tuple[Tensor, Tensor],
    trainer: Trainer,
    settings: SpeedSettings,
) -> tuple[dict[str, speed.Timing], float | None]:
    """The same of a training step; nothing without a loss."""
    if loss is None:
        return {}, None
    steps = {name: speed.training_step(each, loss, *batch) for name, each in models.items()}
    return _race(steps, len(batch[0]), trainer, settings)


def _over_processes(number: float, trainer: Trainer) -> float:
    """Its mean over the processes."""
    tensor = torch.tensor(number, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(tensor, reduce_op="mean"))


def _loader(data: ImageData, training: bool) -> DataLoader:
    return data.train_dataloader() if training else data.test_dataloader()


def _cost(model: nn.Module, images: Tensor, counted: int, trainer: Trainer) -> dict[str, Any]:
    """Multiply-adds and tokens, mean over the images, and memory; of a model that is not compiled."""
    peak = memory.peak_memory(_in_precision(_forward(model, images), trainer), images.device)
    measured: dict[str, Any] = {"peak_memory_mb": None if peak is None else peak / 1e6}
    with torch.inference_mode():
        measured["tokens"] = [float(tokens_B.float().mean()) for tokens_B in family_of(model).trace(model, images)]
    if is_adaptive(model) and not depends_on_batch(model):
        return measured | {"gflops": cost.adaptive_gflops(model, images, counted)}
    alike = images if depends_on_batch(model) else images[:1]
    return measured | {"gflops": flops.gflops(model, alike, depends_on_batch(model))[""]}
