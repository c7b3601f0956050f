"""The errors that a user can mend: `train.py` and `eval.py` print them as one line."""


class MameLabError(ValueError):
    """Bad input. The message is one line that names the key, the value and what to do."""


class UnsupportedModelError(MameLabError, TypeError):
    """A model that cannot be merged rightly. The message names its class and what is supported."""
