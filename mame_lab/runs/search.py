"""A sweep in which Optuna proposes the runs: it looks for those that no other is better than in every objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

from mame_lab.errors import MameLabError
from mame_lab.runs.search_space import Ranges, Schedules, Space
from mame_lab.runs.sweep import Overrides, Sweep, make_report

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial
    from rich.table import Table

SAMPLERS = ("tpe", "nsga2")
POPULATION = 20  # of NSGA-II
STUDY, FILE = "search", "study.db"  # SQLite, in the folder of the sweep
TOKENS = "tokens/block_"  # what the metrics of each block begin with
SEARCHED = ("mame.r", "mame.blocks", "mame.schedule")  # by schedules


class Search(Sweep):
    """Hydra's sweeper by Optuna.

    What is searched are the ranges among the overrides (choice, range, interval), or else `mame.r` for each block; run
    0 is then the unmerged model, which says how many blocks there are. The study is a file in the sweep's folder, and
    the same command goes on with it.

    Args:
        trials: in all, with those of earlier calls.
        maximize, minimize: names of metrics that a run returns; by at least one the runs are judged.
        sampler: tpe or nsga2.
        seed: of the sampler.
        max_batch_size: runs that are proposed, and given to the launcher, at a time.
        params: see `Sweep`.
    """

    def __init__(
        self,
        trials: int,
        maximize: Sequence[str],
        minimize: Sequence[str],
        sampler: str = "tpe",
        seed: int = 0,
        max_batch_size: int = 1,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.batch = max_batch_size
        if sampler not in SAMPLERS:
            raise MameLabError(f"hydra.sweeper.sampler={sampler} is not known: choose from {', '.join(SAMPLERS)}")
        if not [*maximize, *minimize]:
            raise MameLabError("hydra.sweeper.maximize and hydra.sweeper.minimize are empty: name a metric in one")
        self.trials, self.sampler, self.seed = trials, sampler, seed
        self.directions = {**dict.fromkeys(maximize, "maximize"), **dict.fromkeys(minimize, "minimize")}

    def sweep(self, arguments: list[str]) -> list[FrozenTrial]:
        """Run what is left of the trials, make the report, and return the trials that are Pareto-optimal.

        Raises:
            MameLabError: Optuna is not installed; the folder holds another search; no run gave the objectives.
        """
        said = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = OverridesParser.create(self.hydra_context.config_loader).parse_overrides(said)
        ranges = [override for override in parsed if override.is_sweep_override()]
        fixed = [override for override in parsed if not override.is_sweep_override()]
        for override in fixed:
            if not ranges and override.key_or_group in SEARCHED:
                raise MameLabError(f"{override.input_line} is what the search looks for: leave it out, or give ranges")
        self.start()
        study = self._study(said)
        lines = [str(override.input_line) for override in fixed]
        space = Ranges(ranges) if ranges else self._schedules(study, lines)
        self._search(study, space, lines)
        make_report(self.folder)
        best = sorted(study.best_trials, key=lambda trial: trial.values)
        if not best:
            raise MameLabError(f"no run came to its end: see {self.folder}")
        import rich

        rich.print(self._table(best, space))
        return best

    def _study(self, said: list[str]) -> Study:
        """The study in the sweep's folder, new or as it is, with a sampler that does not repeat itself in it."""
        try:
            import optuna
        except ImportError as error:
            raise MameLabError("hydra/sweeper=search needs Optuna: pip install 'mame_lab[search]'") from error

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            study_name=STUDY,
            storage=f"sqlite:///{self.folder / FILE}",
            directions=[*self.directions.values()],  # pyright: ignore[reportArgumentType]
            load_if_exists=True,
        )
        asked = {"overrides": said, "objectives": self.directions}
        if study.user_attrs.get("asked", asked) != asked:
            raise MameLabError(
                f"hydra.sweep.dir={self.folder} holds the search for {study.user_attrs['asked']}: go on with that, or "
                f"give this search a folder of its own"
            )
        study.set_user_attr("asked", asked)
        seed = self.seed + len(study.trials)
        if self.sampler == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=seed)
        else:
            study.sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=seed)
        return study

    def _schedules(self, study: Study, fixed: Overrides) -> Schedules:
        """The space of schedules for as many blocks as run 0 has, which is run if it is not in the study."""
        if study.trials:
            return Schedules(len(study.trials[0].params) - 1)
        from optuna.trial import create_trial

        result = self._launch({0: [*fixed, "mame.r=0"]})[0]
        values = self._values(result)
        if result is None or values is None:
            raise MameLabError(f"the search starts with the unmerged model, and that failed: see {self.folder}")
        space = Schedules(sum(name.startswith(TOKENS) for name in result.return_value))
        unmerged = space.unmerged()
        study.add_trial(create_trial(params=unmerged, distributions=space.distributions(), values=values))
        for parameters in space.first():
            study.enqueue_trial(parameters)
        return space

    def _search(self, study: Study, space: Space, fixed: Overrides) -> None:
        from optuna.trial import TrialState

        for trial in study.get_trials(states=[TrialState.RUNNING]):  # Killed, with an earlier call.
            if not trial.params.keys() >= space.distributions().keys():  # As it was proposed.
                study.tell(trial.number, state=TrialState.FAIL)
        self._try(study, space, fixed, study.get_trials(states=[TrialState.RUNNING]))
        ended = TrialState.COMPLETE, TrialState.FAIL
        while left := max(0, self.trials - len(study.get_trials(deepcopy=False, states=ended))):
            asked = [study.ask(space.distributions()) for _ in range(min(left, self.batch))]
            self._try(study, space, fixed, asked)

    def _try(self, study: Study, space: Space, fixed: Overrides, trials: Sequence[Trial | FrozenTrial]) -> None:
        from optuna.trial import TrialState

        runs = {trial.number: [*fixed, *space.overrides(trial.params)] for trial in trials}
        for number, result in self._launch(runs).items():
            values = self._values(result)
            study.tell(number, values, state=TrialState.FAIL if values is None else None)

    def _launch(self, runs: dict[int, Overrides]) -> dict[int, JobReturn | None]:
        """What came of the runs, by number; None where one could not be composed."""
        legal: list[int] = [number for number, overrides in runs.items() if self._composes(overrides)]
        results = self.launcher.launch([runs[number] for number in legal], initial_job_idx=min(legal)) if legal else []
        return dict.fromkeys(runs) | dict(zip(legal, results, strict=True))

    def _values(self, result: JobReturn | None) -> list[float] | None:
        """The objectives of a run; None if it failed."""
        if result is None or result.status is not JobStatus.COMPLETED:
            return None
        metrics = result.return_value or {}
        for name in self.directions:
            if name not in metrics:
                raise MameLabError(f"{name} is no metric of these runs: choose from {', '.join(metrics) or 'none'}")
        return [metrics[name] for name in self.directions]

    def _table(self, best: list[FrozenTrial], space: Space) -> Table:
        from mame_lab.measure.table import results_table

        table = results_table("Pareto-optimal runs", ("run", *self.directions, "overrides"))
        for trial in best:
            values = [f"{value:.4g}" for value in trial.values]
            table.add_row(str(trial.number), *values, " ".join(space.overrides(trial.params)))
        return table
