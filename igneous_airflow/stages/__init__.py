"""The stages: one file each, found by itself; there is no list anywhere."""

import pkgutil
from functools import cache
from importlib import import_module

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.stage import Stage


@cache
def registered_stages() -> dict[str, type[Stage]]:
    """Every concrete stage defined by a module of this package, by name, in alphabetical order."""
    found: dict[str, type[Stage]] = {}
    for module in pkgutil.iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Stage) and "name" in vars(value):
                found[value.name] = value
    return dict(sorted(found.items()))


def stage_class(name: str) -> type[Stage]:
    """The stage of a name; raises InvalidParameter listing the names there are."""
    stages = registered_stages()
    if name not in stages:
        raise InvalidParameter(f"there is no stage {name!r}: choose one of {', '.join(stages)}")
    return stages[name]
