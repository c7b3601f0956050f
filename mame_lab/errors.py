"""The one error that a user can mend: `train.py` and `eval.py` print it as one line."""


class MameLabError(Exception):
    """Bad input. The message is one line that names the key, the value and what to do."""
