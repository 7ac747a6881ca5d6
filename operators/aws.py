"""Amazon's queues by an Airflow Connection; used by settings.py, the workers and the trigger.

A Connection's keys go into clients here, and nowhere else but the environment of worker processes
that this machine starts. Nothing is imported from Amazon's provider before a queue is on SQS.
"""

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.protocol import MakeClient
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.queue.sqs_service import client_config

if TYPE_CHECKING:
    from airflow.providers.amazon.aws.hooks.sqs import SqsHook


def client_maker(conn_id: str) -> MakeClient:
    """Makes clients with a Connection's credentials; without the Connection, the environment's."""

    @cache  # Airflow is asked for the Connection once, and says so in the log
    def prepared(address: Address) -> tuple[Any, dict[str, Any]]:
        hook = _hook(conn_id, address)
        return hook.get_session(region_name=address.region), _options(hook, address)

    def make_client(address: Address) -> Any:
        session, options = prepared(address)
        return session.client("sqs", **options)

    return make_client


def make_async_client(conn_id: str, address: Address) -> Any:
    """Make an aiobotocore client, to be entered with `async with`; asks Airflow for secrets."""
    hook = _hook(conn_id, address)
    session = hook.get_session(region_name=address.region, deferrable=True)
    return session.create_client("sqs", **_options(hook, address))


def completed(address: Address, conn_id: str) -> Address:
    """The address with the region and endpoint that the Connection has for SQS.

    Workers elsewhere get nothing but the address, and must find the same queue.
    """
    hook = _hook(conn_id, address)
    return replace(
        address,
        region=address.region or hook.get_session(region_name=None).region_name,
        endpoint=address.endpoint or hook.conn_config.get_service_endpoint_url("sqs"),
    )


def static_keys(conn_id: str) -> dict[str, str]:
    """The Connection's keys as environment variables; empty when they would expire.

    Worker processes live longer than temporary credentials and renew their own by the default
    chain: a role of the machine, for example.
    """
    connection = _hook(conn_id, Address("any")).conn_config
    key, secret = connection.aws_access_key_id, connection.aws_secret_access_key
    if not key or not secret or connection.role_arn or connection.aws_session_token:
        return {}
    return {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret, "AWS_SESSION_TOKEN": ""}


def _hook(conn_id: str, address: Address) -> "SqsHook":
    try:
        from airflow.providers.amazon.aws.hooks.sqs import SqsHook
    except ImportError as error:
        raise InvalidParameter(
            f"a queue on SQS needs Airflow's provider for Amazon ({error}): install "
            "igneous-airflow[aws]"
        ) from error
    return SqsHook(aws_conn_id=conn_id, region_name=address.region)


def _options(hook: "SqsHook", address: Address) -> dict[str, Any]:
    return {
        "region_name": address.region,
        "endpoint_url": address.endpoint,
        "config": client_config(),
        "verify": hook.verify,
    }
