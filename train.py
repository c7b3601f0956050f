"""Train a ViT that merges tokens, and show what merging costs in accuracy and gains in speed.

python train.py                                              a small ViT on handwritten digits, 2 to 3 minutes on a CPU
python train.py model=vit_b mame.r=8 finetune=last_layer     the last layer of a pretrained ViT
python train.py dataset=imagefolder dataset.root=FOLDER      your own images
python train.py --help                                       every group and key
"""

from dataclasses import asdict
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mame_lab import cli, config, cpu

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, float]:
    return cli.job(train, cfg)


def train(cfg: DictConfig) -> dict[str, float]:
    values = config.plain(cfg)
    run = config.typed(config.TrainConfig, values)
    config.check_read(run, cli.overrides())

    import lightning
    import rich
    from lightning.pytorch.utilities import rank_zero_only
    from torch.nn.functional import cross_entropy

    import mame_lab
    from mame_lab import budgets, models, resuming, targets, tracking, training
    from mame_lab.data.datamodule import ImageData
    from mame_lab.data.preprocessing import Preprocessing
    from mame_lab.evaluation import evaluate
    from mame_lab.fitting import fit

    cpu.use(run.model.threads)
    print = rank_zero_only(rich.print)
    folder = Path(HydraConfig.get().runtime.output_dir)
    lightning.seed_everything(run.seed, workers=True, verbose=False)
    values["mame"] = asdict(run.mame)
    past = resuming.find(run, folder, values)

    family = models.family(run.model.family)
    model = models.load(run.model)
    data = ImageData(run.dataset, Preprocessing(**family.data_config(model)), run.seed)
    family.name_classes(model, data.classes)
    if family.match_classes(model, len(data.classes)):
        run.finetune.check_head(trained=False)
        print(f"The head is new: {run.model.name} gets the {len(data.classes)} classes of dataset={run.dataset.name}.")

    loggers = run.logger.build(folder, values, past.step if past else 0)
    trainer = run.trainer.build(folder, loggers, [*resuming.callbacks(run.seed), *budgets.callbacks(model, run)])
    with training.processes(trainer), run.trainer.explained():
        if past:
            run = config.typed(config.TrainConfig, values | {"mame": past.config["mame"]})
            print(f"Going on from {past.path}, after {past.step} updates of the weights, with mame={run.mame}.")
        run.mame = targets.meet(model, run.mame, data, trainer, folder)
        asked = past.config.get("asked") if past else None
        values |= {"mame": asdict(run.mame), "asked": asked or values["mame"]}
        mame_lab.apply(model, run.mame)
        fit(model, data, trainer, run, values, past)
        lightning.seed_everything(run.seed, workers=True, verbose=False)  # Whether or not it has trained just now.
        judge = run.trainer.unsharded().build(folder, loggers) if run.trainer.shards else trainer
        result = evaluate(model, data, judge, run, training_loss=cross_entropy)
        tracking.log_result(loggers, result, trainer.global_step)
        if trainer.is_global_zero:
            result.save(folder / "result.json")
            print(result.table())
            print(f"Written to {folder}")
    return result.metrics()


if __name__ == "__main__":
    cli.run(main)
