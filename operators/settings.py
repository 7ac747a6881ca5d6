"""Where runs, their queues and workers live, by Airflow's configuration and the DAG run's identity.

Used by the operators, the sensor and the trigger.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, Self

from airflow.sdk import conf

from igneous_airflow.credentials import hide_credentials, refuse_credentials
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.pod_options import PodOptions
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.queue.sqs_address import Address
from igneous_airflow.run import Run
from igneous_airflow.run_record import run_folder_name
from igneous_airflow.storage.allowed import Allowed

_FILE = "file://"
_NAMED_QUEUE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_. -]*?)\s*=\s*((?:sqs|sqlite|https?)\b.*)")
_TEMPLATE = Path(__file__).parent.parent / "worker_image" / "pod_template.yaml"


def run_url(dag_id: str, run_id: str, group_id: str) -> str:
    """The folder of a stage's run: the same whenever a task of this DAG run asks, or is cleared."""
    return f"{runs_url()}/{run_folder_name(dag_id, run_id, group_id)}"


def load_run(url: str) -> Run:
    """Load a run whose queue is opened with Airflow's credentials; raises RunNotFound."""
    return with_credentials(Run.load(url))


def with_credentials(run: Run) -> Run:
    """The run with a queue that is opened with the credentials of `[igneous] aws_conn_id`."""
    if not is_on_sqs(run.queue):
        return run
    from igneous_airflow.operators.aws import client_maker

    return run.opening_queues(partial(open_queue, make_client=client_maker(aws_conn_id())))


def aws_conn_id() -> str:
    """The option `[igneous] aws_conn_id`."""
    return str(conf.get("igneous", "aws_conn_id"))


def is_on_sqs(queue: str) -> bool:
    """Whether the address is one of SQS."""
    return queue.startswith(("sqs://", "https://", "http://"))


def allowed() -> Allowed:
    """The option `[igneous] allowed`, beside the deployment's own folders.

    Raises AccessDenied, and InvalidParameter for `[igneous] runs`, when they are not understood.
    """
    from airflow.configuration import AIRFLOW_HOME

    own = (runs_url(), f"{_FILE}{Path(AIRFLOW_HOME).absolute()}")
    return _parsed(str(conf.get("igneous", "allowed")), own)


@lru_cache(4)
def _parsed(text: str, own: tuple[str, ...]) -> Allowed:
    """What the option says; folders are opened by the thousand."""
    return Allowed.parse(text, "[igneous] allowed", own)


def queue_names() -> list[str]:
    """The queues that forms can choose from, the usual one first; raises InvalidParameter."""
    return list(_queues())


def _queues() -> dict[str, str]:
    """What `[igneous] queue` and `queues` say, by the names that forms show."""
    usual = str(conf.get("igneous", "queue"))
    queues: dict[str, str] = {}
    for entry in (usual, *_listed("queues")):
        named = _NAMED_QUEUE.fullmatch(entry)
        name, address = (named[1], named[2]) if named else (entry, entry)
        refuse_credentials(address)
        if queues.setdefault(name, address) != address:
            raise InvalidParameter(
                f"[igneous] queues in Airflow's configuration names two queues {name}"
            )
    return queues


def _listed(option: str) -> list[str]:
    """The entries of an option of `[igneous]` that is a list, separated by commas or lines."""
    entries = re.split(r"[,\n]", str(conf.get("igneous", option)))
    return [entry.strip() for entry in entries if entry.strip()]


def queue_url(run: str, asked: str | None = None) -> tuple[str, bool]:
    """The queue of a run, and whether it is the run's own, to be made and removed with it.

    `asked` is the name of a queue of the deployment, by default that of `[igneous] queue`: it
    stands for `sqlite`, `sqs` with options like `?region=eu-west-1`, or the address of a queue that
    is there. Raises InvalidParameter.
    """
    queues = _queues()
    if asked and asked not in queues:
        raise InvalidParameter(
            f"queue: {hide_credentials(asked)!r} is not a queue of this Airflow: choose from "
            f"{', '.join(queues)}, or ask the administrator to add it to [igneous] queues"
        )
    text = queues[asked] if asked else next(iter(queues.values()))
    kind, _, options = text.partition("?")
    if text == "sqlite":
        return _embedded(run), True
    if kind == "sqs":
        wanted = Address.parse(f"sqs://any?{options}")
        return _completed(Address.of_run(run.rpartition("/")[2], wanted.region, wanted.endpoint))
    if is_on_sqs(text):
        return _completed(_existing(text))
    if not text.startswith("sqlite://"):
        raise InvalidParameter(
            f"queue: {text!r} is no queue that workers can share: write sqlite, sqs, or the "
            "address of a queue that is there, such as sqs://NAME"
        )
    open_queue(text)  # refuses an address without a path
    return text, False


def _existing(text: str) -> Address:
    """The address of a queue that is somebody else's, whatever it says of that."""
    if "create=" not in text:
        text += f"{'&' if '?' in text else '?'}create=false"
    return replace(Address.parse(text), create=False)


def _completed(address: Address) -> tuple[str, bool]:
    from igneous_airflow.operators.aws import completed

    url = completed(address, aws_conn_id()).url
    open_queue(url)  # refuses an endpoint with credentials
    return url, address.create


def _embedded(run: str) -> str:
    """The embedded queue of a run: in the run's folder, or with Airflow when that is a bucket."""
    if run.startswith(_FILE):
        return f"sqlite://{run.removeprefix(_FILE)}/queue.db"
    from airflow.configuration import AIRFLOW_HOME

    name = run.rpartition("/")[2]
    return f"sqlite://{Path(AIRFLOW_HOME).absolute()}/igneous/queues/{name}.db"


def workers_run_on() -> Literal["local", "kubernetes"]:
    """The option `[igneous] workers`; raises InvalidParameter when it is no such place."""
    text: str = conf.get("igneous", "workers")
    if text == "local":
        return "local"
    if text == "kubernetes":
        return "kubernetes"
    raise InvalidParameter(
        f"[igneous] workers = {text!r} in Airflow's configuration: write local or kubernetes"
    )


def syncs_files() -> bool:
    """The option `[igneous] sync`."""
    return bool(conf.getboolean("igneous", "sync"))


#: The options of `[igneous]` with what a form may choose in a field of PodOptions.
_POD_CHOICES = {
    "worker_image": "images",
    "namespace": "namespaces",
    "service_account": "service_accounts",
}


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What Airflow's configuration says of worker pods.

    `offered` is what forms may choose from, by field: an image or an account decides what the code
    and the rights of a pod are, so that no form takes any other.
    """

    image: str
    namespace: str
    template: Path
    connection: str
    deferrable: bool
    offered: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls) -> Self:
        """The options of `[igneous]` that concern pods."""
        image, namespace = (conf.get("igneous", name) for name in ("worker_image", "namespace"))
        offered = {field: _listed(option) for field, option in _POD_CHOICES.items()}
        offered["worker_image"].insert(0, image)
        offered["namespace"].insert(0, namespace)
        return cls(
            image=image,
            namespace=namespace,
            template=Path(conf.get("igneous", "pod_template") or _TEMPLATE),
            connection=conf.get("igneous", "kubernetes_conn_id"),
            deferrable=conf.getboolean("igneous", "deferrable"),
            offered={field: tuple(dict.fromkeys(names)) for field, names in offered.items()},
        )

    def require_offered(self, options: PodOptions) -> None:
        """Raise InvalidParameter when a form asks for an image or account that is not offered."""
        for field, names in self.offered.items():
            asked = getattr(options, field)
            if asked is not None and asked not in names:
                choice = f"choose from {', '.join(names)}" if names else "leave it empty"
                raise InvalidParameter(
                    f"{field}: {asked!r} is not offered by this Airflow: {choice}, or ask the "
                    f"administrator to add it to [igneous] {_POD_CHOICES[field]}"
                )


def runs_url() -> str:
    """The option `[igneous] runs`; raises InvalidParameter when it is no address."""
    text: str = conf.get("igneous", "runs")
    if "://" in text:
        return text.rstrip("/")
    if not Path(text).is_absolute():
        raise InvalidParameter(
            f"[igneous] runs = {text!r} in Airflow's configuration is not an address: write a "
            "bucket URL or an absolute path"
        )
    return f"{_FILE}{text.rstrip('/')}"
