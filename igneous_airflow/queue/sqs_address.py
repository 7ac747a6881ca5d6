"""What the URL of an SQS queue says; used by `sqs.py` and its parts."""

import re
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import InvalidParameter

_OPTIONS = frozenset({"region", "endpoint", "create"})
_USUAL_HOST = re.compile(r"sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")
_REGIONS_IN_HOSTS = (
    re.compile(r"(?:^|\.)sqs(?:-fips)?\.([a-z0-9-]+)\.(?:(?:vpce\.)?amazonaws\.com|api\.aws)"),
    re.compile(r"^([a-z0-9-]+)\.queue\.amazonaws\.com"),
)
_ACCOUNT = re.compile(r"[0-9]{12}")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,80}")
_LONGEST_OWN_NAME = 75  # room for the ending of the dead-letter queue
_PREFIX = "igneous-"  # of the queues of runs: policies may grant what begins so
_HASH = 9  # characters at the end of a run's name that make it the only one


@dataclass(frozen=True, slots=True)
class Address:
    """What a queue's URL says; without an account it is in that of the credentials."""

    name: str
    region: str | None = None
    endpoint: str | None = None
    create: bool = True
    account: str = ""

    @classmethod
    def of_run(cls, run: str, region: str | None = None, endpoint: str | None = None) -> Self:
        """The queue of a run, by the name of the run's folder."""
        plain = re.sub("[^A-Za-z0-9_-]", "_", run)
        start = plain[:-_HASH][: _LONGEST_OWN_NAME - len(_PREFIX) - _HASH]
        return cls(f"{_PREFIX}{start}{plain[-_HASH:]}", region, endpoint)

    @property
    def url(self) -> str:
        """The address as `parse` reads it."""
        options = {"region": self.region, "endpoint": self.endpoint}
        if self.account:
            china = ".cn" if str(self.region).startswith("cn-") else ""
            host = f"https://sqs.{self.region}.amazonaws.com{china}"
            if self.endpoint and not urlsplit(self.endpoint).path:
                host = options.pop("endpoint") or host
            place = f"{host}/{self.account}/{self.name}"
        else:
            place = f"sqs://{self.name}"
            options["create"] = None if self.create else "false"
        query = urlencode({key: value for key, value in options.items() if value}, safe="/:")
        return f"{place}?{query}" if query else place

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `sqs://NAME` or a queue's full URL, `https://HOST/ACCOUNT/NAME`, with options.

        Options are `?region=`, `endpoint=` and, for a queue that is somebody else's,
        `create=false`, which a full URL implies. A host that is not the usual one of a region, as
        that of a VPC or of FIPS, is the endpoint. Raises InvalidParameter.
        """
        refuse_credentials(text)
        parts = urlsplit(text)
        options = _options(text, parts)
        region, endpoint = options.get("region"), options.get("endpoint")
        if parts.scheme == "sqs" and not parts.path:
            create = options.get("create") != "false"
            return cls(_checked_name(text, parts.netloc, create), region, endpoint, create)
        account, _, name = parts.path.strip("/").partition("/")
        if parts.scheme not in ("http", "https") or not _ACCOUNT.fullmatch(account):
            raise InvalidParameter(
                f"{text.partition('?')[0]!r} names no SQS queue: write sqs://NAME or "
                "https://sqs.REGION.amazonaws.com/ACCOUNT/NAME"
            )
        if options.get("create") == "true":
            raise InvalidParameter(f"{text!r} names an existing queue: leave out create=true")
        host = parts.netloc.lower()
        for pattern in _REGIONS_IN_HOSTS:
            if found := pattern.search(host):
                region = region or found[1]
        if not _USUAL_HOST.fullmatch(host):
            endpoint = endpoint or f"{parts.scheme}://{host}"
        name = _checked_name(text, name, create=False)
        return cls(name, region, endpoint, create=False, account=account)


def _options(text: str, parts: SplitResult) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - _OPTIONS):
        known = ", ".join(sorted(_OPTIONS))
        raise InvalidParameter(
            f"{text.partition('?')[0]}: unknown option {', '.join(unknown)}; there are {known}"
        )
    if "endpoint" in options:
        options["endpoint"] = _checked_endpoint(text.partition("?")[0], options["endpoint"])
    if options.get("create", "true") not in ("true", "false") or options.get("region") == "":
        raise InvalidParameter(f"{text!r}: write create=true or create=false, and region=NAME")
    return options


def _checked_endpoint(text: str, endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidParameter(f"{text}: the endpoint must be http://HOST:PORT or https://HOST")
    return endpoint.rstrip("/")


def _checked_name(text: str, name: str, create: bool) -> str:
    if name.endswith(".fifo"):
        raise InvalidParameter(f"{text!r} is a FIFO queue, which is slower: use a standard queue")
    longest = _LONGEST_OWN_NAME if create else 80
    if not _NAME.fullmatch(name) or len(name) > longest:
        raise InvalidParameter(
            f"{text!r} names no SQS queue: a name has 1 to {longest} letters, digits, hyphens and "
            "underscores"
        )
    return name
