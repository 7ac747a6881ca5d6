"""The meshes of one cell: fragments, spatial index and record, merged with what stays there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.kernels.meshing import LabelMesh, surfaces
from igneous_airflow.meshes.cutout import MeshOptions, read_labels
from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.meshes.scope import Scope
from igneous_airflow.storage.mesh_info import spatial_index_name
from igneous_airflow.storage.meshes import Record, encode_fragment
from igneous_airflow.storage.overlap import Overlap


@dataclass(frozen=True)
class CellMesher:
    """How a run meshes its cells; `parameters` is its fingerprint, `error` in nm or None."""

    place: MeshPlace
    options: MeshOptions
    scope: Scope
    parameters: str
    error: float | None
    compress: str
    has_index: bool

    def mesh(self, cell: BoundingBox) -> tuple[dict[str, int], int]:
        """Write the fragment of every label in a cell, then a record of which these are.

        Fragments that are not the run's stay, and so does what index and record say of them.
        Returns the stored bytes of each file, by its name in the layer, and the number of
        fragments.
        """
        place, folder = self.place, self.place.folder
        boxes: dict[int, list[int]] = {}
        sizes: dict[str, int] = {}

        def write(mesh: LabelMesh) -> None:
            content = encode_fragment(mesh.vertices, mesh.faces)
            stored = folder.write_fragment(mesh.label, cell, content, self.compress)
            sizes[folder.fragment_name(mesh.label, str(cell))] = stored

        with Overlap(place.layer.overlap_width) as overlap:
            block, origin, dust = read_labels(place.layer, place.scale, cell, self.options, overlap)
            for mesh in surfaces(block, origin, self.error):
                boxes[mesh.label] = mesh.box
                overlap.submit(partial(write, mesh))
        if self.has_index:
            name = f"{folder.directory}/{spatial_index_name(cell, place.scale)}"
            sizes[name] = self._write_index(cell, boxes, dust)
        kept = self.scope.kept(folder.readable_record(cell), dust)
        folder.write_record(cell, Record(self.parameters, tuple(boxes), dust, kept))
        return sizes, len(boxes)

    def _write_index(
        self, cell: BoundingBox, boxes: Mapping[int, Sequence[int]], dust: Sequence[int]
    ) -> int:
        """Write the boxes of a cell's labels, with those of labels that stay as they are."""
        scope, folder = self.scope, self.place.folder
        name = spatial_index_name(cell, self.place.scale)
        if not scope.is_everything:
            there = folder.read_spatial_index(name).items()
            stay = {label: box for label, box in there if not scope.replaces(label, dust)}
            boxes = dict(sorted({**stay, **boxes}.items()))
        return folder.write_spatial_index(name, boxes, self.compress)
