"""The template of worker pods and what a run fills in; used by `crew.py`, `pods.py` and `jobs.py`.

The template is a file, `worker_image/pod_template.yaml` or one's own. It decides everything that is
not filled in here: security, volumes, secrets, service account.
"""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import yaml

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.arguments import worker_arguments
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.settings import PodSettings
from igneous_airflow.run import Run

_STOPPED = "143"  # what shells use for SIGTERM; Kubernetes takes 0 for the end of the work
#: The name of the container that works, in every template.
CONTAINER = "worker"

_TMP = "/tmp"  # noqa: S108 - the temporary folder in the worker image
_LOCAL = ("file", "sqlite")  # addresses that are a place on the machine
_HAND_BACK_SECONDS = 10  # from the end of a task's grace until its pod would be killed
_DEFAULT_PERIOD = 30  # seconds; Kubernetes' own
_MB = 10**6
_PROCESS_BYTES = 256 * _MB  # interpreter, libraries, and memory that is kept for the next task
_POD_BYTES = 128 * _MB  # the parent of the processes
_MARGIN = 1.25  # on what the plan says


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A pod's manifest with a container called `worker`."""

    path: Path
    manifest: dict[str, Any]

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a template; raises InvalidParameter when it is none."""
        try:
            manifest = yaml.safe_load(path.read_text())
            template = cls(path, manifest)
            template._container(manifest)
        except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
            raise InvalidParameter(
                f"the pod template {path} cannot be used: it must be the YAML of a Pod with a "
                f"container called {CONTAINER} ({type(error).__name__}: {error})"
            ) from error
        return template

    @staticmethod
    def _container(manifest: dict[str, Any]) -> dict[str, Any]:
        containers: list[dict[str, Any]] = manifest["spec"]["containers"]
        return next(container for container in containers if container["name"] == CONTAINER)

    def require_reachable(self, addresses: Iterable[str]) -> None:
        """Raise InvalidParameter for addresses on this machine that no such pod would see."""
        mounts = self._container(self.manifest).get("volumeMounts", [])
        seen = [PurePosixPath(mount["mountPath"]) for mount in mounts if self._is_shared(mount)]
        for address in addresses:
            scheme, _, path = address.partition("://")
            if scheme in _LOCAL and not any(map(PurePosixPath(path).is_relative_to, seen)):
                raise InvalidParameter(
                    f"worker pods cannot reach {address}: use a bucket, and a queue on SQS, or "
                    f"mount its folder at the same place in {self.path}"
                )

    def _is_shared(self, mount: dict[str, Any]) -> bool:
        volumes = self.manifest["spec"].get("volumes", [])
        return any(v["name"] == mount["name"] and "emptyDir" not in v for v in volumes)

    def fill_in(self, run: Run, options: RunOptions, settings: PodSettings) -> dict[str, Any]:
        """The manifest of a pod that works on a run until it is done.

        Raises InvalidParameter for options that the configuration does not offer.
        """
        settings.require_offered(options)
        manifest = copy.deepcopy(self.manifest)
        spec, container = manifest["spec"], self._container(manifest)
        metadata = manifest.setdefault("metadata", {})
        metadata["namespace"] = options.namespace or settings.namespace
        container["image"] = options.worker_image or settings.image
        container["args"] = self._arguments(run, options)
        container["resources"] = _resources(run, options, container.get("resources", {}))
        self._make_room(manifest, run.scratch)
        if options.service_account:
            spec["serviceAccountName"] = options.service_account
        spec["nodeSelector"] = {**spec.get("nodeSelector", {}), **options.node_selector}
        spec["tolerations"] = [*spec.get("tolerations", []), *options.tolerations]
        return manifest

    def _make_room(self, manifest: dict[str, Any], scratch: int) -> None:
        """Let /tmp hold what the run puts there beside what the template allows."""
        from kubernetes.utils.quantity import parse_quantity

        mounts = self._container(manifest).get("volumeMounts", [])
        names = [mount["name"] for mount in mounts if mount["mountPath"] == _TMP]
        for volume in manifest["spec"].get("volumes", []):
            room = volume.get("emptyDir") or {}
            if scratch and volume["name"] in names and "sizeLimit" in room:
                size = math.ceil((parse_quantity(room["sizeLimit"]) + scratch) / _MB)
                room["sizeLimit"] = f"{size}M"

    def _arguments(self, run: Run, options: RunOptions) -> list[str]:
        period = self.manifest["spec"].get("terminationGracePeriodSeconds", _DEFAULT_PERIOD)
        grace = max(period - _HAND_BACK_SECONDS, 0)
        arguments = worker_arguments(run, options, options.processes, grace)
        return [*arguments, "--stopped-code", _STOPPED]


def _resources(
    run: Run, options: RunOptions, given: dict[str, dict[str, str]]
) -> dict[str, dict[str, str]]:
    """Ask for CPUs, and for memory that is the limit as well, so that the node never runs out."""
    if options.pod_memory is None:
        need = _POD_BYTES + options.processes * (_PROCESS_BYTES + _MARGIN * run.memory)
    else:
        need = options.pod_memory * 1e9
    memory = f"{math.ceil(need / _MB)}M"
    return {
        "requests": {**given.get("requests", {}), "cpu": f"{options.pod_cpus:g}", "memory": memory},
        "limits": {**given.get("limits", {}), "memory": memory},
    }
