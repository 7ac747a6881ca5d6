"""Transfer: a layer's voxels into another layer, in other chunks, with coarser mips on the way."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

from igneous_airflow.fields import WHERE, Compress, IntegerVec3, section
from igneous_airflow.voxel_stages import Conversion

if TYPE_CHECKING:
    from igneous_airflow.pyramid.destination import Request
    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.storage.layer import Layer


class Transfer(Conversion):
    """Copy a layer to another place, in chunks of another size or encoding where asked for.

    The first coarser mips are made on the way. Tasks are blocks of the destination. When nothing
    changes but the place, chunk files are copied as they are. The source is never written to.
    """

    name: ClassVar[str] = "transfer"

    dest_voxel_offset: Annotated[
        IntegerVec3 | None,
        Field(
            title="Destination voxel offset",
            description="Where the source's first voxel, or that of a cutout, comes to lie: x,y,z, "
            "as 0,0,500, in voxels of mip 0. Another way to say `translate`.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    cutout: Annotated[
        bool,
        Field(
            title="Cutout",
            description="A new destination is as large as the `bounds`, not as the source.",
            json_schema_extra=section(WHERE),
        ),
    ] = False
    clean_info: Annotated[
        bool,
        Field(
            title="Clean info",
            description="Leave what is not about voxels, as meshes and skeletons, out of a new "
            "destination's info; their files are not copied either way.",
            json_schema_extra=section(WHERE),
        ),
    ] = False
    compress: Annotated[
        Compress,
        Field(
            description="Compression of chunk files after encoding; auto is gzip for raw and "
            "label encodings, none for jpeg, png and the like, and leaves files that are copied "
            "as they are.",
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.translate is not None and self.dest_voxel_offset is not None:
            raise ValueError(
                f"translate: {self.translate} and dest_voxel_offset: {self.dest_voxel_offset} are "
                "both given; leave one empty"
            )
        if self.cutout and self.bounds is None:
            raise ValueError("cutout: there are no bounds to cut out; set bounds as well")
        return self

    def _request(self, layer: "Layer") -> "Request":
        return replace(
            super()._request(layer),
            dest_voxel_offset=self.dest_voxel_offset,
            cutout=self.cutout,
            clean_info=self.clean_info,
        )

    def _notes(self, route: "Route") -> Iterator[str]:
        if route.copies:
            yield "chunk files are copied as they are: nothing changes but the place"
        yield from super()._notes(route)
        others = sorted({"mesh", "skeletons", "segment_properties"} & route.place.info.data.keys())
        if others and not route.place.exists:
            yield f"the new info names {', '.join(others)}, whose files are not copied"
