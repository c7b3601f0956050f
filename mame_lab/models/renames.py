"""Keys and values of the configuration that had another name in an earlier version."""

import logging
from copy import deepcopy
from typing import Any

log = logging.getLogger(__name__)

KEYS = {
    "mame.batch": "mame.batching",
    "dataset.broken": "dataset.on_broken",
    "finetune.budgets": "finetune.random_r",
    "benchmark.batch": "benchmark.batch_size",
}
VALUES = {
    "mame.method": {"paper": "mame"},
    "dataset.name": {"natural": "sample_photos"},
}


def upgraded(config: dict[str, Any], announce: bool = False) -> dict[str, Any]:
    """A configuration, as plain values, in the names of this version.

    Args:
        config: of a checkpoint, or of a command line.
        announce: it is of a command line: the log tells what is called otherwise now.
    """
    config = deepcopy(config)
    for group, part in [*config.items(), ("mame", config.get("asked"))]:  # `asked`: a `mame` with its target
        if isinstance(part, dict):
            _upgrade(group, part, announce)
    return config


def _upgrade(group: str, part: dict[str, Any], announce: bool) -> None:
    for key in part.keys() & {key.removeprefix(f"{group}.") for key in KEYS if key.startswith(f"{group}.")}:
        part[KEYS[f"{group}.{key}"].removeprefix(f"{group}.")] = part.pop(key)
    for key in list(part):
        names = VALUES.get(f"{group}.{key}", {})
        if isinstance(part[key], str) and part[key] in names:
            if announce:
                log.warning("%s=%s is called %s=%s now", group, part[key], group, names[part[key]])
            part[key] = names[part[key]]
    if group == "mame" and part.get("schedule") == "adaptive" and not announce:  # `Method` refuses it.
        part |= {"schedule": None, "solve": "adaptive"}
