"""Which labels a run of `mesh` adds or replaces; the meshes of all others stay as they are."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Self

from igneous_airflow.storage.mesh_record import Record


@dataclass(frozen=True, slots=True)
class Scope:
    """The labels that a run's parameters name: `only` these, all where it is None, but `without`.

    With `dust`, labels of few voxels are left out block by block: those stay as they are as well.
    """

    only: frozenset[int] | None = None
    without: frozenset[int] = frozenset()
    dust: bool = False

    @classmethod
    def of(
        cls,
        table: Iterable[tuple[int, int]] | None,
        only: Iterable[int] | None,
        without: Iterable[int] | None,
        fewest_voxels: int,
    ) -> Self:
        """The labels that are left when they are renamed by a table first, and then chosen."""
        named = None if table is None else frozenset(new for _, new in table)
        if only is not None:
            named = frozenset(only) if named is None else named & frozenset(only)
        return cls(named, frozenset(without or ()), dust=fewest_voxels > 1)

    @property
    def is_everything(self) -> bool:
        """Whether a run makes the meshes of whatever labels there are."""
        return self.only is None and not self.without and not self.dust

    def __contains__(self, label: int) -> bool:
        return (self.only is None or label in self.only) and label not in self.without

    def replaces(self, label: int, left_out: Collection[int]) -> bool:
        """Whether what a block has of a label is this run's; `left_out` is its dust, sorted."""
        return label in self and label not in left_out

    def kept(self, record: Record | None, left_out: Collection[int]) -> dict[str, tuple[int, ...]]:
        """The labels of a block's record that stay, by the parameters they were made with.

        A run of which none stay is kept as well: it has done its part.
        """
        if record is None or self.is_everything:
            return {}
        dust = frozenset(left_out)
        kept: dict[str, set[int]] = {}
        for parameters, labels in (*record.others.items(), (record.parameters, record.labels)):
            staying = {label for label in labels if not self.replaces(label, dust)}
            kept.setdefault(parameters, set()).update(staying)
        return {parameters: tuple(sorted(labels)) for parameters, labels in sorted(kept.items())}
