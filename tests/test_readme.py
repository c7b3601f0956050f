"""What the READMEs say to write, runs; what they point at, exists."""

import re
import shlex
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from commands import ROOT, compose_config
from families import build, images
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict
from test_imports import PACKAGE, ROOMS

import mame_lab
from mame_lab.data import DATASETS
from mame_lab.merging import METHODS
from mame_lab.models import family_of
from mame_lab.runs import config, conflicts

PATHS = [ROOT / "README.md", *sorted([*PACKAGE.rglob("README.md"), *(ROOT / "conf").rglob("README.md")])]
README, *_ = TEXTS = [path.read_text() for path in PATHS]
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
LINKS = [
    (path, link)
    for path in [*PATHS, ROOT / "CHANGELOG.md"]
    for link in re.findall(r"(?:\]\(|src=\"|srcset=\")(?!\w+:)([^)\"\s]+)", path.read_text())
]
ENTRIES = {"train": config.TrainConfig, "eval": config.EvalConfig}


def commands(text: str) -> list[str]:
    """What follows `python`, at the start of a line or of inline code, without comments; not what is only sketched."""
    text = text.replace("\\\n", " ")
    found = re.findall(r"(?:^|`)(?:python|torchrun [^`\n]*) ((?:train|eval)\.py[^`\n]*)", text, re.M)
    return [line.split("  #")[0].strip() for line in found if "..." not in line and "GROUP=" not in line]


def takes_what_is_added(text: str, line: str) -> bool:
    """Whether a command takes a choice of a group that the README tells how to add."""
    choices = [f"conf/{word.replace('=', '/')}.yaml" for word in line.split()]
    return any(choice in text and not (ROOT / choice).exists() for choice in choices)


def one_run(override: str) -> str:
    """Of a sweep the first value."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


def compose(entry: str, overrides: list[str]) -> config.Config | None:
    """The configuration of a command; None where a checkpoint has some of it."""
    cfg = compose_config(entry, overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    if cfg.get("ckpt") is not None:
        return None
    run = config.typed(ENTRIES[entry], config.plain(cfg))
    conflicts.check_read(run, overrides)
    return run


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 180


def test_the_rooms_are_the_folders_that_exist():
    rooms = [*ROOMS, "report"]
    assert re.findall(r"^\| \[`(\w+)`\]", README, re.M) == rooms
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == {*rooms}


@pytest.mark.parametrize(
    "line", sorted({line for text in TEXTS for line in commands(text) if not takes_what_is_added(text, line)})
)
def test_commands_compose(line):
    words = shlex.split(re.sub(r"(--cfg|-c|-sc|--shell_completion|--info) \S+", "", line))
    overrides = [one_run(word) for word in words[1:] if not word.startswith("-")]
    compose(words[0].removesuffix(".py"), overrides)


@pytest.mark.parametrize(
    "name", sorted({name for text in TEXTS for name in re.findall(r"python -m (mame_lab[\w.]*)", text)})
)
def test_modules_that_are_commands_exist(name):
    spec = find_spec(name)
    main = find_spec(f"{name}.__main__") if spec.submodule_search_locations else spec
    assert '__name__ == "__main__"' in Path(main.origin).read_text()


@pytest.mark.parametrize(("path", "link"), LINKS, ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_links_lead_somewhere(path, link):
    name, _, anchor = link.partition("#")
    target = path.parent / name if name else path
    assert target.exists()
    assert not anchor or anchor in map(slug, re.findall(r"^#+ (.*)$", target.read_text(), re.M))


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_python_runs_in_an_empty_namespace(code, capsys):
    exec(code.replace("pretrained=True", "pretrained=False"), {})
    printed = capsys.readouterr().out
    for said in re.findall(r"^# (model .*x) ", code, re.M):
        assert said in printed


def added(group: str, name: str, choices: dict, folder: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """The class that the README adds, by the places that it says to write in."""
    namespace = {}
    exec(next(code for code in BLOCKS if f'"{name}"' in code), namespace)
    cls = next(value for value in namespace.values() if isinstance(value, type) and name.title() == value.__name__)
    monkeypatch.setitem(choices, name, cls)
    monkeypatch.setattr(ConfigStore.instance(), "repo", deepcopy(ConfigStore.instance().repo))
    (folder / group).mkdir()
    (folder / group / f"{name}.yaml").write_text(re.search(rf"`(defaults: \[/schema/{group}/.*?\])`", README)[1])
    return cls


def test_a_method_of_your_own(tmp_path, monkeypatch):
    cls = added("mame", "euclid", METHODS, tmp_path, monkeypatch)
    line = next(line for line in commands(README) if takes_what_is_added(README, line))
    run = compose("eval", [f"hydra.searchpath=[file://{tmp_path}]", *line.split()[1:]])
    assert run.mame == cls(r=8)
    model, x = build("vit"), images()
    expected = model(x)
    mame_lab.apply(model, run.mame)
    assert [int(tokens[0]) for tokens in family_of(model).trace(model, x)] == [57, 49, 41, 33, 33, 33]
    assert not torch.equal(model(x), expected)


def test_a_dataset_of_your_own(tmp_path, monkeypatch):
    cls = added("dataset", "faces", DATASETS, tmp_path, monkeypatch)
    run = compose("train", [f"hydra.searchpath=[file://{tmp_path}]", "dataset=faces"])
    assert run.dataset == cls()
    splits = run.dataset.splits()
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [120, 40, 40]
    for part in (splits.train, splits.val, splits.test):
        assert {y for _, y in part} == {0, 1}
        assert all(image.mode == "RGB" and image.size == (25, 25) for image, _ in part)


def test_the_version_is_the_same_everywhere():
    for path, pattern in {"CITATION.cff": r"^version: (.*)$", "README.md": r"version = \{(.*?)\}"}.items():
        assert re.search(pattern, (ROOT / path).read_text(), re.M)[1] == mame_lab.__version__
