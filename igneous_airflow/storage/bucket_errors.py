"""What goes wrong with buckets: which errors may pass, and what to do about those that do not.

Used by `bucket.py`. The storage libraries have many kinds of errors for the same few causes; they
are told apart by the service's code, the HTTP status, or the name of the class.
"""

from typing import Any

from igneous_airflow.errors import (
    AccessDenied,
    InvalidParameter,
    PermanentError,
    StorageUnavailable,
)

_DENIED = frozenset(
    {
        "401", "403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden",
        "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch",
        "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed",
        "UnrecognizedClientException", "NotSignedUp",
    }
)  # fmt: skip
_NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
        "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
        "DefaultCredentialsError", "RefreshError", "InvalidOperation", "AuthorizationError",
        "Unauthorized", "Forbidden",
    }
)  # fmt: skip
_OUT_OF_RANGE = frozenset({"416", "InvalidRange"})
_NO_BUCKET = frozenset({"NoSuchBucket", "InvalidBucketName", "PermanentRedirect"})

#: What the services call the permission for what a folder does.
_PERMISSIONS = {
    "s3": {
        "read": "s3:GetObject",
        "look for": "s3:GetObject",
        "write": "s3:PutObject and s3:PutObjectAcl",
        "delete": "s3:DeleteObject",
        "list": "s3:ListBucket",
    },
    "gs": {
        "read": "storage.objects.get",
        "look for": "storage.objects.get",
        "write": "storage.objects.create and storage.objects.delete",
        "delete": "storage.objects.delete",
        "list": "storage.objects.list",
    },
}


def explain(action: str, place: str, error: Exception) -> PermanentError | StorageUnavailable:
    """Our error for one of a storage library, with the object, the bucket and the way out.

    `action` is one of those that permissions are named for; `place` the address of the object.
    """
    from cloudfiles.paths import extract

    path = extract(place)
    if _is_denied(error):
        permission = _PERMISSIONS.get(path.protocol, {}).get(action)
        grant = f"grant these credentials {permission}" if permission else "check the credentials"
        hint = ""
        if path.protocol == "s3" and action in ("read", "look for"):
            hint = "; without s3:ListBucket, S3 says so of objects that do not exist as well"
        return AccessDenied(
            f"cannot {action} {place}: access denied ({_words(error)}); {grant} on bucket "
            f"{path.bucket}, or renew them if they have expired{hint}"
        )
    if _code(error) in _NO_BUCKET:
        return InvalidParameter(
            f"cannot {action} {place}: there is no bucket {path.bucket} here ({_words(error)}); "
            "make it, or correct the address, the region or the endpoint"
        )
    return StorageUnavailable(f"cannot {action} {place}: {_words(error)}")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _code(error: Exception) -> str:
    """The service's code for an error, or the HTTP status; empty when there is neither."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(response, "status_code", None) or getattr(error, "code", None) or "")


def _is_denied(error: Exception) -> bool:
    code, name = _code(error), type(error).__name__
    # S3 says no more than 400 of expired credentials where its answer has no body
    return code in _DENIED or name in _NO_CREDENTIALS or (code == "400" and name == "ClientError")


def is_out_of_range(error: Exception) -> bool:
    """Whether a file has none of the bytes that were asked for."""
    return _code(error) in _OUT_OF_RANGE


def may_pass(error: BaseException | None) -> bool:
    """Whether it is of use to try again."""
    useless = _NO_BUCKET | _OUT_OF_RANGE
    return isinstance(error, Exception) and not _is_denied(error) and _code(error) not in useless
