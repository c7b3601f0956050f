"""Train a ViT that merges tokens, and show what merging costs in accuracy and gains in speed.

python train.py                                              a small ViT on handwritten digits, 2 to 3 minutes on a CPU
python train.py model=vit_b mame.r=8 finetune=last_layer     the last layer of a pretrained ViT
python train.py dataset=imagefolder dataset.root=FOLDER      your own images
python train.py --help                                       every group and key
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mame_lab.runs import cli, config, conflicts, cpu
from mame_lab.training.context import RunContext

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    return cli.run_job(train, cfg)


def train(cfg: DictConfig) -> dict[str, float]:
    values = config.plain(cfg)
    run = config.typed(config.TrainConfig, values)
    conflicts.check_read(run, cli.overrides())

    import lightning

    from mame_lab.training import resume

    cpu.set_threads(run.model.threads)
    lightning.seed_everything(run.seed, workers=True, verbose=False)
    context = run.context(values, Path(HydraConfig.get().runtime.output_dir))
    past = resume.find_checkpoint(run, context.folder, context.values)
    return fit_and_measure(run, context.resumed_from(past))


def fit_and_measure(run: config.TrainConfig, context: RunContext) -> dict[str, float]:
    """The metrics of the trained model, merged against unmerged."""
    import lightning
    import rich
    from lightning.pytorch.utilities import rank_zero_only
    from torch.nn.functional import cross_entropy

    import mame_lab
    from mame_lab import models
    from mame_lab.data.datamodule import ImageData
    from mame_lab.data.preprocessing import Preprocessing
    from mame_lab.measure.evaluate import evaluate
    from mame_lab.measure.result_table import result_table
    from mame_lab.runs.loggers import log_result
    from mame_lab.solver.on_validation import solve_on_validation
    from mame_lab.training import random_r, resume
    from mame_lab.training.fit import fit
    from mame_lab.training.processes import processes

    print, past = rank_zero_only(rich.print), context.past
    family = models.family(run.model.family)
    model = models.load(run.model)
    data = ImageData(run.dataset, Preprocessing(**family.data_config(model)), run.seed)
    family.name_classes(model, data.classes)
    if family.match_classes(model, len(data.classes)):
        run.finetune.check_head(trained=False)
        print(f"The head is new: {run.model.name} gets the {len(data.classes)} classes of dataset={run.dataset.name}.")

    loggers = run.logger.build(context.folder, context.values, past.step if past else 0)
    callbacks = [*resume.callbacks(run.seed), *random_r.callbacks(model, context), *run.callbacks.build()]
    trainer = run.trainer.build(context.folder, loggers, callbacks)
    with processes(trainer), run.trainer.explained():
        if past:
            print(f"Going on from {past.path}, after {past.step} updates of the weights, with mame={context.method}.")
        context = context.solved(solve_on_validation(model, context.method, data, trainer, context.folder))
        mame_lab.apply(model, context.method)
        fit(model, data, trainer, context)
        lightning.seed_everything(run.seed, workers=True, verbose=False)  # Whether or not it has trained just now.
        judge = run.trainer.unsharded().build(context.folder, loggers) if run.trainer.shards else trainer
        result = evaluate(model, data, judge, run.evaluation(context.method, trained=True), cross_entropy)
        log_result(loggers, result, trainer.global_step)
        if trainer.is_global_zero:
            result.save(context.folder / "result.json")
            print(result_table(result))
            print(f"Written to {context.folder}")
    return result.metrics()


if __name__ == "__main__":
    cli.run(main)
