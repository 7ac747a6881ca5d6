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


def fate(place: MeshPlace, *, moves: bool, kept: bool) -> str:
    """What becomes of the meshes that a run replaces, in words; `kept` is what was asked for."""
    if moves:
        return (
            "the meshes that are there go to the trash of the layer: until the new ones have their "
            "manifests, viewers show none"
        )
    if place.has_other_grid:
        return (
            "the meshes that are there are not kept: their fragments stay until `mesh_manifest` "
            "deletes them with `remove_stale`"
        )
    replaced = "the meshes that are there are replaced in place"
    if not place.layer.folder.renames:
        return f"{replaced}: a bucket has no trash, so that only its versions keep them"
    if kept:
        return f"{replaced}, and not kept: only a mesh directory as a whole goes to the trash"
    return f"{replaced}, and not kept"


def keys_of_moved(place: MeshPlace, trash: Trash) -> dict[str, Any]:
    """What the info of a directory that was moved said besides, which a new one takes over."""
    moved = MeshFolder(place.layer.folder, trash.path_of(place.folder.directory))
    return keys_of_others(moved.read_keys())
