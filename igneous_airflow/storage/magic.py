"""How files begin, which tells their format; used where maps and sources are opened."""

NPY = b"\x93NUMPY"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_AFTER_A_BLOCK = 512  # bytes of its own that MATLAB begins an HDF5 file with
LONGEST = _AFTER_A_BLOCK + len(_HDF5)


def is_hdf5(head: bytes) -> bool:
    """Whether a file that begins so is an HDF5 file; tells by its first LONGEST bytes."""
    return head.startswith(_HDF5) or head.startswith(_HDF5, _AFTER_A_BLOCK)
