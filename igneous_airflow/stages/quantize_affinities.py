"""Quantize affinities: one channel of floating point numbers, as an image of grey values."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from igneous_airflow.fields import WHAT, section
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.voxel_stages import Conversion, layer_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igneous_airflow.pyramid.destination import Request
    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.pyramid.source import Change
    from igneous_airflow.storage.info import Info
    from igneous_airflow.storage.layer import Layer

_FLOATS = ("float16", "float32", "float64")
_NANS = "voxels were NaN and became 0"


class QuantizeAffinities(Conversion):
    """Make an image of one channel of affinities, so that a viewer can show them.

    Low becomes 0, high 255; what lies between is truncated, what lies outside is clipped. Coarser
    mips are averages. The source is never written to.
    """

    name: ClassVar[str] = "quantize_affinities"

    channel: Annotated[
        int,
        Field(
            ge=0,
            title="Channel",
            description="Which channel becomes the image: of affinities 0 is x, 1 is y, 2 is z.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 0
    low: Annotated[
        float,
        Field(
            allow_inf_nan=False,
            title="Low",
            description="The value that becomes 0, as do all below it.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 0.0
    high: Annotated[
        float,
        Field(
            allow_inf_nan=False,
            title="High",
            description="The value that becomes 255, as do all above it.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 1.0

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low: {self.low:g} must be below high: {self.high:g}")
        return self

    def _request(self, layer: "Layer") -> "Request":
        from igneous_airflow.pyramid.destination import VoxelKind

        kind = VoxelKind("uint8", 1, "image")
        return replace(super()._request(layer), kind=kind, clean_info=True)

    def _channel(self) -> int:
        return self.channel

    def _change(self, layer: "Layer") -> "Change":  # noqa: ARG002
        return _Quantizer(self.low, self.high)

    def _counts(self, route: "Route") -> dict[str, int]:
        change = layer_source(route).change
        assert isinstance(change, _Quantizer)  # noqa: S101 - what `_change` gives
        return {_NANS: change.nans} if change.nans else {}

    def _problems(self, route: "Route") -> Iterator[str]:
        yield from self._value_problems(layer_source(route).layer.info)
        yield from super()._problems(route)

    def _value_problems(self, info: "Info") -> Iterator[str]:
        """Reasons why the source has no such values."""
        import numpy as np

        if self.channel >= info.channels:
            last = info.channels - 1
            yield f"channel: {self.channel}, but the source has the channels 0 to {last}"
        if info.data_type not in _FLOATS:
            yield f"the source holds {info.data_type}, but affinities are {' or '.join(_FLOATS)}"
            return
        with np.errstate(all="ignore"):
            low, high = np.array([self.low, self.high]).astype(info.data_type)
            span = high - low
        if not 0 < span < np.inf:
            yield f"low and high: {self.low:g} and {self.high:g} are no range of {info.data_type}"


@dataclass
class _Quantizer:
    """Makes grey values and counts the NaN it meets."""

    low: float
    high: float
    nans: int = 0

    def __call__(self, _box: BoundingBox, values: "NDArray[Any]") -> "NDArray[Any]":
        from igneous_airflow.kernels.quantizing import quantize

        grey, nans = quantize(values, self.low, self.high)
        self.nans += nans
        return grey
