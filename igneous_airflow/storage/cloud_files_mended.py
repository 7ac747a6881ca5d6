"""What hinders us in cloud-files 6.4, mended in its classes; used by `bucket.py`."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from igneous_airflow.storage.bucket_errors import may_pass

_OWN_KEYS = "AES256"  # S3's own: an ETag is the MD5 of the content then


def mend_cloud_files() -> None:
    """Mend it, before a connection is made.

    It tries everything seven times over half a minute or more, denied access too. It takes ETags
    for MD5s that are none. And keys from the environment without a session token are a KeyError to
    it; an empty token means none.
    """
    _mend_classes()
    if "AWS_ACCESS_KEY_ID" in os.environ:
        os.environ.setdefault("AWS_SESSION_TOKEN", "")


@cache
def _mend_classes() -> None:
    """Mend what needs it once a process."""
    _mend_retries()
    _mend_checks()


@dataclass(frozen=True, slots=True)
class _Picky:
    """Decides to try again where another would, unless that is of no use."""

    other: Callable[[Any], bool]

    def __call__(self, state: Any) -> bool:
        return self.other(state) and may_pass(state.outcome.exception())


def _mend_retries() -> None:
    """Let nothing be tried again that is of no use."""
    from cloudfiles import connectionpools, interfaces

    def mend(method: Any) -> Any:
        policy = method.retry
        if not isinstance(policy.retry, _Picky):  # one policy may be that of many functions
            policy.retry = _Picky(policy.retry)
        return method

    classes = (
        interfaces.S3Interface,
        interfaces.GoogleCloudStorageInterface,
        connectionpools.S3ConnectionPool,
        connectionpools.GCloudBucketPool,
    )
    for kind in classes:
        for method in vars(kind).values():
            if hasattr(method, "retry"):
                mend(method)
    retry = interfaces.retry  # of functions inside of methods, made at each call
    interfaces.retry = lambda function: mend(retry(function))


def _mend_checks() -> None:
    """Let no object be compared with an ETag that is not made of its content.

    The checksums that botocore compares are made of it in any case.
    """
    from cloudfiles.connectionpools import S3ConnectionPool

    connect = S3ConnectionPool._create_connection  # noqa: SLF001

    @wraps(connect)
    def connect_and_mend(pool: Any, *args: Any, **kwargs: Any) -> Any:
        client = connect(pool, *args, **kwargs)
        client.meta.events.register("after-call.s3.GetObject", _without_foreign_etag)
        return client

    S3ConnectionPool._create_connection = connect_and_mend  # noqa: SLF001


def _without_foreign_etag(parsed: dict[str, Any], **_: Any) -> None:
    """Take the ETag out of an answer for an object that keys of KMS, or a client's, encrypt."""
    own = parsed.get("ServerSideEncryption", _OWN_KEYS) == _OWN_KEYS
    if not own or "SSECustomerAlgorithm" in parsed:
        parsed.pop("ETag", None)
