"""Show what merging costs in accuracy and gains in speed, without training or from a checkpoint of train.py.

python eval.py model=deit_b dataset=imagenet dataset.root=FOLDER mame.r=13     pretrained weights, training-free
python eval.py model=dinov2_s model.weights=FILE dataset=digits mame.r=8       a backbone, judged by k-NN
python eval.py ckpt=outputs/train/RUN/checkpoints/best.ckpt mame.r=16          a checkpoint at another budget
python eval.py model=sd21 dataset=prompts mame.r=0.5                           images of a diffusion pipeline
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mame_lab import benchmarks
from mame_lab.models import checkpoint
from mame_lab.models.checkpoint import Checkpoint
from mame_lab.runs import cli, config, conflicts, cpu

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> dict[str, float] | None:
    return cli.run_job(evaluate, cfg)


def evaluate(cfg: DictConfig) -> dict[str, float] | None:
    values, given = config.plain(cfg), cli.overrides()
    stored = checkpoint.read(cfg.ckpt) if cfg.ckpt else None
    if stored:
        values = config.override(stored.config, values, given)
    run = config.typed(config.EvalConfig, values)
    conflicts.check_read(run, given)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if run.benchmark and run.benchmark.complete:
        return benchmarks.run(run.benchmark, None, run.mame, None, None, folder)
    import lightning

    cpu.set_threads(run.model.threads)
    lightning.seed_everything(run.seed, workers=True, verbose=False)
    if run.generates:
        from mame_lab.synthesis.compare import synthesise

        return synthesise(run, values, folder)
    return measure(run, values, stored, folder)


def measure(
    run: config.EvalConfig, values: dict[str, Any], stored: Checkpoint | None, folder: Path
) -> dict[str, float] | None:
    """The metrics of a classifier or backbone, merged against unmerged; None after a benchmark."""
    import rich
    from lightning.pytorch.utilities import rank_zero_only

    import mame_lab
    from mame_lab import models
    from mame_lab.benchmarks import union
    from mame_lab.data.datamodule import ImageData
    from mame_lab.data.preprocessing import Preprocessing
    from mame_lab.measure import pictures
    from mame_lab.measure.evaluate import evaluate as compare
    from mame_lab.measure.result_table import result_table
    from mame_lab.runs.loggers import log_pictures, log_result
    from mame_lab.solver.on_validation import solve_on_validation
    from mame_lab.training.processes import processes

    print = rank_zero_only(rich.print)
    family = models.family(run.model.family)
    model = models.load(run.model, stored)
    data = ImageData(run.dataset, Preprocessing(**family.data_config(model)), run.seed)
    family.name_classes(model, data.classes)
    if not (stored or run.model.weights or run.model.pretrained):
        print("The weights are random: read cost and speed, not accuracy. Give ckpt=FILE or model.weights=FILE.")

    loggers = run.logger.build(folder, values)
    trainer = run.trainer.unsharded().build(folder, loggers)
    with processes(trainer), run.trainer.explained():
        if run.benchmark:
            return benchmarks.run(run.benchmark, model, run.mame, data, trainer, folder)
        method = solve_on_validation(model, run.mame, data, trainer, folder)
        mame_lab.apply(model, method)
        pictures.check(model, run.visualize, method)
        result = compare(model, data, trainer, run.evaluation(method, trained=stored is not None))
        log_result(loggers, result)
        if trainer.is_global_zero:
            result.save(folder / "result.json")
            print(result_table(result))
            if models.depends_on_batch(model):
                union.show(model, data, trainer, result.conditions.batch, folder)
            if run.visualize:
                title = f"{run.model.name}, {method}"
                log_pictures(loggers, pictures.draw(model, data, trainer, run.visualize, title, folder))
            print(f"Written to {folder}")
    return result.metrics()


if __name__ == "__main__":
    cli.run(main)
