"""Meshes that are replaced all together, moved to the trash of their layer."""

from typing import Any

from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.storage.mesh_info import keys_of_others
from igneous_airflow.storage.meshes import MeshFolder
from igneous_airflow.storage.trash import Entry, Trash


def move_meshes(place: MeshPlace, trash: Trash) -> None:
    """Move the mesh directory to an entry of the trash as a whole."""
    directory = place.folder.directory
    trash.begin(
        Entry(
            name=trash.name,
            what=f"meshes in {directory}, replaced by those of {place.info}",
            stage="mesh",
            folders=(directory,),
            mesh=directory,
            complete=True,
        )
    )
    trash.put_folder(directory)


def keys_of_moved(place: MeshPlace, trash: Trash) -> dict[str, Any]:
    """What the info of a directory that was moved said besides, which a new one takes over."""
    moved = MeshFolder(place.layer.folder, trash.path_of(place.folder.directory))
    return keys_of_others(moved.read_keys())
