"""Make the sample volume: an electron microscopy image and the segmentation that belongs to it.

Called by the command line's `demo`, by tests and by benchmarks. Cells grow on a lattice of sites
(`_Tissue`), are drawn on a coarse grid of 4 x 4 x 1 voxels (`_Anatomy`), and are doubled twice to
full resolution and painted section by section (`SampleVolume.volumes`).

Every number that reaches the output is an integer, and the random bits come raw from Philox: a seed
gives the same bytes on every machine and with every numpy. Arrays are indexed z, y, x inside this
module and handed out transposed: x, y, z in Fortran order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from igneous_airflow.geometry.bbox import Vec3

_Shorts = NDArray[np.int16]
_Site = tuple[int, int, int]

# Lengths of the drawing are in sixteenths of a nanometre, at 4 x 4 x 40 nm per voxel.
_NM = 16
#: Coarse voxels from a site to the edges of the box it is drawn in: 256 nm in x and y, 240 in z.
_REACH = (6, 16, 16)
#: Coarse voxels between sites, doubled: about 178 nm on each axis.
_PITCH2 = (9, 22, 22)
#: Coarse voxels around the volume, so that sites beyond its edges shape it and no box is clipped.
_MARGIN = (11, 27, 27)
_FAR = 16_000
_MEMBRANE = 12 * _NM
_STEPS: list[_Site] = [(z, y, x) for z, y, x in product((-1, 0, 1), repeat=3) if z or y or x]


def _bits(seed: int, stream: int, count: int) -> NDArray[np.uint64]:
    """Draw random 64-bit words; each stream of a seed is independent of the others."""
    return np.random.Philox(key=seed | stream << 64).random_raw(count)


def _noise(seed: int, stream: int, shape: tuple[int, ...], doublings: tuple[int, ...]) -> _Shorts:
    """Make value noise in -1024..1023: random lattice values with straight lines between them."""
    coarse = tuple((n - 1 >> d) + 2 for n, d in zip(shape, doublings, strict=True))
    words = _bits(seed, stream, int(np.prod(coarse)))
    values = ((words >> np.uint64(53)).astype(np.int16) - 1024).reshape(coarse)
    for axis, times in enumerate(doublings):
        for _ in range(times):
            values = _doubled(values, axis)
    return values[tuple(slice(n) for n in shape)]


def _halves(values: _Shorts, axis: int) -> tuple[_Shorts, _Shorts]:
    """All but the last and all but the first along an axis: the neighbours of each midpoint."""
    rows = np.moveaxis(values, axis, 0)
    return rows[:-1], rows[1:]


def _interleaved(values: _Shorts, between: _Shorts, axis: int) -> _Shorts:
    """Weave the midpoints, whose first axis is `axis`, between the values."""
    shape = list(values.shape)
    shape[axis] += shape[axis] - 1
    result = np.empty(shape, values.dtype)
    rows = np.moveaxis(result, axis, 0)
    rows[0::2] = np.moveaxis(values, axis, 0)
    rows[1::2] = between
    return result


def _doubled(values: _Shorts, axis: int) -> _Shorts:
    """Put the mean between each two neighbours: n become 2n - 1."""
    low, high = _halves(values, axis)
    return _interleaved(values, (low + high) >> 1, axis)


def _doubled_cells(cells: _Shorts, gap: _Shorts, axis: int) -> tuple[_Shorts, _Shorts]:
    """Put midpoints between voxels of cells, so that boundaries stay straight and sharp.

    `gap` says how far inside its cell a voxel is. Between two cells it counts as positive in one
    and negative in the other, hence passes zero exactly at the boundary.
    """
    cell_low, cell_high = _halves(cells, axis)
    low, high = _halves(gap, axis)
    between = np.where(cell_low == cell_high, low + high, np.abs(low - high)) >> 1
    cell = np.where(low >= high, cell_low, cell_high)
    return _interleaved(cells, cell, axis), _interleaved(gap, between, axis)


class _Tissue:
    """Cells as chains and tubes of sites on a jittered lattice.

    A site is drawn as a ball: `balls` holds positions in coarse voxels, cells and width classes
    0..3. `mitochondria` and `vesicles` are positions with their cell. Cells count from 1.
    """

    def __init__(self, shape: _Site, seed: int) -> None:
        frame = list(zip(shape, _MARGIN, _REACH, _PITCH2, strict=True))
        self.limits = [n + 2 * margin - reach - 1 for n, margin, reach, _ in frame]
        counts = [(n + 2 * (m - reach)) * 2 // pitch + 1 for n, m, reach, pitch in frame]
        sites = [(z, y, x) for z, y, x in product(*map(range, counts))]
        words = _bits(seed, 1, len(sites))
        self.dice = dict(zip(sites, words.tolist(), strict=True))
        self.owner: dict[_Site, int] = {}
        self.balls: list[tuple[_Site, int, int]] = []
        self.mitochondria: list[tuple[_Site, int]] = []
        self.vesicles: list[tuple[_Site, int]] = []
        self.cells = 0
        order = [sites[i] for i in np.argsort(words, kind="stable").tolist()]
        for site in order[: len(order) // 450]:
            self._grow_dendrite(site)
        for site in order:
            if site not in self.owner:
                self._grow_axon(site)

    def _place(self, site: _Site, die: int) -> _Site:
        """Find the jittered position of a site, in coarse voxels; a box around it fits in."""
        jitter = (die % 4, (die >> 8) % 10, (die >> 16) % 10)
        z, y, x = (
            min(max(reach + i * pitch // 2 + j, reach), limit)
            for i, j, pitch, reach, limit in zip(
                site, jitter, _PITCH2, _REACH, self.limits, strict=True
            )
        )
        return z, y, x

    def _grow_dendrite(self, start: _Site) -> None:
        """Give a winding tube of sites through the whole volume to a new cell."""
        die = self.dice[start]
        heading = [(die >> shift) % 33 - 16 for shift in (3, 13, 23)]
        squared_radius = (0, 1, 1, 2, 3)[(die >> 33) % 5]
        self.cells += 1
        for sign in (-1, 1):
            point = [16 * i for i in start]  # sixteenths of a site
            for step in range(200):
                z, y, x = (p + 8 >> 4 for p in point)
                if (z, y, x) not in self.dice:
                    break
                self._fill((z, y, x), squared_radius)
                place = self._place((z, y, x), die)
                self.balls.append((place, self.cells, 3))
                if (step // 9 + die) % 3 == 0:
                    self.mitochondria.append((place, self.cells))
                bend = self.dice[z, y, x] >> 40
                for axis in range(3):
                    point[axis] += sign * heading[axis] // 2 + (bend >> 4 * axis) % 8 - 4

    def _fill(self, middle: _Site, squared_radius: int) -> None:
        """Give the free sites around one to the newest cell."""
        for z, y, x in product(range(-2, 3), repeat=3):
            site = _sum(middle, (z, y, x))
            near = z * z + y * y + x * x <= squared_radius
            if near and site in self.dice and site not in self.owner:
                self._own(site, self.cells, width=2)

    def _own(self, site: _Site, cell: int, width: int) -> _Site:
        place = self._place(site, self.dice[site] >> 8)
        self.owner[site] = cell
        self.balls.append((place, cell, width))
        return place

    def _grow_axon(self, start: _Site) -> None:
        """Give a chain of free sites to a new cell, or a site without free neighbours to theirs."""
        die = self.dice[start]
        path = [start]
        self.owner[start] = 0
        heading = _STEPS[die % len(_STEPS)]
        while len(path) < 6 + die % 40:
            step = self._free_step(path[-1], heading)
            if step is None:
                break
            heading = step
            path.append(_sum(path[-1], step))
            self.owner[path[-1]] = 0
        parent = self._branch_of(start) if len(path) == 1 else 0
        self.cells += not parent
        self._draw_axon(path, parent or self.cells)

    def _free_step(self, site: _Site, heading: _Site) -> _Site | None:
        """Find the step to a free site, about straight on; None where there is none."""
        turn = self.dice[site] >> 30
        wobble = {step: turn >> i & 1 for i, step in enumerate(_STEPS)}
        ahead = [step for step in _STEPS if _dot(step, heading) > 0]
        ahead.sort(key=lambda step: wobble[step] - _dot(step, heading))
        for step in ahead:
            target = _sum(site, step)
            if target in self.dice and target not in self.owner:
                return step
        return None

    def _branch_of(self, site: _Site) -> int:
        """Find the cell of a neighbouring site, 0 where there is none."""
        neighbours = (self.owner.get(_sum(site, step), 0) for step in _STEPS)
        return next((cell for cell in neighbours if cell), 0)

    def _draw_axon(self, path: list[_Site], cell: int) -> None:
        """Draw the sites of a chain, some swollen around organelles, and the links between."""
        before: _Site | None = None
        for site in path:
            die = self.dice[site] >> 50
            swollen = die % 4 == 0
            place = self._own(site, cell, width=3 if swollen else cell % 3)
            if swollen:
                (self.mitochondria if die & 4 else self.vesicles).append((place, cell))
            if before is not None:
                z, y, x = (a + b >> 1 for a, b in zip(before, place, strict=True))
                self.balls.append(((z, y, x), cell, cell % 3))
                if swollen and die & 8:
                    self.mitochondria.append(((z, y, x), cell))
            before = place


def _sum(left: _Site, right: _Site) -> _Site:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]


def _dot(left: _Site, right: _Site) -> int:
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


@dataclass(frozen=True, slots=True)
class _Anatomy:
    """The cells on the coarse grid, three arrays of one shape.

    `cells`: the nearest cell. `gap`: how much nearer it is than the next, zero at boundaries.
    `organelles`: depth inside a mitochondrion; -1 among vesicles.
    """

    cells: _Shorts
    gap: _Shorts
    organelles: _Shorts

    @classmethod
    def of(cls, tissue: _Tissue, shape: _Site, seed: int) -> "_Anatomy":
        """Draw the tissue: each voxel belongs to the cell of the nearest ball."""
        padded = tuple(n + 2 * m for n, m in zip(shape, _MARGIN, strict=True))
        nearest = np.full(padded, _FAR, np.int16)
        second = np.full(padded, _FAR, np.int16)
        cells = np.zeros(padded, np.int16)
        balls = _balls(seed)
        for number, (place, cell, width) in enumerate(tissue.balls):
            box = _box(place)
            near, owner, distance = nearest[box], cells[box], balls[width][number % 32]
            # The runner-up is never of the same cell: there are no walls within a cell.
            loser = np.maximum(near, distance)
            loser[owner == cell] = _FAR
            np.minimum(second[box], loser, out=second[box])
            np.copyto(owner, cell, where=distance < near)
            np.minimum(near, distance, out=near)
        organelles = np.zeros(padded, np.int16)
        for number, (place, cell) in enumerate(tissue.vesicles):
            inside = balls[1][number % 32] < 170 * _NM
            np.copyto(organelles[_box(place)], -1, where=inside & (cells[_box(place)] == cell))
        for number, (place, cell) in enumerate(tissue.mitochondria):
            depth = 125 * _NM - balls[1][number % 32]
            here = organelles[_box(place)]
            deeper = (depth > np.maximum(here, 0)) & (cells[_box(place)] == cell)
            np.copyto(here, depth, where=deeper)
        middle = tuple(slice(m, -m) for m in _MARGIN)
        gap = np.minimum(second - nearest, 500 * _NM)
        return cls(cells[middle], gap[middle], organelles[middle])


def _box(place: _Site) -> tuple[slice, ...]:
    return tuple(slice(p - r, p + r + 1) for p, r in zip(place, _REACH, strict=True))


def _distance() -> _Shorts:
    """Distances from the middle of a site's box; the square root is exact before it is floored."""
    z, y, x = (
        (np.arange(-reach, reach + 1) * pitch) ** 2
        for reach, pitch in zip(_REACH, (40 * _NM, 16 * _NM, 16 * _NM), strict=True)
    )
    squared = z[:, None, None] + y[:, None] + x
    return np.sqrt(squared.astype(np.float64)).astype(np.int16)


def _balls(seed: int) -> list[list[_Shorts]]:
    """Distances to 32 lumpy balls of each of four widths."""
    sides = [2 * reach + 1 for reach in _REACH]
    lumps = [_noise(seed, 64 + i, tuple(sides), (2, 3, 3)) // 2 for i in range(32)]
    round_ball = _distance()
    return [[round_ball + lump - width * _NM for lump in lumps] for width in (-30, 0, 30, 60)]


class _Painter:
    """Turns sections of cells into grey values."""

    def __init__(self, size: Vec3, seed: int) -> None:
        self.size, self.seed = size, seed
        self.roam = 256  # voxels by which a section's textures may be shifted
        shape = (size.y + self.roam, size.x + self.roam)
        fine, middle, wide, patches = (_noise(seed, 128 + d, shape, (d, d)) for d in (1, 2, 4, 6))
        self.rough = middle >> 4
        # Where the noise changes sign it draws thin winding lines.
        self.texture = (fine >> 6) + (middle >> 6) + (wide >> 7)
        self.reticulum = np.where((np.abs(wide) < 80) & (patches > 200), -30, 0).astype(np.int16)
        self.cristae = np.where(np.abs(_noise(seed, 140, shape, (3, 3))) < 200, -30, 0).astype(
            np.int16
        )
        self.rings = _rings(seed, shape)
        self.wall = _tones((0, -100), (40, -95), (130, -60), (230, -18), (340, 0))
        self.inner = _tones((0, 0), (16, -55), (32, -60), (64, -34), (80, -30))

    def paint(self, z: int, cells: _Shorts, gap: _Shorts, organelles: _Shorts) -> NDArray[np.uint8]:
        """Paint one section; its textures, brightness and noise are its own: sections are thick."""
        grains = (self.size.y + 1) * (self.size.x + 1)
        words = _bits(self.seed, 1024 + z, grains // 8 + 4)
        y, x, jitter = (int(word) >> 20 for word in words[-3:])
        y, x = y % self.roam, x % self.roam
        window = (slice(y, y + self.size.y), slice(x, x + self.size.x))
        grey = self.texture[window] + np.int16(150 + jitter % 17 - 8)
        grey += ((cells * np.int16(20503)) >> 11) & 15  # each cell has a tone
        depth = np.minimum(organelles, gap - 28 * _NM)
        core = gap > 50 * _NM
        grey += self.reticulum[window] * core
        grey += self.rings[window] * (core & (organelles < 0))
        inside = np.clip(depth, 0, 511 * 4) >> 2
        grey += self.inner[inside]
        grey += self.cristae[window] * (depth > 16 * _NM)
        edge = np.clip(gap + self.rough[window], 0, 1023) >> 1
        grey += self.wall[edge]
        grey += _grain(words, self.size)
        section: NDArray[np.uint8] = np.clip(grey, 0, 255).astype(np.uint8)
        return section


def _grain(words: NDArray[np.uint64], size: Vec3) -> _Shorts:
    """Imaging noise, about normal with a deviation of 7, that neighbouring voxels share."""
    count = (size.y + 1) * (size.x + 1)
    octets = words.astype("<u8").view(np.uint8)[:count].reshape(size.y + 1, size.x + 1)
    pairs = octets[:-1].astype(np.int16) + octets[1:]
    return (pairs[:, :-1] + pairs[:, 1:] - 510) * 3 >> 6


def _rings(seed: int, shape: tuple[int, int]) -> _Shorts:
    """Draw a field of vesicles seen from above: dark rings of 40 nm, lighter inside."""
    pitch, reach = 13, 6
    rows, columns = (n // pitch + 2 for n in shape)
    field = np.zeros((rows * pitch + 2 * reach, columns * pitch + 2 * reach), np.int16)
    side = np.arange(-reach, reach + 1)
    squared = side[:, None] ** 2 + side**2
    ring = np.select([squared < 6, squared < 12, squared < 26], [-4, -26, -52], 0).astype(np.int16)
    dice = _bits(seed, 2, rows * columns).reshape(rows, columns)
    for (row, column), die in np.ndenumerate(dice):
        if die % 5:
            y, x = row * pitch + int(die >> 8) % 7, column * pitch + int(die >> 16) % 7
            box = field[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
            np.minimum(box, ring[: box.shape[0], : box.shape[1]], out=box)
    return field[: shape[0], : shape[1]]


def _tones(*knots: tuple[int, int]) -> _Shorts:
    """Make a table of 512 grey values to add, on straight lines between (index, value) knots."""
    table = np.zeros(512, np.int16)
    for (start, low), (stop, high) in pairwise(knots):
        table[start:stop] = low + (high - low) * np.arange(stop - start) // (stop - start)
        table[stop:] = high
    return table


@dataclass(frozen=True, slots=True)
class SampleVolume:
    """A piece of neuropil in voxels of `resolution` nm, the same for the same size and seed.

    Shapes are drawn for 4 x 4 x 40 nm. The voxel offset changes no voxel. Seeds are 0 to 2**64 - 1.
    A volume of more than 32767 cells, some twenty times the default, raises OverflowError.
    """

    size: Vec3
    voxel_offset: Vec3
    resolution: tuple[int, int, int]
    seed: int

    def image(self) -> NDArray[np.uint8]:
        """Make the image: x, y, z in Fortran order, grey values as an electron microscope's."""
        return self.volumes()[0]

    def labels(self) -> NDArray[np.uint64]:
        """Make the segmentation: x, y, z in Fortran order; 0 is the membrane between cells."""
        labels = np.empty(tuple(self.size)[::-1], np.uint64)
        for z, (cells, gap, _) in enumerate(self._sections()):
            labels[z] = _labels(cells, gap)
        return labels.T

    def volumes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
        """Make the image and the labels that belong to it, for little more than the image alone."""
        image = np.empty(tuple(self.size)[::-1], np.uint8)
        labels = np.empty(image.shape, np.uint64)
        painter = _Painter(self.size, self.seed)
        for z, (cells, gap, organelles) in enumerate(self._sections()):
            labels[z] = _labels(cells, gap)
            image[z] = painter.paint(z, cells, gap, organelles)
        return image.T, labels.T

    def _sections(self) -> Iterator[tuple[_Shorts, _Shorts, _Shorts]]:
        """Cells, gaps and organelles of each section at full resolution."""
        shape = (self.size.z, (self.size.y - 1) // 4 + 2, (self.size.x - 1) // 4 + 2)
        anatomy = _Anatomy.of(_Tissue(shape, self.seed), shape, self.seed)
        window = (slice(self.size.y), slice(self.size.x))
        for z in range(self.size.z):
            cells, gap, organelles = anatomy.cells[z], anatomy.gap[z], anatomy.organelles[z]
            for axis in (1, 1, 0, 0):
                cells, gap = _doubled_cells(cells, gap, axis)
                organelles = _doubled(organelles, axis)
            yield cells[window], gap[window], organelles[window]


def _labels(cells: _Shorts, gap: _Shorts) -> NDArray[np.uint64]:
    """Spread the numbers of cells over all 64 bits, one to one; 0 stays 0, and so do membranes."""
    inside = cells * (gap >= _MEMBRANE)
    return inside.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


DEFAULT = SampleVolume(
    size=Vec3(1037, 1029, 131), voxel_offset=Vec3(13, -7, 5), resolution=(4, 4, 40), seed=1
)
