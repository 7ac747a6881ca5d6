"""Meshes that are replaced all together, moved to the trash of their layer."""

from typing import Any

from igneous_airflow.meshes.place import MeshPlace
from igneous_airflow.storage.mesh_info import keys_of_others
from igneous_airflow.storage.meshes import MeshFolder
from igneous_airflow.storage.trash import Entry, Trash


def move_meshes(place: MeshPlace, trash: Trash, run: str, launch: str) -> None:
    """Move the mesh directory to an entry of the trash as a whole; one that was moved stays there.

    Raises InvalidParameter when the entry is another run's.
    """
    directory = place.folder.directory
    entry = Entry(
        name=trash.name,
        what=f"meshes in {directory}, replaced by those of {place.info}",
        stage="mesh",
        run=run,
        launch=launch,
        folders=(directory,),
        mesh=directory,
    )
    trash.begin(entry)
    if not trash.holds(directory):
        trash.put_folder(directory)
        trash.begin(entry)  # the trash may have been emptied meanwhile
    trash.complete()


def keys_of_moved(place: MeshPlace, trash: Trash) -> dict[str, Any]:
    """What the info of a directory that was moved said besides, which a new one takes over."""
    moved = MeshFolder(place.layer.folder, trash.path_of(place.folder.directory))
    return keys_of_others(moved.read_keys())
