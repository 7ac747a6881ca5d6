"""The meshes of one cell: fragments, spatial index and record, merged with what stays there."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.kernels.meshing import LabelMesh, surfaces
from igneous_airflow.meshes.cutout import MeshOptions, read_labels
from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.meshes.scope import Scope
from igneous_airflow.storage.mesh_info import spatial_index_name
from igneous_airflow.storage.mesh_record import Record
from igneous_airflow.storage.meshes import Boxes, encode_fragment
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
        Returns the stored bytes of each file, the record's too, by its name in the layer, and the
        number of fragments.
        """
        place, folder = self.place, self.place.folder
        boxes: Boxes = {}
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
            sizes[name] = self._update_index(cell, boxes, dust)

        def with_labels(record: Record | None) -> Record:
            kept = self.scope.kept(record, dust)
            if not kept.get(self.parameters, True):
                del kept[self.parameters]  # of which nothing stays
            return Record(self.parameters, tuple(boxes), dust, kept)

        sizes[folder.record_name(cell)] = folder.update_record(cell, with_labels)
        return sizes, len(boxes)

    def _update_index(self, cell: BoundingBox, boxes: Boxes, dust: Sequence[int]) -> int:
        """Write the boxes of a block's labels, with those of labels that stay as they are."""
        scope, folder = self.scope, self.place.folder

        def with_boxes(there: Boxes | None) -> Boxes:
            if scope.is_everything:
                return boxes
            others = (there or {}).items()
            stay = {label: box for label, box in others if not scope.replaces(label, dust)}
            return dict(sorted({**stay, **boxes}.items()))

        name = spatial_index_name(cell, self.place.scale)
        return folder.update_spatial_index(name, with_boxes, self.compress)
