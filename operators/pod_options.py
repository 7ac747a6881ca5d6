"""Where workers are, and what their pods are like: a part of every form; used by `params.py`."""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field

from igneous_airflow.fields import PODS, RUN, section
from igneous_airflow.validation import WithoutCredentials

_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"  # of things in Kubernetes

Toleration = dict[str, str | int]


def _checked(tolerations: list[Toleration]) -> list[Toleration]:
    for toleration in tolerations:
        for name, value in toleration.items():
            if isinstance(value, int) != (name == "tolerationSeconds"):
                kind = "a text" if isinstance(value, int) else "a number"
                raise ValueError(f"{name} must be {kind}; got {value!r}")
    return tolerations


class PodOptions(WithoutCredentials):
    """The parameters that matter to pods only, and the one that says whether there are any."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    run_on: Annotated[
        Literal["local", "kubernetes"] | None,
        Field(
            title="Run on",
            description="Where workers run: on the machine of the Airflow task, or as pods in a "
            "Kubernetes cluster; empty: as this Airflow is configured.",
            json_schema_extra=section(RUN),
        ),
    ] = None
    pod_cpus: Annotated[
        float,
        Field(
            ge=0.1,
            le=256,
            title="CPUs of a pod",
            description="CPUs that a pod asks for; it works with one process for each whole one.",
            json_schema_extra=section(PODS),
        ),
    ] = 1
    pod_memory: Annotated[
        float | None,
        Field(
            ge=0.1,
            title="Memory of a pod",
            description="GB of memory that a pod gets, and no more; empty: what the plan needs.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    worker_image: Annotated[
        str | None,
        Field(
            pattern=r"^[!-~]+$",
            title="Image",
            description="Worker image: one of those that Airflow's configuration lists. Empty: the "
            "usual one.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    namespace: Annotated[
        str | None,
        Field(
            pattern=_NAME,
            title="Namespace",
            description="Namespace of the pods: one of those that Airflow's configuration lists. "
            "Empty: the usual one.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    service_account: Annotated[
        str | None,
        Field(
            pattern=_NAME,
            title="Service account",
            description="Service account of the pods: one of those that Airflow's configuration "
            "lists. Empty: that of the pod template.",
            json_schema_extra=section(PODS),
        ),
    ] = None
    node_selector: Annotated[
        dict[str, str],
        Field(
            title="Node selector",
            description='Labels of the nodes that may run the pods, as {"pool": "spot"}.',
            json_schema_extra=section(PODS),
        ),
    ] = {}
    tolerations: Annotated[
        list[Toleration],
        AfterValidator(_checked),
        Field(
            title="Tolerations",
            description="Taints of nodes that the pods bear, as "
            '[{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}].',
            json_schema_extra=section(PODS),
        ),
    ] = []

    @property
    def processes(self) -> int:
        """Worker processes of a pod."""
        return max(1, int(self.pod_cpus))
