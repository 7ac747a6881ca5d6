"""The layers of `bench_mesh.py`, and what was made of them; run in processes of its own."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimesh import Trimesh

LABELS = 100_000
_RESOLUTION = (16, 16, 40)
_EDGE = 256  # of a cell
_POINTS = 60_000  # at which distances are taken
_CELLS = [f"0-256_0-256_{z}-{z + 256}" for z in range(0, 2560, 256)]


def make_labels(data: Path, folder: Path) -> None:
    """Write the real labels as the peer would: uint32, by cloud-volume, gzipped."""
    import numpy as np
    from cloudvolume import CloudVolume

    from benchmarks.layers import CASES, grey_or_labels

    voxels, source = grey_or_labels(CASES["b"], data)
    info = CloudVolume.create_new_info(
        num_channels=1,
        layer_type="segmentation",
        data_type="uint32",
        encoding="raw",
        resolution=_RESOLUTION,
        voxel_offset=(0, 0, 0),
        volume_size=voxels.shape,
        chunk_size=(64, 64, 64),
    )
    volume = CloudVolume(folder.as_uri(), info=info, compress="gzip", progress=False)
    volume.commit_info()
    volume[:, :, :] = voxels.astype(np.uint32)
    print(json.dumps({"source": source}))


def make_fragments(_data: Path, folder: Path) -> None:
    """Write a mesh directory of many labels, with 1 to 4 fragments each, as it is after meshing."""
    from igneous_airflow.geometry.bbox import Vec3
    from igneous_airflow.storage.info import Info, Scale
    from igneous_airflow.storage.layer import Layer

    size, chunk = Vec3(256, 256, 2560), Vec3.full(64)
    scale = Scale("16_16_40", (16.0, 16.0, 40.0), size, Vec3.full(0), chunk, "raw")
    info = Info.new(data_type="uint64", layer_type="segmentation", scale=scale)
    Layer.create(folder.as_uri(), Info(info.data | {"mesh": "mesh"}))
    meshes = folder / "mesh"
    meshes.mkdir()
    grid = {"@type": "neuroglancer_legacy_mesh", "mip": 0, "chunk_size": [256, 256, 256]}
    (meshes / "info").write_text(json.dumps(grid))
    count = 0
    for index in range(LABELS):
        label = 1 + index * 7919 % 2**40 * 104_729
        for cell in _CELLS[index % 7 : index % 7 + 1 + index % 4]:
            (meshes / f"{label}:0:{cell}.gz").touch()
            count += 1
    print(json.dumps({"fragments": count}))


def compare_meshes(first: Path, second: Path, cells: list[int]) -> dict[str, Any]:
    """Triangles and bytes of both sides, and the distances to and from the exact surfaces."""
    from igneous_airflow.testing.surfaces import distances

    sides = [_fragments(folder, cells) for folder in (first, second)]
    exact = _exact(first, cells)
    result: dict[str, Any] = {
        "labels": len(exact),
        "lost": [len(exact.keys() - side.keys()) for side in sides],
        "triangles": [sum(len(mesh.faces) for mesh in side.values()) for side in sides],
        "exact triangles": sum(len(mesh.faces) for mesh in exact.values()),
        "bytes": [_stored(folder) for folder in (first, second)],
        "from exact": [],
        "to exact": [],
    }
    for side in sides:
        pairs = [(exact[key], mesh) for key, mesh in side.items()]
        back = [(other, one) for one, other in pairs]
        for way, list_of_pairs in (("from exact", pairs), ("to exact", back)):
            found = distances(list_of_pairs, _POINTS)
            result[way].append([found.mean, found.percentile_99, found.largest])
    return result


def _mesh_folder(layer: Path) -> Path:
    return layer / json.loads((layer / "info").read_text())["mesh"]


def _stored(layer: Path) -> int:
    return sum(path.stat().st_size for path in _mesh_folder(layer).glob("*:0:*"))


def _fragments(layer: Path, cells: list[int]) -> "dict[tuple[int, str], Trimesh]":
    import gzip

    from cloudvolume.mesh import Mesh
    from trimesh import Trimesh

    wanted = {_box(cell) for cell in cells}
    found = {}
    for path in _mesh_folder(layer).glob("*:0:*.gz"):
        label, _, box = path.name.removesuffix(".gz").split(":")
        if box in wanted:
            mesh = Mesh.from_precomputed(gzip.decompress(path.read_bytes()))
            found[int(label), box] = Trimesh(mesh.vertices, mesh.faces, process=False)
    return found


def _corner(cell: int) -> tuple[int, int, int]:
    return cell % 2 * _EDGE, cell // 2 % 2 * _EDGE, cell // 4 * _EDGE


def _box(cell: int) -> str:
    return "_".join(f"{low}-{low + _EDGE}" for low in _corner(cell))


def _exact(layer: Path, cells: list[int]) -> "dict[tuple[int, str], Trimesh]":
    """The surfaces of all labels of some cells by zmesh alone, without simplification."""
    import fastremap
    import numpy as np
    import zmesh
    from cloudvolume import CloudVolume
    from trimesh import Trimesh

    volume = CloudVolume(layer.as_uri(), progress=False)
    found = {}
    for cell in cells:
        low = np.array(_corner(cell))
        part = tuple(slice(start, min(start + _EDGE + 1, 512)) for start in low)
        numbers, table = fastremap.renumber(np.asfortranarray(volume[part][..., 0]))
        ends = [(int(start == 0), int(start + _EDGE == 512)) for start in low]
        mesher = zmesh.Mesher(_RESOLUTION)
        mesher.mesh(np.pad(numbers, ends))
        labels = {number: label for label, number in table.items()}
        shift = (low - [before for before, _ in ends]) * _RESOLUTION
        for number in mesher.ids():
            mesh = mesher.get(number, voxel_centered=True)
            mesher.erase(number)
            found[int(labels[number]), _box(cell)] = Trimesh(
                mesh.vertices + shift, mesh.faces, process=False
            )
    return found


def compare_manifests(first: Path, second: Path, _cells: list[int]) -> dict[str, Any]:
    """Count the manifests, and those that differ but for the order of fragments."""
    one, other = (
        {
            path.name: frozenset(json.loads(path.read_text())["fragments"])
            for path in (folder / "mesh").glob("*:0")
        }
        for folder in (first, second)
    )
    differing = sum(one.get(name) != other.get(name) for name in one.keys() | other.keys())
    return {"manifests": [len(one), len(other)], "differing": differing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    makers = {"make-labels": make_labels, "make-fragments": make_fragments}
    comparers = {"compare-meshes": compare_meshes, "compare-manifests": compare_manifests}
    parser.add_argument("action", choices=[*makers, *comparers])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("cells", type=int, nargs="*")
    options = parser.parse_args()
    if options.action in makers:
        makers[options.action](options.first, options.second)
    else:
        compare = comparers[options.action]
        print(json.dumps(compare(options.first, options.second, options.cells)))


if __name__ == "__main__":
    main()
