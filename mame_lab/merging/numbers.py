"""Numbers of any library as Python's own."""

from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeGuard


def plain(value: Any) -> Any:
    """The number or the list of numbers that a value is: a scalar, array or tensor of numpy or torch, or a sequence.

    Floating-point numbers of less than double precision get seven digits, so that float32's 0.9 is 0.9. One that numpy
    masks is nan. Whatever is something else is returned as it is.
    """
    if hasattr(value, "tolist"):
        numbers = _python(value.tolist())
        return _seven_digits(numbers) if getattr(value, "itemsize", 8) < 8 else numbers
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(each) for each in value]
    return value


def is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and is_number(value)


def _python(value: Any) -> Any:
    """What `tolist` gives, as Python has it, also where that is a number of more than double precision, or masked."""
    if isinstance(value, list):
        return [_python(each) for each in value]
    if value is None:
        return float("nan")
    return float(value) if isinstance(value, Real) and hasattr(value, "tolist") else value


def _seven_digits(value: Any) -> Any:
    if isinstance(value, list):
        return [_seven_digits(each) for each in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value
