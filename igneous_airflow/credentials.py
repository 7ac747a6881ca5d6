"""Credentials that people write into addresses: found, refused, and never shown again.

Logs, records of runs and answers of the API are read by people who must not see them. Used wherever
an address enters, and wherever a wrong value is put into words.
"""

import re
from collections.abc import Mapping
from urllib.parse import unquote

from igneous_airflow.errors import InvalidParameter

#: Characters of an address that are looked at: longer ones are refused where they enter.
LONGEST = 4096
_DECODINGS = 8
_PARAMETER = (
    r"(?:[\w.~-]{0,40}(?:key|secret|signature|token|passw|passphrase|pwd|credential|auth)"
    r"[\w.~-]{0,40}|sig|sas)"
)
#: Matches an address that holds credentials, and hardly any other; for `re.search`, in linear time.
CREDENTIALS = (
    # s3://KEY:SECRET@bucket, https://user@host
    r"://[^/?#\s]*@"
    # s3://KEY:SEC/RET@bucket: what follows the colon is not a port
    r"|://(?!\[)[^/\s:@?#]*:(?!\d{0,5}(?:[/?#&]|$))"
    # without a scheme, as KEY:SECRET@bucket
    r"|^\s*[^/\s:@]+:(?!//)[^@]*@"
    # ?X-Amz-Signature=..., &token=...
    rf"|[?&#;](?i:{_PARAMETER})="
    # the id of a key of Amazon's
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
)
_FOUND = re.compile(CREDENTIALS)
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]{1,15})://")


def has_credentials(text: str) -> bool:
    """Whether an address holds credentials, percent-encoded ones included."""
    return any(_FOUND.search(form) for form in decoded_forms(text[:LONGEST]))


def decoded_forms(text: str) -> list[str]:
    """The text, and what percent-decoding makes of it, again and again, while anything changes.

    Ends with one that is still encoded when it was encoded more often than addresses ever are.
    """
    forms = [text]
    while len(forms) <= _DECODINGS and (decoded := unquote(forms[-1])) != forms[-1]:
        forms.append(decoded)
    return forms


def hide_credentials(text: str) -> str:
    """The text itself when it holds no credentials, else only how it begins, as `s3://...`."""
    if not has_credentials(text):
        return text
    scheme = _SCHEME.match(text)
    return f"{scheme[1]}://..." if scheme else "..."


def refuse_credentials(value: object) -> None:
    """Raise InvalidParameter, without repeating it, when JSON data or an address holds any."""
    if holds_credentials(value):
        shown = hide_credentials(value) if isinstance(value, str) else "a value"
        raise InvalidParameter(
            f"{shown} holds credentials, and an address must not: everyone who sees the run would "
            "see them. Write it without them, and put the keys of a bucket into "
            "~/.cloudvolume/secrets (aws-secret.json, google-secret.json), those of a queue into "
            "an Airflow Connection"
        )


def holds_credentials(value: object) -> bool:
    """Whether any text in JSON data, however deep, holds credentials."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, str) and has_credentials(value):
            return True
        if isinstance(value, Mapping):
            left += (*value.keys(), *value.values())
        elif isinstance(value, list | tuple):
            left += value
    return False
