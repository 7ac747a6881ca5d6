"""Contrast normalization: grey values stretched so that sections look alike, by their levels."""

from collections.abc import Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    WithJsonSchema,
    model_validator,
)

from igneous_airflow.errors import IgneousError, InvalidLevels, InvalidParameter
from igneous_airflow.field_values import shown
from igneous_airflow.fields import WHAT, LevelsPath, section
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.stage import Plan
from igneous_airflow.voxel_stages import Conversion, layer_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.pyramid.source import Change
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.levels import LevelsFolder

_TABLES_KEPT = 256


def clip_fractions(text: str) -> tuple[float, float]:
    """Read `0.01` or `0.01,0.02`: shares of the darkest and of the brightest voxels.

    Raises ValueError.
    """
    low, _, high = text.partition(",")
    shares = float(low), float(high or low)
    if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1:
        raise ValueError(f"{text:.200}: shares are from 0 to 1, and together at most 1")
    return shares


def _fractions_text(value: object) -> str:
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(p, str | int | float) and not isinstance(p, bool) for p in parts):
        raise ValueError(f"write a number, or two as 0.01,0.02; got {shown(value)}")
    text = ",".join(str(part).replace(" ", "") for part in parts)
    try:
        clip_fractions(text)
    except ValueError as error:
        raise ValueError(f"write a number, or two as 0.01,0.02; {error!s:.200}") from None
    return text


def _values(text: str) -> tuple[int, int]:
    try:
        lower, upper = map(int, text.split(","))
    except ValueError:
        raise ValueError(f"write two grey values, as 12,243; got {shown(text)}") from None
    if not 0 <= lower <= upper:
        raise ValueError(
            f"the smaller grey value comes first, and none is below 0; got {text:.200}"
        )
    return lower, upper


def _values_text(text: str | None) -> str | None:
    return None if text is None else "{},{}".format(*_values(text))


ClipFraction = Annotated[
    str,
    BeforeValidator(_fractions_text),
    WithJsonSchema(
        {
            "type": ["string", "number", "array"],
            "pattern": r"^\s*[\d.eE+-]+\s*(,\s*[\d.eE+-]+\s*)?$",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "minItems": 1,
            "maxItems": 2,
            "minimum": 0,
            "maximum": 1,
            "metavar": "SHARE[,SHARE]",
        }
    ),
]
Scope = Literal["section", "global"]
GreyLimit = Annotated[int | None, Field(ge=0, le=65535, json_schema_extra=section(WHAT))]


class ContrastNormalization(Conversion):
    """Stretch the grey values of an image so that each section uses all of them.

    The darkest voxels of a section become black and the brightest white, by the histograms that
    `luminance_levels` has counted. The first coarser mips are made on the way. Tasks are blocks of
    the destination. The source is never written to.
    """

    name: ClassVar[str] = "contrast_normalization"

    clip_fraction: Annotated[
        ClipFraction,
        Field(
            title="Clip fraction",
            description="Share of the darkest voxels that become black, and of the brightest that "
            "become white: 0.01, or two numbers as 0.01,0.02. Voxels of value 0 are taken for "
            "padding and do not count.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = "0.01"
    scope: Annotated[
        Scope,
        Field(
            title="Scope",
            description="section stretches each section by its own levels; global stretches all "
            "alike, by the sum of the levels that are there for the mip.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = "section"
    minval: Annotated[
        GreyLimit,
        Field(
            title="Smallest value",
            description="Darker voxels get this value in the end, background included. Empty: 0.",
        ),
    ] = None
    maxval: Annotated[
        GreyLimit,
        Field(
            title="Largest value",
            description="Brighter voxels get this value in the end. Empty: the largest there is.",
        ),
    ] = None
    levels_path: LevelsPath = None
    clip_values: Annotated[
        str | None,
        AfterValidator(_values_text),
        Field(
            title="Clip values",
            description="The grey values that become black and white in every section, as 12,243, "
            "in place of levels. A run of global scope notes here what it found.",
            json_schema_extra=section(WHAT),
        ),
    ] = None

    @model_validator(mode="after")
    def _values_agree(self) -> Self:
        if self.minval is not None and self.maxval is not None and self.minval >= self.maxval:
            raise ValueError(f"minval: {self.minval} must be smaller than maxval: {self.maxval}")
        if self.clip_values is not None and self.scope != "global":
            raise ValueError("clip_values: they hold for every section; set scope: global as well")
        return self

    def resolved(self) -> Self:
        """Replace mip -1 by the coarsest mip, and note the stretch of global scope.

        Where levels are missing or damaged nothing is noted, and the plan says so.
        """
        stage = super().resolved()
        if stage.scope == "section" or stage.clip_values is not None:
            return stage
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.levels import grey_problems

        layer = Layer.open(stage.src)
        if any(grey_problems(layer.info)) or any(self._missing_levels(layer)):
            return stage
        try:
            return stage.model_copy(update={"clip_values": self._global_values(layer)})
        except InvalidLevels:
            return stage

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse.

        The levels are listed, not read.
        """
        from igneous_airflow.storage.layer import Layer

        plan = super().plan()
        if plan.refusals:
            return plan
        try:
            layer = Layer.open(self.src)
            missing = tuple(self._levels_problems(layer))
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        tables = _TABLES_KEPT * self._levels(layer).bins * layer.dtype.itemsize
        return plan.model_copy(
            update={"memory": plan.memory + tables, "refusals": missing, "awaited": missing}
        )

    def provenance(self) -> dict[str, Any]:
        """The `method` of the entry, which names where the levels were in any case."""
        return {**super().provenance(), "levels_path": self.levels_path or self.src}

    def prepare(self) -> None:
        """Make the destination's info, or add the new scales to the one that is there."""
        self._found.clear()  # what an earlier run of the same object has read
        super().prepare()

    def _change(self, layer: "Layer") -> "Change | None":
        from igneous_airflow.kernels.histogram import stretch_table
        from igneous_airflow.kernels.lookup import look_up_sections
        from igneous_airflow.storage.levels import grey_problems

        if any(grey_problems(layer.info)):  # which the plan refuses
            return None
        levels = self._levels(layer)
        low = 0 if self.minval is None else self.minval
        high = levels.bins - 1 if self.maxval is None else self.maxval

        @lru_cache(maxsize=_TABLES_KEPT)
        def table(clip: tuple[int, int]) -> "NDArray[Any]":
            return stretch_table(layer.dtype, clip, (low, high))

        @lru_cache(maxsize=1)  # a task comes to many boxes of the same sections, one by one
        def tables(start: int, stop: int) -> "list[NDArray[Any]]":
            return [table(clip) for clip in self._clips(levels, range(start, stop))]

        def stretch(box: BoundingBox, voxels: "NDArray[Any]") -> "NDArray[Any]":
            return look_up_sections(voxels, tables(box.min.z, box.max.z))

        return stretch

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.storage.levels import grey_problems

        layer = layer_source(route).layer
        if problems := list(grey_problems(layer.info)):
            yield from problems
            return
        white = self._levels(layer).bins - 1
        limits = {"minval": self.minval, "maxval": self.maxval}
        if self.clip_values is not None:
            limits["clip_values"] = _values(self.clip_values)[1]
        for name, value in limits.items():
            if value is not None and value > white:
                yield f"{name}: {value} is not a value of {layer.dtype}, which ends at {white}"
        yield from super()._problems(route)

    def _notes(self, route: "Route") -> Iterator[str]:
        yield from super()._notes(route)
        if self.clip_values is not None:
            lower, upper = _values(self.clip_values)
            yield f"grey values from {lower} to {upper} are stretched, the same in every section"

    @cached_property
    def _found(self) -> "dict[tuple[str, str, int], tuple[int, int]]":
        """The clip values of sections whose levels were read, by the tasks of one run."""
        return {}

    def _clips(self, levels: "LevelsFolder", sections: range) -> list[tuple[int, int]]:
        """The clip values of sections, each of which is read once by the tasks of one run."""
        from igneous_airflow.kernels.histogram import clip_values

        if self.clip_values is not None:
            return [_values(self.clip_values)] * len(sections)
        if self.scope == "global":
            raise InvalidParameter("scope: work on the stage that `resolved` gives")
        keys = [(levels.place, self.clip_fraction, z) for z in sections]
        fractions = clip_fractions(self.clip_fraction)
        for z, found in levels.read_all([key[2] for key in keys if key not in self._found]):
            key = levels.place, self.clip_fraction, z
            self._found[key] = clip_values(found.counts, *fractions)
        return [self._found[key] for key in keys]

    def _levels(self, layer: "Layer") -> "LevelsFolder":
        from igneous_airflow.storage.levels import LevelsFolder

        mip = layer.info.scales.index(layer.scale(self.mip))
        return LevelsFolder(self.levels_path or self.src, mip, layer.info.data_type)

    def _levels_problems(self, layer: "Layer") -> Iterator[str]:
        """Reasons why the levels do not serve the sections of the bounds."""
        missing = list(self._missing_levels(layer))
        yield from missing
        if self.scope == "global" and self.clip_values is None and not missing:
            try:
                self._global_values(layer)
            except InvalidLevels as error:
                yield f"levels: {error}"

    def _missing_levels(self, layer: "Layer") -> Iterator[str]:
        """Sections of the bounds without levels, and levels that are none by their sizes."""
        if self.clip_values is not None:
            return
        bounds = None if self.bounds is None else BoundingBox.parse(self.bounds)
        box = bounds or layer.scale(self.mip).bounds
        yield from self._levels(layer).problems(range(box.min.z, box.max.z))

    def _global_values(self, layer: "Layer") -> str:
        """The clip values of the sum of all levels of the mip, whatever the bounds are."""
        import numpy as np

        from igneous_airflow.kernels.histogram import clip_values

        levels, inside = self._levels(layer), layer.scale(self.mip).bounds
        sections = sorted(z for z in levels.sizes() if inside.min.z <= z < inside.max.z)
        total = np.zeros(levels.bins, np.int64)
        for _, found in levels.read_all(sections):
            total += found.counts
        lower, upper = clip_values(total, *clip_fractions(self.clip_fraction))
        return f"{lower},{upper}"
