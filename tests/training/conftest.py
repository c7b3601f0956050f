"""Runs that die in the middle of their training."""

from functools import wraps

import pytest

from mame_lab import MameLabError
from mame_lab.tasks.classification import Classification


@pytest.fixture
def killed(entry_point, monkeypatch):
    """Runs train.py until a method of its task is called for the nth time, where it dies, `dying` first."""

    def run(folder, *overrides, nth, method="training_step", dying=lambda trainer: None):
        real, calls = getattr(Classification, method), []

        @wraps(real)
        def called(self, batch):
            calls.append(batch)
            if len(calls) == nth:
                dying(self.trainer)
                raise MameLabError("killed")
            return real(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(Classification, method, called)
            with pytest.raises(MameLabError, match="killed"):
                entry_point("train", folder, *overrides)

    return run
