"""The tree of errors: retries, built-in kinds, and the drawing at the top of the file."""

import inspect
import pickle
import re

import pytest

from igneous_airflow import errors
from igneous_airflow.errors import IgneousError, PermanentError, PlanRefused, TransientError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
KINDS = [kind for kind in KINDS if kind.__module__ == errors.__name__]


def make(kind):
    return kind("downsample", ["one", "two"]) if kind is PlanRefused else kind("a reason")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_ours_and_says_what_it_is(kind):
    assert issubclass(kind, IgneousError)
    assert inspect.getdoc(kind).endswith(".")
    assert not (issubclass(kind, PermanentError) and issubclass(kind, TransientError))


@pytest.mark.parametrize("kind", KINDS)
def test_an_errors_message_is_its_text(kind):
    assert str(make(kind)).endswith(("a reason", "  - one\n  - two"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_comes_through_to_another_process(kind):
    error = make(kind)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (kind, str(error))


def test_the_drawing_shows_the_tree():
    drawn = re.findall(r"^.*?[├└]── (\w+) +(?:\((\w+)\))?", errors.__doc__, re.MULTILINE)
    assert {name for name, _ in drawn} == {kind.__name__ for kind in KINDS} - {"IgneousError"}
    for name, builtin in drawn:
        kind = getattr(errors, name)
        bases = [base.__name__ for base in kind.__bases__]
        assert bases[-1] == (builtin or "IgneousError")


def test_an_audit_that_failed_tells_another_process_which_cells_to_do_again():
    copy = pickle.loads(pickle.dumps(errors.AuditFailed("chunks are missing", [3, 7])))
    assert (str(copy), copy.cells) == ("chunks are missing", (3, 7))


def test_a_refused_plan_names_every_reason():
    error = PlanRefused("downsample", ["one", "two"])
    assert error.refusals == ("one", "two")
    assert "nothing was written" in str(error)
