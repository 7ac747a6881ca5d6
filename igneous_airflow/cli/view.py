"""`igneous-airflow view`: layers in Neuroglancer, served by this machine."""

import socket
from contextlib import suppress

import click

from igneous_airflow.cli.addresses import folder_url
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.storage.layer import Layer

_VIEW = "layers"


@click.command
@click.argument("layer", nargs=-1, required=True)
@click.option("--port", type=click.IntRange(0, 65_535), default=0, help="0: any that is free.")
def view(layer: tuple[str, ...], port: int) -> None:
    """Show layers in Neuroglancer, until stopped with Ctrl-C.

    Give several to see them on top of each other, as an image and its segmentation. They may lie
    on disk or in buckets, private ones included; nobody but this machine can reach the viewer.
    """
    try:
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from igneous_airflow.viewer.app import viewer_app
    except ImportError as error:
        raise InvalidParameter(
            f"the viewer is not installed ({error}): pip install 'igneous-airflow[viewer]'"
        ) from error
    urls = [folder_url(text) for text in layer]
    for url in urls:
        Layer.open(url)  # raises what is wrong with it, before a browser is opened
    views = {_VIEW: {f"{url.rpartition('/')[2]}": url for url in urls}}
    if len(views[_VIEW]) < len(urls):  # two of the same name
        views[_VIEW] = {f"{i}-{url.rpartition('/')[2]}": url for i, url in enumerate(urls, 1)}
    listener = socket.create_server(("127.0.0.1", port))
    click.echo(f"http://127.0.0.1:{listener.getsockname()[1]}/open/{_VIEW}")
    click.echo("Open this address in a browser; stop with Ctrl-C.")
    app = viewer_app(lambda view, _request: views.get(view))
    # a page of a foreign name that leads to this machine would read the layers otherwise
    guarded = TrustedHostMiddleware(app, allowed_hosts=["127.0.0.1", "localhost"])
    # a browser that is still open would keep it from stopping
    config = uvicorn.Config(guarded, log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):  # the way to stop it
        uvicorn.Server(config).run(sockets=[listener])
