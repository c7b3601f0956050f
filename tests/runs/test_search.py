"""A search runs what Optuna proposes, tells it what came of it, and goes on where it ended."""

import re
import sys

import optuna
import pytest
from commands import ROOT, TINY, load
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from mame_lab import MameLabError
from mame_lab.measure.result import Result
from mame_lab.merging import Ward
from mame_lab.runs import cli, config
from mame_lab.runs.search import FILE, STUDY
from mame_lab.runs.search_space import Ranges, Schedules


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Runs a search over `task`, as eval.py would be, in this process; returns its study's trials."""
    monkeypatch.setattr("mame_lab.runs.search.make_report", lambda folder: (folder / "report.html").touch())

    def run(task, *overrides):
        config.register()
        GlobalHydra.instance().clear()
        said = ["hydra.mode=MULTIRUN", "hydra/sweeper=search", f"hydra.sweep.dir={tmp_path}", *overrides]
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            hydra = GlobalHydra.instance().hydra
            hydra.multirun("eval", lambda cfg: cli.run_job(task, cfg), said, with_log_configuration=False)
        return trials(tmp_path)

    yield run
    HydraConfig.instance().cfg = None


def trials(folder):
    return optuna.load_study(study_name=STUDY, storage=f"sqlite:///{folder / FILE}").trials


def fake(cfg):
    """Accuracy and latency of a model of four blocks: the more leaves, and the earlier, the worse and the faster."""
    if cfg.seed == 13:
        raise MameLabError("seed=13 is bad luck")
    shares = cfg.mame.r or [0] * 4
    harm = sum(share * weight for share, weight in zip(shares, (4, 3, 2, 1), strict=True))
    tokens = {f"tokens/block_{block:02d}": 1.0 for block in range(4)}
    return {"test/top1": 1 - harm / 10, "speed/latency_ms_p50": 10 - sum(shares), **tokens}


def schedules(found):
    return [tuple(trial.params.values()) for trial in found]


@pytest.mark.slow
def test_a_real_search_goes_on_where_it_ended(search, tmp_path, capsys):
    task = load("eval").evaluate
    assert len(search(task, *TINY, "dataset.num_workers=0", "hydra.sweeper.trials=2")) == 4  # Two are only enqueued.
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"0", "1"}
    capsys.readouterr()
    found = search(task, *TINY, "dataset.num_workers=0", "hydra.sweeper.trials=3")
    assert [trial.state for trial in found] == [TrialState.COMPLETE] * 3 + [TrialState.WAITING]
    for trial in found[:3]:
        result = Result.load(tmp_path / str(trial.number) / "result.json")
        assert trial.values == [result.merged.top1.value, result.merged.latency_ms_p50]
    assert Result.load(tmp_path / "0/result.json").merged.tokens == [100] * 3
    assert found[1].params == {"removed": 0.5, "block_00": 2, "block_01": 2, "block_02": 2}
    assert Result.load(tmp_path / "1/result.json").merged.tokens == [80, 64, 51]
    assert (tmp_path / "report.html").exists()
    assert "Pareto-optimal runs" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_what_is_proposed_later_is_new(search, sampler):
    said = "speed.seconds=interval(1,9)", f"hydra.sweeper.sampler={sampler}"
    first = search(fake, *said, "hydra.sweeper.trials=2")
    both = search(fake, *said, "hydra.sweeper.trials=4")
    assert [trial.params for trial in both[:2]] == [trial.params for trial in first]
    assert len({trial.params["speed.seconds"] for trial in both}) == 4


def test_the_table_has_what_no_run_is_better_than(search, capsys):
    found = search(fake, "hydra.sweeper.trials=6")
    found = [trial for trial in found if trial.values]
    better = {a.number for a in found for b in found if b.values[0] > a.values[0] and b.values[1] < a.values[1]}
    told = [int(number) for number in re.findall(r"^(\d+) +[\d.]+ +[\d.]+ ", capsys.readouterr().out, re.M)]
    assert {*told} == {trial.number for trial in found} - better
    assert 1 < len(told) < 6


def test_a_failed_run_is_told_and_does_not_end_the_search(search, tmp_path):
    found = search(fake, "seed=13,7", "hydra.sweeper.trials=4", "hydra.sweeper.max_batch_size=2")
    states = {trial.params["seed"]: trial.state for trial in found}
    assert states == {13: TrialState.FAIL, 7: TrialState.COMPLETE}
    assert len(found) == 4
    for trial in found:
        assert (tmp_path / str(trial.number) / "error.txt").exists() == (trial.state is TrialState.FAIL)


def test_a_run_that_cannot_be_composed_fails_alone(search, tmp_path):
    found = search(fake, "mame.prop_attn=true,7x", "hydra.sweeper.trials=4", "hydra.sweeper.max_batch_size=4")
    failed = [trial for trial in found if trial.state is TrialState.FAIL]
    assert {trial.params["mame.prop_attn"] for trial in failed} == {"7x"}
    assert len(list(tmp_path.glob("left_out_*"))) == len(failed)
    assert 0 < len(failed) < 4


def test_what_a_killed_search_was_at_runs_again(search, tmp_path):
    """In the same folder, as the same trial."""

    def killed(cfg):
        if cfg.mame.r and HydraConfig.get().job.num == 2:
            raise KeyboardInterrupt
        return fake(cfg)

    with pytest.raises(KeyboardInterrupt):
        search(killed, "hydra.sweeper.trials=4")
    jobs = []

    def task(cfg):
        jobs.append((HydraConfig.get().job.num, list(cfg.mame.r)))
        return fake(cfg)

    study = optuna.load_study(study_name=STUDY, storage=f"sqlite:///{tmp_path / FILE}")
    study.ask({"removed": FloatDistribution(0, 0.9)})  # Killed as it was proposed: trial 3.
    found = search(task, "hydra.sweeper.trials=5")
    assert [trial.state for trial in found] == [*[TrialState.COMPLETE] * 3, TrialState.FAIL, TrialState.COMPLETE]
    assert [number for number, _ in jobs] == [2, 4]
    assert jobs[0][1] == [0.2929, 0.2289, 0.083, 0]


def test_the_objectives_are_those_that_one_names(search):
    found = search(
        lambda cfg: {"cost": cfg.seed},
        "seed=1,2,3", "hydra.sweeper.maximize=[]", "hydra.sweeper.minimize=[cost]", "hydra.sweeper.trials=2",
    )  # fmt: skip
    assert [trial.values[0] for trial in found] == [float(trial.params["seed"]) for trial in found]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.sweeper.maximize=[test/top2]"], "test/top2 is no metric of these runs: choose from test/top1"),
        (["hydra.sweeper.maximize=[]", "hydra.sweeper.minimize=[]"], "name a metric"),
        (["hydra.sweeper.sampler=grid"], "hydra.sweeper.sampler=grid is not known: choose from tpe, nsga2"),
        (["mame.r=8"], "mame.r=8 is what the search looks for: leave it out, or give ranges"),
        (["seed=13"], "the search starts with the unmerged model, and that failed"),
        (["seed=interval(5,1)"], r"seed=interval\(5,1\): "),
    ],
)
def test_what_is_wrong_is_named(search, overrides, message):
    with pytest.raises(Exception, match=message) as error:
        search(fake, "hydra.sweeper.trials=1", *overrides)
    assert "\n" not in cli.explain(error.value)


def test_a_folder_holds_one_search(search):
    search(fake, "hydra.sweeper.trials=1")
    with pytest.raises(MameLabError, match=r"holds the search for .* a folder of its own"):
        search(fake, "hydra.sweeper.trials=1", "seed=3")


def test_without_optuna_it_says_what_to_install(search, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MameLabError, match=r"pip install 'mame_lab\[search\]'"):
        search(fake)


def test_ranges_are_in_hydras_syntax():
    said = {
        "a=1,2": CategoricalDistribution([1, 2]),
        "+b=x,'y z',null,[1,2]": CategoricalDistribution(["x", "'y z'", "null", "[1,2]"]),
        "c=range(0,20,4)": IntDistribution(0, 16, step=4),
        "c=range(5,1,-2)": IntDistribution(3, 5, step=2),
        "d=range(0,1,0.5)": CategoricalDistribution([0.0, 0.5]),
        "e=int(interval(1,5))": IntDistribution(1, 5),
        "f=interval(0,0.5)": FloatDistribution(0, 0.5),
        "g=tag(log,interval(1e-4,0.1))": FloatDistribution(1e-4, 0.1, log=True),
    }
    for text, distribution in said.items():
        (override,) = OverridesParser.create().parse_overrides([text])
        space = Ranges([override])
        assert space.distributions() == {text.partition("=")[0]: distribution}
    assert space.overrides({"g": 0.01, "+b": "null"}) == ["g=0.01", "+b=null"]


def test_every_schedule_can_run():
    space = Schedules(6)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    extremes = [space.unmerged(), {"removed": 0.9, **{f"block_{i:02d}": 4 * (i == 2) for i in range(6)}}]
    for parameters in (*extremes, *(study.ask(space.distributions()).params for _ in range(100))):
        said, *others = space.overrides(parameters)
        shares = OverridesParser.create().parse_overrides([said])[0].value()
        left, asked = 196, Ward(r=shares).schedule_for(6).walk(196)
        for r in asked:
            assert r <= left // 2
            left -= r
        if all(share < 0.5 for share in shares) and any(shares):
            assert left == pytest.approx(196 * (1 - parameters["removed"]), abs=6)
    assert others == ["mame.blocks=null", "mame.schedule=null"]
    assert space.overrides(extremes[0])[0] == "mame.r=[0,0,0,0,0,0]"
    assert space.overrides(extremes[1])[0] == "mame.r=[0,0,0.5,0,0,0]"
