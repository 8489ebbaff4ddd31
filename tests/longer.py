"""Cases that take longer, of a kind that others hold already: left out unless asked for (``--whole``, ``make laws``)."""
import pytest

is_asked_for = False  # as `conftest` finds before any test is read


def whole(*values):
    """A case of `pytest.mark.parametrize` that is left out."""
    return pytest.param(*values, marks=pytest.mark.whole)


def always(when, cases):
    """Cases of one parameter each, of which those that `when` is true of are always run."""
    return [case if when(case) else whole(case) for case in cases]


def examples(few, most):
    """How many are drawn."""
    return most if is_asked_for else few
