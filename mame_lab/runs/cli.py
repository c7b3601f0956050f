"""The top level of train.py and eval.py: Hydra's composition, and every error of the user's in one line."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from mame_lab.errors import MameLabError
from mame_lab.models.renames import KEYS
from mame_lab.runs import cpu

log = logging.getLogger(__name__)

AMBIGUOUS = re.compile(r"Ambiguous value for argument '(.+?)'\n")  # what Hydra says
REASON = "error.txt"  # in the folder of a run that failed
WANTS_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"


def run(main: Callable) -> None:
    """Call a `hydra.main` function. A wrong input ends in one line on stderr and exit status 1.

    With HYDRA_FULL_ERROR=1 in the environment the whole traceback is shown.
    """
    cpu.configure()
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        if {f"{key}=", f"{key}=''", f'{key}=""'} & set(sys.argv):
            sys.exit(f"error: {key}= is empty (an unset variable of the shell?): give a folder, or leave it out")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on instead of printing them itself.
    try:
        main()
    except (MameLabError, HydraException, OmegaConfBaseException) as error:
        if WANTS_TRACEBACK:
            raise
        sys.exit(f"error: {explain(error)}")
    except ValueError as error:
        if WANTS_TRACEBACK or "Config group override" not in str(error):
            raise
        sys.exit("error: mame, model, dataset, ... take the name of a file of conf/GROUP, as in mame=off: give one")
    except OSError as error:
        if WANTS_TRACEBACK or (error.filename is None and error.errno is None):
            raise
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror}: make room or give another hydra.run.dir; what is saved is whole")


def run_job(task: Callable[[DictConfig], Any], cfg: DictConfig) -> Any:
    """Run one job; returns what it returns. A failure leaves its reason in the run's folder.

    A single run ends in its one line; in a sweep Hydra adds which job failed.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / REASON).unlink(missing_ok=True)
    try:
        # Also with hydra.job.chdir a relative path is from where the command was given.
        with chdir(HydraConfig.get().runtime.cwd), _argv_of_this_job(folder):
            return task(cfg)
    except Exception as error:
        known = isinstance(error, MameLabError)
        reason = explain(error) if known else f"{type(error).__name__}: {explain(error)}"
        write_reason(folder, reason)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            log.error("%s failed: %s", folder, reason)  # Hydra says so only when all jobs have ended.
        if not known or WANTS_TRACEBACK or HydraConfig.get().mode is RunMode.MULTIRUN:
            raise
        sys.exit(f"error: {explain(error)}")


def overrides() -> list[str]:
    """What the command line says for this job, in Hydra's syntax."""
    return _written(HydraConfig.get().overrides.task)


def _written(said: Any) -> list[str]:
    # Hydra would take ${...} in them for references to its own configuration.
    return cast(list[str], OmegaConf.to_container(said, resolve=False))


def write_reason(folder: Path, reason: str) -> None:
    """Leave the reason of a failure in the folder of a run, as far as it can be written to."""
    with suppress(OSError):
        (folder / REASON).write_text(f"{reason}\n", encoding="utf-8")


@contextmanager
def _argv_of_this_job(folder: Path) -> Iterator[None]:
    """The command line is that of this job alone, in its folder, for the processes that Lightning starts by it.

    It starts them by the command line of its own process, which in a sweep would run the whole sweep again.
    """
    hydra = HydraConfig.get()
    sources = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    paths = [override for override in _written(hydra.overrides.hydra) if override.startswith("hydra.searchpath=")]
    argv = sys.argv
    sys.argv = [
        argv[0],
        *(f"--config-dir={path}" for path in sources),
        *paths,
        *overrides(),
        "hydra/job_logging=stdout",
    ]
    with read_write(hydra.run):  # pyright: ignore[reportArgumentType]
        hydra.run.dir = str(folder)
    try:
        yield
    finally:
        sys.argv = argv


def explain(error: Exception) -> str:
    """One line that names the key, the value and what to do."""
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return _unparsed(error.override)
    if ambiguous := AMBIGUOUS.match(str(error)):
        return f"{ambiguous[1]} has a comma, as for a sweep: give -m, or quote a text: {_quoted(ambiguous[1])}"
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").partition("/")
        return f"{group}={name} is not known{_near(name, error.options)}: choose from {', '.join(error.options)}"
    if isinstance(cause, OmegaConfBaseException):
        return explain(cause)
    if isinstance(error, HydraException) and isinstance(cause, MameLabError):  # from a plugin
        return explain(cause)
    if isinstance(error, OmegaConfBaseException) and error.full_key in KEYS:
        return f"{error.full_key} is called {KEYS[error.full_key]} now: write that"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        known = [f.name for f in fields(error.object_type)] if is_dataclass(error.object_type) else []
        near = _near(str(error.key), known) if error.key not in known else ""
        text = ": quote a text that begins with a bracket" if "'list' to string" in str(error) else ""
        return f"{error.full_key}: {str(error).splitlines()[0]}{near}{text}"
    if isinstance(error, MameLabError):
        # A loader's worker process wraps the message in its whole traceback.
        return str(error).strip().splitlines()[-1].rpartition("MameLabError: ")[2]
    return " ".join(str(error).split())


def _unparsed(override: str) -> str:
    key, equals, value = override.partition("=")
    if not (key.strip("+~ ") and equals):
        return f"{override} is no KEY=VALUE: give a key and its value, such as mame.r=8"
    if value.startswith(("[", "{")):
        example = shlex.quote(f'{key}=["a b",c]')
        return f"{override} cannot be parsed: put commas between the values of a list and quote texts, as in {example}"
    return (
        f"{override} cannot be parsed: quote a value that is text with blanks, brackets or other signs, for Hydra and "
        f"for the shell: {_quoted(override)}"
    )


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    return shlex.quote(f"{key}={QuotedString(value, Quote.double).with_quotes()}")


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
