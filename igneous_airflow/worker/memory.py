"""How a worker process treats its memory; used by the pool's processes."""

import ctypes
import gc
from contextlib import suppress

# names and numbers of glibc's <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_KEPT = 32 * 2**20  # bytes of one block; glibc allows no more
_KEPT = 256 * 2**20  # bytes


def keep_freed_memory() -> None:
    """Let glibc keep freed blocks of chunk size instead of giving them back to the system.

    A task allocates and frees a few hundred kilobytes for every chunk. By default each of these is
    fetched page by page from the system again, which is a tenth of the time of downsampling an
    image. Does nothing where the C library is another one.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def spare_what_lasts() -> None:
    """Let garbage collection skip all objects that are there now; call it when imports are done.

    The libraries that a stage imports make over a hundred thousand objects that stay for good.
    Looking through them again and again takes 3 to 5 % of the time of a task.
    """
    gc.collect()
    gc.freeze()
