"""Where an address leads, in one spelling for all ways to write it; used by `allowed.py`.

Storage libraries and servers read addresses in their own ways: they follow aliases, decode `%2e`,
resolve `..`. So what could lead elsewhere than it says is refused rather than guessed.
"""

import os
import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from igneous_airflow.credentials import decoded_forms, refuse_credentials
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.storage.folder_names import readings

_FORMAT, _SUFFIX = "precomputed://", "|neuroglancer-precomputed:"
_FILE = "file"
_IN_BUCKETS = ("s3", "gs", "mem")
_ON_THE_WEB = ("https", "http", "middleauth+https", "ngauth+https")
_PROTOCOLS = (_FILE, *_IN_BUCKETS, *_ON_THE_WEB)
_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?|[0-9a-f:.]+")
_UNSAFE = re.compile("[\x00-\x1f\x7f\ud800-\udfff\\\\|]")
# some servers drop what follows a `;`, and clients what follows a `?` or `#`
_DOTS = re.compile(r"\s*\.\.?\s*(?:[;?#].*)?", re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f\x7f]")
_LOCAL_UNSAFE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder or file: a protocol, an endpoint, and path segments, the first being the bucket.

    On a disk the links in the path are resolved. `endpoint` is empty where a protocol has one that
    goes without saying.
    """

    protocol: str
    endpoint: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Find out where an address leads; looks at links of this machine, and opens nothing.

        Raises InvalidParameter for one that is not an address, or that different programs would
        take for different places.
        """
        refuse_credentials(text)
        url = text.removeprefix(_FORMAT).removesuffix(_SUFFIX)
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = _FILE, url
        if scheme not in _PROTOCOLS:
            scheme, _, rest = _without_alias(scheme, rest).partition("://")
        protocol = scheme.lower()
        if protocol == _FILE:
            return cls(_FILE, "", _on_disk(rest))
        if found := _UNSAFE.search(rest):
            raise InvalidParameter(f"{text!r} contains {found[0]!r}")
        endpoint, is_web = "", protocol in _ON_THE_WEB
        if protocol == "s3" and rest.lower().startswith(("http://", "https://")):
            endpoint, rest = _endpoint(rest)
        elif is_web:
            endpoint, rest = _endpoint(f"{protocol.rpartition('+')[2]}://{rest}")
        segments = _segments(rest.removeprefix("/") if endpoint else rest, is_web=is_web)
        if not segments and protocol in _IN_BUCKETS:
            raise InvalidParameter(f"{text!r} names no bucket")
        return cls(protocol, endpoint, segments)

    def holds(self, other: "Place") -> bool:
        """Whether the other place is this one, or inside of it."""
        return (self.protocol, self.endpoint) == (other.protocol, other.endpoint) and (
            other.segments[: len(self.segments)] == self.segments
        )

    def without_server(self) -> "Place":
        """The place by its path alone: a bucket may be reached by several servers' names."""
        is_path = self.protocol == _FILE or not self.segments
        return self if is_path else Place("", "", self.segments)


def _without_alias(scheme: str, rest: str) -> str:
    """The address that an alias of cloud-files stands for; raises InvalidParameter."""
    from cloudfiles import paths

    paths.update_aliases_from_file()
    url = f"{paths.ALIASES.get(scheme, f'{scheme.lower()}://')}{rest}"
    if url.partition("://")[0] not in _PROTOCOLS:
        raise InvalidParameter(
            f"{scheme}:// is neither a protocol that is known nor an alias in "
            "~/.cloudfiles/aliases.json"
        )
    return url


def _on_disk(path: str) -> tuple[str, ...]:
    """The segments of a path on this machine, whose links are resolved."""
    path = f"/{path.removeprefix('localhost/')}" if path.startswith("localhost/") else path
    if not path.startswith("/"):
        raise InvalidParameter(f"{path!r} is not an absolute path: write it as /data/layer")
    if found := _LOCAL_UNSAFE.search(path):
        raise InvalidParameter(f"{path!r} contains {found[0]!r}")
    for segment in path.split("/"):
        if segment not in (".", ".."):  # which the file system resolves, as is done below
            require_plain(segment)
    return tuple(filter(None, os.path.realpath(path).split("/")))


def _endpoint(url: str) -> tuple[str, str]:
    """The server of a web address in one spelling, and the rest; raises InvalidParameter."""
    parts = urlsplit(url)
    try:
        host = (parts.hostname or "").rstrip(".").encode("idna").decode().lower()
        port = parts.port
    except ValueError as error:
        raise InvalidParameter(f"{url!r} has no valid host: {error}") from None
    rest = url[len(f"{parts.scheme}://{parts.netloc}") :]
    if not _HOST.fullmatch(host) or not parts.netloc:
        raise InvalidParameter(f"{url!r} has no valid host")
    named = f"[{host}]" if ":" in host else host
    usual = port in (None, _PORTS[parts.scheme])
    return f"{parts.scheme}://{named}" if usual else f"{parts.scheme}://{named}:{port}", rest


def _segments(path: str, *, is_web: bool) -> tuple[str, ...]:
    """The segments of a path in a bucket or on the web; raises InvalidParameter."""
    path = path.rstrip("/")
    segments = path.split("/") if path else []
    if "" in segments:
        raise InvalidParameter(f"{path!r} has two slashes in a row")
    for segment in segments:
        require_plain(segment, is_web=is_web)
    # a web server reads `%41` as `A`
    return tuple(unquote(segment) if is_web else segment for segment in segments)


def require_plain(name: str, *, is_web: bool = False) -> None:
    """Raise InvalidParameter for a name, or a path, that may become `.` or `..` on its way.

    On the web also for control characters, and for bytes that are not UTF-8, such as an overlong
    spelling of a dot: servers differ in what they make of these.
    """
    leads_away = any(_DOTS.fullmatch(part) for parts in readings(name) for part in parts)
    forms = decoded_forms(name)
    is_odd = is_web and (_CONTROL.search("".join(forms)) or not all(map(_is_utf8, forms)))
    if leads_away or is_odd:
        raise InvalidParameter(f"{name!r} may lead to another folder: write where it leads")


def _is_utf8(name: str) -> bool:
    try:
        unquote_to_bytes(name).decode()
    except UnicodeError:
        return False
    return True
