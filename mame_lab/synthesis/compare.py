"""What merging in a text-to-image pipeline gains in speed, and how near its images stay; ToMe's form for it beside it.

B images, 3HW: RGB from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich import print
from torch import Tensor, nn

from mame_lab import benchmarks
from mame_lab.data.prompts import Prompts
from mame_lab.errors import MameLabError
from mame_lab.measure import flops, memory, speed
from mame_lab.measure.conditions import Conditions, gather_conditions, weights_hash
from mame_lab.measure.result import ModelMeasurement, Result
from mame_lab.merging import Method, ToMeSD
from mame_lab.models import apply, library, shared_copy
from mame_lab.runs.config import EvalConfig
from mame_lab.runs.loggers import log_pictures, log_result
from mame_lab.synthesis.generate import Picture, captured_step, generate
from mame_lab.synthesis.quality import ImageMetrics, fid, high_frequency_energy, likeness
from mame_lab.synthesis.sheet import contact_sheet
from mame_lab.synthesis.table import quality_table

UNMERGED, MERGED, TOMESD = "unmerged", "merged", "tomesd"
DTYPES = {"16-true": torch.float16, "bf16-true": torch.bfloat16, "32-true": torch.float32}


def synthesise(run: EvalConfig, values: dict[str, Any], folder: Path) -> dict[str, float] | None:
    """Generate with and without merging, and write result.json, tomesd.json, the images and contact_sheet.png.

    Args:
        run: the configuration; its dataset is `Prompts`.
        values: the same as plain values, for the loggers.
        folder: of the run.

    Returns:
        The metrics of the result; None after a benchmark.
    """
    loggers = run.logger.build(folder, values)
    trainer = run.trainer.build(folder, loggers)
    if trainer.world_size > 1:
        raise MameLabError(f"trainer.devices={run.trainer.devices} is for training: dataset=prompts runs on one")
    if trainer.precision not in DTYPES:
        raise MameLabError(f"trainer.precision={trainer.precision} is not for pipelines: choose {', '.join(DTYPES)}")
    pipe = library(run.model.family).load(run.model)
    if not (run.model.pretrained or run.model.weights):
        print("The weights are random: the images are noise, read cost and speed. Give model.weights=FOLDER.")
    pipe.to(trainer.strategy.root_device)
    if trainer.precision != "32-true":
        pipe.to(DTYPES[trainer.precision])
    if run.benchmark:
        benchmarks.run(run.benchmark, pipe, run.mame, run.dataset, trainer, folder)
        print(f"Written to {folder}")
        return None
    results, pictures = compare(pipe, run)
    for arm, result in results.items():
        result.save(folder / ("result.json" if arm == MERGED else f"{arm}.json"))
    log_result(loggers, results[MERGED])
    print(quality_table(results))
    log_pictures(loggers, save(pictures, results, folder))
    print(f"Written to {folder}")
    return results[MERGED].metrics()


def compare(pipe: Any, run: EvalConfig) -> tuple[dict[str, Result], list[Picture]]:
    """The result of each merging arm against unmerged, and the pictures of all arms.

    Args:
        pipe: a pipeline without merging, on its device; it is left with the U-Net of the last image.
        run: `mame`, `dataset` and `speed` say what is generated and timed.
    """
    prompts: Prompts = run.dataset
    requests, options = prompts.requests(), prompts.options()
    plain = pipe.unet
    arms_of = methods(run.mame)
    unets = {UNMERGED: plain} | {arm: apply(shared_copy(plain), method) for arm, method in arms_of.items()}
    inputs = captured_step(pipe, requests[0], options)
    pictures = list(generate(pipe, unets, requests, options))
    steps = {arm: _step(unet, inputs) for arm, unet in unets.items()}
    limits = {"max_rounds": run.speed.max_rounds, "seconds": run.speed.seconds}
    taken = speed.time_interleaved(steps, plain.device, **limits)
    passes = len(pipe.scheduler.timesteps) * len(inputs[0][0])
    quality = _quality(pictures, prompts)
    arms = {
        arm: ModelMeasurement(
            gflops=passes * flops.gflops_by_shapes(_of_sample(unet, inputs), inputs[0][0]),
            tokens=[float(tokens) for tokens in library(run.model.family).tokens(unet, inputs[0][0])],
            samples_per_s=1 / median(picture.seconds[arm] for picture in pictures),
            **_latencies([picture.seconds[arm] for picture in pictures]),
            step_ms_p50=1e3 * median(taken[arm]),
            peak_memory_mb=memory.peak_memory_mb(steps[arm], plain.device),
            quality=quality[arm],
        )
        for arm, unet in unets.items()
    }
    speedups = {arm: median(p.seconds[UNMERGED] / p.seconds[arm] for p in pictures) for arm in unets}
    conditions = _conditions(plain, run, len(taken[UNMERGED]), pictures)
    return {
        arm: Result(
            merged=arms[arm],
            unmerged=arms[UNMERGED],
            evaluated_by="images",
            feature_error=None,
            speedup=speedups[arm],
            conditions=replace(conditions, more=conditions.more | {"merging": str(method)}),
        )
        for arm, method in arms_of.items()
    }, pictures


def methods(method: Method) -> dict[str, Method]:
    """The method, and where it merges ToMe for Stable Diffusion with the same budget in the same blocks."""
    if isinstance(method, ToMeSD) or not method.r:
        return {MERGED: method}
    return {
        MERGED: method,
        TOMESD: ToMeSD(r=method.r, schedule=method.schedule, blocks=method.blocks, clamp=method.clamp),
    }


def save(pictures: Sequence[Picture], results: dict[str, Result], folder: Path) -> dict[str, Path]:
    """Write every image and the contact sheet; returns the sheet's path by its name."""
    from torchvision.utils import save_image

    (folder / "images").mkdir(exist_ok=True)
    for index, picture in enumerate(pictures):
        for arm, image_3HW in picture.images.items():
            save_image(image_3HW, folder / "images" / f"{index:03d}_{arm}.png")
    titles = {UNMERGED: UNMERGED} | {
        arm: f"{result.conditions.more['merging']}\n{result.merged.quality['psnr_db']:.1f} dB"
        for arm, result in results.items()
    }
    path = folder / "contact_sheet.png"
    contact_sheet(pictures, titles).savefig(path, dpi=150)
    return {"contact_sheet": path}


def _step(unet: nn.Module, inputs: tuple[tuple, dict[str, Any]]) -> Callable[[], object]:
    @torch.inference_mode()
    def step() -> object:
        return unet(*inputs[0], **inputs[1])

    return step


def _of_sample(unet: nn.Module, inputs: tuple[tuple, dict[str, Any]]) -> Callable[[Tensor], object]:
    return lambda sample: unet(sample, *inputs[0][1:], **inputs[1])


def _quality(pictures: Sequence[Picture], prompts: Prompts) -> dict[str, dict[str, float]]:
    """The measures of every arm by their names."""
    metrics = ImageMetrics(prompts.metrics)
    images = {arm: torch.stack([picture.images[arm] for picture in pictures]) for arm in pictures[0].images}
    texts = [picture.prompt for picture in pictures]
    quality = {}
    for arm, images_B3HW in images.items():
        near = {} if arm == UNMERGED else likeness(images_B3HW, images[UNMERGED])
        quality[arm] = near | metrics(images_B3HW, images[UNMERGED], texts)
        quality[arm]["high_frequency_energy"] = high_frequency_energy(images_B3HW)
        if prompts.reference and (distance := fid(images_B3HW, prompts.reference)) is not None:
            quality[arm]["fid"] = distance
    return quality


def _latencies(seconds: list[float]) -> dict[str, Any]:
    timing = speed.Timing.from_seconds(seconds, 1)
    return {"latency_ms_p50": timing.latency_ms_p50, "latency_ms_p95": timing.latency_ms_p95}


def _conditions(unet: Any, run: EvalConfig, rounds: int, pictures: Sequence[Picture]) -> Conditions:
    height, width = pictures[0].images[UNMERGED].shape[1:]
    return gather_conditions(
        unet.device,
        unet.dtype,
        batch=1,
        rounds=rounds,
        seed=run.seed,
        weights=weights_hash(unet),
        library=run.model.family,
        model=run.model.name,
        dataset=run.dataset.name,
        images=len(pictures),
        pixels=f"{width}x{height}",
        steps=run.dataset.steps,
        guidance=run.dataset.guidance,
    )
