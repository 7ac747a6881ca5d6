"""What OME-XML in a TIFF says of other files and of sizes, before anything is made of it.

Format: https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
"""

import math
from xml.etree import ElementTree

from igneous_airflow.errors import UnreadableSource
from igneous_airflow.sources.protocol import named
from igneous_airflow.storage.parts import FileInParts

_MOST_PLANES = 1 << 22


def require_one_file(text: str, file: FileInParts) -> None:
    """Raise UnreadableSource when planes of an OME-TIFF lie in other files, or are too many.

    The files that it names are never opened. What is no XML says nothing.
    """
    if "<!DOCTYPE" in text:  # whose entities may become any number of bytes
        raise UnreadableSource(f"{file.url}: its OME metadata have a DOCTYPE, which none has")
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - there are no entities
        others, planes = _other_files(root, file.entry.name), _planes(root)
    except (ElementTree.ParseError, ValueError, ArithmeticError):  # which tifffile passes over
        return
    if others:
        raise UnreadableSource(
            f"{file.url} is one of several files of an OME-TIFF: its metadata say that planes lie "
            f"in {named(others)}, which are not opened. Give their folder as the source, or write "
            "all planes into one file"
        )
    if planes > _MOST_PLANES:
        raise UnreadableSource(
            f"{file.url}: its OME metadata promise {planes:,.0f} planes, and {_MOST_PLANES:,} are "
            "the most that are read: they are damaged"
        )


def _other_files(root: ElementTree.Element, name: str) -> list[str]:
    own = root.get("UUID")
    found = []
    for element in root.iter():
        if _kind(element) != "UUID" or "FileName" not in element.attrib:
            continue
        other = element.attrib["FileName"]
        is_own = element.text == own if own else other.lower() == name.lower()
        if not is_own:
            found.append(other)
    return list(dict.fromkeys(found))


def _planes(root: ElementTree.Element) -> float:
    """The most planes that any part of the metadata speaks of."""
    counts = [0.0]
    for element in root.iter():
        kind, said = _kind(element), element.attrib
        if kind == "Pixels":
            counts.append(math.prod(float(said.get(f"Size{axis}", 1)) for axis in "ZCT"))
        elif kind == "TiffData":
            counts += [float(said.get(key, 0)) for key in ("PlaneCount", "NumPlanes", "IFD")]
        elif kind.startswith("ModuloAlong") and "Start" in said:
            length = float(said.get("End", 0)) - float(said["Start"])
            counts.append(abs(length / float(said.get("Step", 1))))
    return max(counts)


def _kind(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
