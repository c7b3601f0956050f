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
from mame_lab.measure import cost, memory, speed
from mame_lab.measure.comparison import changes, check_classes, compare, scores
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.precision import converted, prepared
from mame_lab.measure.proportion import Proportion
from mame_lab.measure.result import EvaluatedBy, ModelMeasurement, Result
from mame_lab.measure.settings import EvaluationSettings, SpeedSettings
from mame_lab.models import family_of, shared_copy, unmerged_copy
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
    device, speeds = trainer.strategy.root_device, settings.speed
    check_classes(family_of(model).classifier(model), data.classes)
    if settings.compile:
        check_compiles(model, device)
    model = prepared(model, trainer)
    models = {"merged": shared_copy(model), "unmerged": unmerged_copy(model)}
    reached, lost = _accuracy(models, data, trainer, settings)
    images, labels = (converted(tensor, trainer) for tensor in data.sample(speeds.batch_size))
    models = {name: each.to(device) for name, each in models.items()}
    _compile(models, settings)
    batch = images[: data.dataset.batch_size], labels[: data.dataset.batch_size]
    training, train_speedup = _training(models, batch, training_loss, trainer, speeds)
    _compile(models, settings, graphs=True)
    forwards = {name: _forward(each.eval(), images) for name, each in models.items()}
    inference, speedup = _race(forwards, len(images), trainer, speeds)
    arms = {
        name: ModelMeasurement(
            scores=reached[name],
            **_resources(shared_copy(each), images, trainer, speeds.cost_samples),  # A copy is not compiled.
            samples_per_s=inference[name].samples_per_s,
            latency_ms_p50=inference[name].latency_ms_p50,
            latency_ms_p95=inference[name].latency_ms_p95,
            train_samples_per_s=training[name].samples_per_s if training else None,
        )
        for name, each in models.items()
    }
    return Result(
        **arms,
        **lost,
        speedup=speedup,
        train_speedup=train_speedup,
        train_batch=len(batch[0]) if training else None,
        loader_samples_per_s=speed.loader_rate(_loader(data, bool(training)), min(LOADING, speeds.seconds)),
        conditions=_conditions(models["merged"], trainer, settings, inference["merged"], images, data),
    )


def _compile(models: dict[str, nn.Module], settings: EvaluationSettings, graphs: bool = False) -> None:
    """If that is set: training steps as they train, forward passes with what they record."""
    if settings.compile:
        compile_models(*models.values(), graphs=graphs)


def _accuracy(
    models: dict[str, nn.Module], data: ImageData, trainer: Trainer, settings: EvaluationSettings
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores of each model, and the fields of `Result` that say what merging loses."""
    classifier = family_of(models["merged"]).classifier
    outcomes, distances = compare(models, classifier, data, trainer)
    distance = distances["merged"]
    return {name: scores(each) for name, each in outcomes.items()}, {
        "evaluated_by": _evaluated_by(classifier(models["merged"]), settings),
        "changes": changes(outcomes["merged"], outcomes["unmerged"]),
        "agreement": None if distance.agreement is None else Proportion(*distance.agreement),
        "kl": distance.kl,
        "feature_error": distance.feature_error,
    }


def _training(
    models: dict[str, nn.Module],
    batch: tuple[Tensor, Tensor],
    loss: Loss | None,
    trainer: Trainer,
    speeds: SpeedSettings,
) -> tuple[dict[str, speed.Timing], float | None]:
    """The timing of a training step of each model, and how many times faster merged is; nothing without a loss."""
    if loss is None:
        return {}, None
    steps = {name: speed.training_step(each, loss, *batch) for name, each in models.items()}
    return _race(steps, len(batch[0]), trainer, speeds)


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


def _over_processes(number: float, trainer: Trainer) -> float:
    """Its mean over the processes."""
    tensor = torch.tensor(number, device=trainer.strategy.root_device)
    return float(trainer.strategy.reduce(tensor, reduce_op="mean"))


def _loader(data: ImageData, training: bool) -> DataLoader:
    return data.train_dataloader() if training else data.test_dataloader()


def _resources(model: nn.Module, images: Tensor, trainer: Trainer, counted: int) -> dict[str, Any]:
    """Multiply-adds and tokens, mean over the images, and the memory of a forward pass."""
    with torch.inference_mode():
        tokens = [float(tokens_B.float().mean()) for tokens_B in family_of(model).trace(model, images)]
    call = _in_precision(_forward(model, images), trainer)
    return {
        "gflops": cost.gflops(model, images, counted),
        "tokens": tokens,
        "peak_memory_mb": memory.peak_memory_mb(call, images.device),
    }
