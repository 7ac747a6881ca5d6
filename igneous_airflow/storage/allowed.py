"""Which addresses runs may read and write; enforced where folders are opened, in `files.py`.

`[igneous] allowed` of Airflow's configuration and the workers' `--allowed` list prefixes. They are
compared as places, segment by segment: `s3://lab` does not admit `s3://lab-private`.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from igneous_airflow.credentials import hide_credentials, refuse_credentials
from igneous_airflow.errors import AccessDenied, InvalidParameter
from igneous_airflow.storage.place import Place

_BETWEEN = re.compile(r"\s*[,\n]\s*")
_PATTERN = re.compile(r"[*?\[\]]")


@dataclass(frozen=True, slots=True)
class Allowed:
    """Prefixes of addresses that may be read and written; without any, all may be.

    `own` are folders that belong to the deployment itself, as the record of its runs: no layer may
    be in one or hold one, unless a prefix names a folder inside of it. `setting` is what people
    call the place where all this is said.
    """

    prefixes: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    setting: str = "allowed"

    @classmethod
    def parse(cls, text: str, setting: str, own: Iterable[str] = ()) -> Self:
        """Read prefixes that are separated by commas or lines; nothing but spaces allows all.

        Raises AccessDenied when one of them is not an address: then nothing may be opened.
        """
        prefixes = tuple(_BETWEEN.split(text.strip())) if text.strip() else ()
        for prefix in prefixes:
            try:
                Place.parse(prefix)
                if _PATTERN.search(prefix):
                    raise InvalidParameter("a prefix is not a pattern")
            except InvalidParameter as error:
                raise AccessDenied(
                    f"{setting} has the entry {hide_credentials(prefix)!r}, which cannot be used: "
                    f"{error}. Nothing is read or written until that is corrected; write prefixes "
                    "such as s3://bucket/folder or /data/layers, separated by commas"
                ) from None
        return cls(prefixes, tuple(own), setting)

    def require(self, url: str) -> None:
        """Raise AccessDenied unless an address may be read and written."""
        if not self.prefixes and not self.own:
            return
        try:
            place = Place.parse(url)
        except InvalidParameter as error:
            raise AccessDenied(f"{error}. {self._way_out}") from None
        allowed = max((len(p.segments) for p in self._places if p.holds(place)), default=-1)
        if self.prefixes and allowed < 0:
            raise AccessDenied(f"{url} is outside of what may be read and written. {self._way_out}")
        for own in self._own_places:
            path = place.without_server()
            inside = own.holds(path) and allowed <= len(own.segments)
            if inside or (path.holds(own) and path != own):
                raise AccessDenied(
                    f"{url} {'is in' if inside else 'holds'} a folder of the deployment itself, "
                    "such as the record of its runs or Airflow's home: choose another folder, or "
                    f"ask the administrator to list one inside of it in {self.setting}"
                )

    @property
    def _way_out(self) -> str:
        if not self.prefixes:
            return "Write the address in its plain form"
        return (
            f"{self.setting} admits {', '.join(self.prefixes)}: choose an address below one of "
            "these, or ask the administrator to add a prefix"
        )

    @property
    def _places(self) -> list[Place]:
        """The places of the prefixes, looked up each time: links on disks may change."""
        return [Place.parse(prefix) for prefix in self.prefixes]

    @property
    def _own_places(self) -> list[Place]:
        return [Place.parse(url).without_server() for url in self.own]


#: What limits this process, by the name of the setting. Until all folders are opened through one
#: object that is passed down, there is no other way to reach every thread of a stage's work.
_limits: dict[str, Callable[[], Allowed]] = {}


def limit_process(setting: str, allowed: Allowed | Callable[[], Allowed]) -> None:
    """Let this process open only what is allowed, by this setting and by all that were given.

    For entry points. A callable is asked at every opening of a folder; what it raises, the opening
    raises.
    """
    _limits[setting] = allowed if callable(allowed) else lambda: allowed


def process_limits() -> tuple[Allowed, ...]:
    """What limits this process, for processes that it starts."""
    return tuple(allowed() for allowed in _limits.values())


def require_allowed(url: str) -> None:
    """Raise AccessDenied unless this process may read and write at an address.

    Raises InvalidParameter for one that holds credentials, whatever is allowed.
    """
    refuse_credentials(url)
    for allowed in process_limits():
        allowed.require(url)


def require_links_allowed(url: str, names: Iterable[str]) -> None:
    """Raise AccessDenied for files of an allowed folder on disk that are links to elsewhere."""
    folder = url.removeprefix("file://")
    if not _limits or folder == url:
        return
    for name in names:
        if os.path.islink(f"{folder}/{name}"):  # noqa: PTH114 - for each of many files
            require_allowed(f"{url}/{name}")
