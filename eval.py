"""Show what merging costs in accuracy and gains in speed, without training or from a checkpoint of train.py.

python eval.py model=deit_b dataset=imagenet dataset.root=FOLDER mame.r=13     pretrained weights, training-free
python eval.py model=dinov2_s model.weights=FILE dataset=digits mame.r=8       a backbone, judged by k-NN
python eval.py ckpt=outputs/train/RUN/checkpoints/best.ckpt mame.r=16          a checkpoint at another budget
python eval.py model=sd21 dataset=prompts mame.r=0.5                           images of a diffusion pipeline
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mame_lab import checkpoint, cli, config, cpu

config.register()


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
def main(cfg: DictConfig) -> dict[str, float] | None:
    return cli.job(evaluate, cfg)


def evaluate(cfg: DictConfig) -> dict[str, float] | None:
    values = config.plain(cfg)
    said = cli.overrides()
    stored = checkpoint.read(cfg.ckpt) if cfg.ckpt else None
    if stored:
        values = config.override(stored.config, values, said)
    run = config.typed(config.EvalConfig, values)
    config.check_read(run, said)
    folder = Path(HydraConfig.get().runtime.output_dir)

    import lightning
    import rich
    from lightning.pytorch.utilities import rank_zero_only

    import mame_lab
    from mame_lab import batch_effect, models, pictures, targets, tracking, training
    from mame_lab.data.datamodule import ImageData
    from mame_lab.data.preprocessing import Preprocessing
    from mame_lab.evaluation import evaluate as compare

    cpu.use(run.model.threads)
    print = rank_zero_only(rich.print)
    lightning.seed_everything(run.seed, workers=True, verbose=False)
    if run.generates:
        from mame_lab.synthesis.compare import synthesise

        return synthesise(run, values, folder)

    family = models.family(run.model.family)
    if stored:
        model = family.build(run.model)
        family.load_weights(model, stored.state, f"ckpt={run.ckpt}", head_of_file=run.model.num_classes != 0)
    else:
        model = models.load(run.model)
    data = ImageData(run.dataset, Preprocessing(**family.data_config(model)), run.seed)
    family.name_classes(model, data.classes)
    if not (stored or run.model.weights or run.model.pretrained):
        print("The weights are random: read cost and speed, not accuracy. Give ckpt=FILE or model.weights=FILE.")

    loggers = run.logger.build(folder, values)
    trainer = run.trainer.unsharded().build(folder, loggers)
    if run.benchmark:
        with training.processes(trainer), run.trainer.explained():
            run.benchmark.run(model, run.mame, data, trainer, folder)
        print(f"Written to {folder}")
        return None
    with training.processes(trainer), run.trainer.explained():
        run.mame = targets.meet(model, run.mame, data, trainer, folder)
        mame_lab.apply(model, run.mame)
        pictures.check(model, run)
        result = compare(model, data, trainer, run)
        tracking.log_result(loggers, result)
        if trainer.is_global_zero:
            result.save(folder / "result.json")
            print(result.table())
            if models.depends_on_batch(model):
                batch_effect.show(model, data, trainer, result.conditions.batch, folder)
            if run.visualize:
                tracking.log_pictures(loggers, pictures.draw(model, data, trainer, run, folder))
            print(f"Written to {folder}")
    return result.metrics()


if __name__ == "__main__":
    cli.run(main)
