"""The record that meshing a block leaves: which labels have fragments there, made by which runs."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

_VERSION = 2


@dataclass(frozen=True, slots=True)
class Record:
    """What meshing a cell left: its labels with fragments, and the parameters it was done with.

    `left_out` are labels that are there, but too small. `others` are the labels whose fragments
    earlier runs of other parameters made, and that stay, by these parameters.
    """

    parameters: str  # a fingerprint
    labels: tuple[int, ...]
    left_out: tuple[int, ...] = ()
    others: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def labels_of(self, parameters: str) -> tuple[int, ...] | None:
        """The labels that are there as a run of these parameters made them; None for no such run.

        A later run of other labels keeps them among the `others`.
        """
        return self.labels if parameters == self.parameters else self.others.get(parameters)

    def names(self, label: int) -> bool:
        """Whether a label has a fragment, whichever run made it."""
        return any(_is_among(label, labels) for labels in (self.labels, *self.others.values()))

    def data(self) -> dict[str, Any]:
        """The file's content; that of version 1 has nothing but the first two."""
        data: dict[str, Any] = {"parameters": self.parameters, "labels": self.labels}
        if self.left_out or self.others:
            data |= {"version": _VERSION, "left_out": self.left_out, "others": self.others}
        return data

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Read the file's content; raises KeyError, TypeError, ValueError or AttributeError."""
        if not 1 <= int(data.get("version", 1)) <= _VERSION:
            raise ValueError(f"it is of version {data['version']}: use a newer igneous_airflow")
        others = {str(key): _labels(labels) for key, labels in data.get("others", {}).items()}
        return cls(
            str(data["parameters"]),
            _labels(data["labels"]),
            _labels(data.get("left_out", ())),
            others,
        )


def _labels(numbers: Iterable[Any]) -> tuple[int, ...]:
    return tuple(map(int, numbers))


def _is_among(label: int, labels: Sequence[int]) -> bool:
    """Whether a label is one of some that are sorted."""
    index = bisect_left(labels, label)
    return index < len(labels) and labels[index] == label
