"""Imports what warns while it is imported, before warnings become errors."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings(
        "ignore", message="Please install grpcio-status", category=ImportWarning
    )
    import cloudvolume  # noqa: F401
