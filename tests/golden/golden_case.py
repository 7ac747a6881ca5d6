"""What a case of the golden record is: a function that makes inputs and says what is to be run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Where many inputs begin: at a positive, a negative and an odd coordinate.
OFFSET = (3, -7, 11)


@dataclass(frozen=True, slots=True)
class Step:
    """A stage by its name, with the parameters that a user gives."""

    stage: str
    parameters: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps that are planned together before the first of them runs."""

    steps: Sequence[Step]


#: Fills an empty folder: what is only read goes to `sources` in it, layers go beside that.
Case = Callable[[Path], Sequence[Step] | Chain]


def step(stage: str, **parameters: object) -> Step:
    """A stage with its parameters."""
    return Step(stage, parameters)
