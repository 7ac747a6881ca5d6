"""How the viewer answers where it cannot show something: in plain words, with a fitting status."""

import logging

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from igneous_airflow.errors import (
    AccessDenied,
    CorruptChunk,
    IgneousError,
    LayerNotFound,
    TransientError,
)
from igneous_airflow.viewer.files import TooLarge
from igneous_airflow.viewer.pool import Busy

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5
_STATUS: tuple[tuple[type[IgneousError], int], ...] = (
    (LayerNotFound, 404),
    (CorruptChunk, 502),
    (TooLarge, 413),
)


class NotServed(IgneousError):
    """This user has no view of that name, or the view has no such file."""


async def refuse(request: Request, error: Exception) -> Response:
    """Say why a request cannot be answered.

    What a storage says goes to the log only: it may name more than the layer's address.
    """
    if isinstance(error, AccessDenied):
        _log.warning("%s: %s", request.url.path, error)
        return PlainTextResponse(
            "this layer may not be read here: the storage refuses it, or it is outside of what "
            "[igneous] allowed lists",
            403,
        )
    if isinstance(error, TransientError):
        return _unavailable(request, error)
    if isinstance(error, NotServed):
        return PlainTextResponse(str(error), 404)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 422)
    return PlainTextResponse(str(error), status)


def _unavailable(request: Request, error: TransientError) -> Response:
    words, seconds = "the storage of this layer cannot be read now: try again", _RETRY_SECONDS
    if isinstance(error, Busy):
        words, seconds = str(error), error.retry_after
    else:
        _log.warning("%s: %s", request.url.path, error)
    return PlainTextResponse(words, 503, headers={"Retry-After": str(seconds)})
