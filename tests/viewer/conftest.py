"""The viewer served by a real server, for a test."""

from contextlib import ExitStack

import pytest
from viewer_server import serving


@pytest.fixture
def serve():
    """Serve views until the end of the test; gives a client."""
    with ExitStack() as stack:
        yield lambda views: stack.enter_context(serving(views))
