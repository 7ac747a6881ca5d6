"""One measured run of a bare loop that looks labels up; started by `__main__.py`.

It reads each chunk file, indexes the map with its labels, and writes the chunk file: what must be
done in any case, with the same codec and nothing around it.
"""

import sys
from pathlib import Path

from igneous_side import pin, timed

_LEVEL = 6  # of gzip, as ours


def main() -> None:
    _stage, layer, _mips, core, source = sys.argv[1:]
    pin(int(core))
    import deflate
    import numpy as np

    src, dest = (Path(url.removeprefix("file://")) for url in (source, layer))
    values = np.load(src.parent / "map.npy", mmap_mode="r")
    (key,) = (path.name for path in src.iterdir() if path.is_dir())
    (dest / key).mkdir(parents=True)
    (dest / "info").write_bytes((src / "info").read_bytes())

    def work() -> None:
        for file in (src / key).iterdir():
            labels = np.frombuffer(deflate.gzip_decompress(file.read_bytes()), np.uint32)
            packed = deflate.gzip_compress(values[labels].data, _LEVEL)
            (dest / key / file.name).write_bytes(packed)

    timed(work)


if __name__ == "__main__":
    main()
