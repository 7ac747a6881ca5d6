"""The node of a test cluster: runs the containers of pods as processes, or by podman or docker.

It speaks to any API server, the one of `api_server.py` or a real one: binds pods to itself, runs
them, tells their status, serves their logs, and ends them when they are deleted. The tests of pods
load this file by its path.
"""

import asyncio
import json
import os
import signal
import ssl
import subprocess
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
from aiohttp import web

Object = dict[str, Any]

NODE = "this-machine"
_PATCH = {"Content-Type": "application/merge-patch+json"}
_KILLED = 128


def now(timespec: str = "seconds") -> str:
    return datetime.now(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


class Kubelet:
    """Runs in a thread of its own.

    `images` gives the command of an image's entry point; `environment` is that of all containers.
    With `engine`, images are run by it instead.
    """

    def __init__(
        self,
        server: str,
        token: str,
        folder: Path,
        *,
        images: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        engine: str = "",
        certificate: Sequence[str] | None = None,
    ) -> None:
        self._server = server
        self._token = token
        self._folder = folder
        self._images = images
        self._environment = environment
        self._engine = engine
        self._certificate = certificate
        self._pods: dict[str, asyncio.Task[None]] = {}  # by uid
        self._processes: dict[str, Process] = {}
        self._over: set[Path] = set()  # logs that nothing is written to any more
        self._deleted: set[str] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def kill(self, pod: Object) -> None:
        """Let a pod's container die as for want of memory."""
        if self._engine:
            subprocess.run([self._engine, "kill", pod["metadata"]["name"]], check=True)
        else:
            os.killpg(self._processes[pod["metadata"]["uid"]].pid, signal.SIGKILL)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._token}"},
            connector=aiohttp.TCPConnector(ssl=False),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._log)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        secure = None
        if self._certificate:
            secure = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            secure.load_cert_chain(*self._certificate)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=secure).start()
        await self._register(self._runner.addresses[0][1])
        self._spawn(self._watch())

    async def _stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._runner.cleanup()
        await self._session.close()
        await asyncio.sleep(0.25)  # encrypted connections say goodbye in their own time

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _call(self, method: str, path: str, body: Object | None = None) -> Object | None:
        """Call the API; None when what is meant is gone."""
        headers = _PATCH if method == "PATCH" else {}
        async with self._session.request(
            method, f"{self._server}{path}", json=body, headers=headers
        ) as answer:
            if answer.status in (404, 409):
                return None
            answer.raise_for_status()
            found: Object = await answer.json()
            return found

    async def _register(self, port: int) -> None:
        status = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{"type": "Ready", "status": "True"}],
            "capacity": {"cpu": "64", "memory": "64Gi", "pods": "500"},
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await self._call("DELETE", f"/api/v1/nodes/{NODE}")
        await self._call("POST", "/api/v1/nodes", {**node, "status": status})
        await self._call("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})

    async def _watch(self) -> None:
        while True:
            with suppress(aiohttp.ClientError):
                url = f"{self._server}/api/v1/pods?watch=1&resourceVersion=0&timeoutSeconds=300"
                async with self._session.get(url) as events:
                    async for line in events.content:
                        event = json.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            self._see(event["object"])
            await asyncio.sleep(0.1)

    def _see(self, pod: Object) -> None:
        uid, metadata = pod["metadata"]["uid"], pod["metadata"]
        if "deletionTimestamp" in metadata:
            if uid not in self._deleted:
                self._deleted.add(uid)
                self._spawn(self._end(pod, metadata["deletionGracePeriodSeconds"]))
        elif uid not in self._pods and pod["status"]["phase"] == "Pending":
            self._pods[uid] = self._spawn(self._run(pod))

    async def _end(self, pod: Object, seconds: float) -> None:
        uid, path = pod["metadata"]["uid"], _path(pod)
        process = self._processes.get(uid)
        if process is not None and process.returncode is None:
            await self._event(pod, "Killing", "Stopping container")
            process.send_signal(signal.SIGTERM)  # to the first process only, as engines do
            with suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), seconds)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if uid in self._pods:
            await asyncio.wait({self._pods[uid]})
        await self._call("DELETE", f"{path}?gracePeriodSeconds=0")

    async def _run(self, pod: Object) -> None:
        """The life of a pod's only container."""
        (container,) = pod["spec"]["containers"]
        metadata, path = pod["metadata"], _path(pod)
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": metadata["name"]},
            "target": {"kind": "Node", "name": NODE},
        }
        if "nodeName" not in pod["spec"]:
            await self._call("POST", f"{path}/binding", binding)
        await self._event(pod, "Scheduled", f"Assigned to {NODE}")
        command = self._command(pod, container)
        if command is None:
            reason = f'Failed to pull image "{container["image"]}": not found'
            waiting = {"waiting": {"reason": "ErrImagePull", "message": reason}}
            await self._event(pod, "Failed", reason, "Warning")
            await self._tell(pod, "Pending", waiting)
            return
        log = self._log_file(metadata["namespace"], metadata["name"])
        with log.open("wb", buffering=0) as lines:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=self._environment_of(container),
                stdout=PIPE,
                stderr=STDOUT,
                start_new_session=True,
                limit=2**20,
            )
            self._processes[metadata["uid"]] = process
            started = now()
            await self._event(pod, "Started", f"Started container {container['name']}")
            await self._tell(pod, "Running", {"running": {"startedAt": started}})
            if process.stdout is None:
                raise RuntimeError("no pipe")
            async for line in process.stdout:
                lines.write(f"{now('microseconds')} ".encode() + line.rstrip(b"\n") + b"\n")
        code = await process.wait()
        self._over.add(log)
        code = _KILLED - code if code < 0 else code
        reason = "Completed" if code == 0 else "Error"
        terminated = {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now()}
        await self._tell(pod, "Failed" if code else "Succeeded", {"terminated": terminated})

    def _command(self, pod: Object, container: Object) -> list[str] | None:
        """How to run a container; None when there is no such image."""
        arguments = container.get("args", [])
        if container["image"] not in self._images:
            return None
        if not self._engine:
            return [*self._images[container["image"]], *arguments]
        context = container.get("securityContext", {})
        options = ["--rm", "--network=host", f"--name={pod['metadata']['name']}"]
        if self._engine == "podman":
            options.append("--no-healthcheck")
        if context.get("readOnlyRootFilesystem"):
            options.append("--read-only")
        if context.get("allowPrivilegeEscalation") is False:
            options.append("--security-opt=no-new-privileges")
        dropped = context.get("capabilities", {}).get("drop", [])
        options += [f"--cap-drop={name}" for name in dropped]
        user = pod["spec"].get("securityContext", {})
        if "runAsUser" in user:
            options.append(f"--user={user['runAsUser']}:{user.get('runAsGroup', 0)}")
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            volume = volumes[mount["name"]]
            if "emptyDir" in volume:
                options.append(f"--tmpfs={mount['mountPath']}:mode=1777")
            elif "hostPath" in volume:
                options.append(f"--volume={volume['hostPath']['path']}:{mount['mountPath']}")
        options += [f"--env={e['name']}={e['value']}" for e in container.get("env", [])]
        return [self._engine, "run", *options, container["image"], *arguments]

    def _environment_of(self, container: Object) -> dict[str, str]:
        if self._engine:
            return dict(os.environ)  # the engine's own
        given = {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}
        return {**self._environment, **given}

    async def _tell(self, pod: Object, phase: str, state: Object) -> None:
        (container,) = pod["spec"]["containers"]
        running = "running" in state
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": state,
        }
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
        told = {"phase": phase, "conditions": [scheduled], "containerStatuses": [status]}
        await self._call("PATCH", f"{_path(pod)}/status", {"status": told})

    async def _event(self, pod: Object, reason: str, message: str, kind: str = "Normal") -> None:
        metadata = pod["metadata"]
        involved = {key: metadata[key] for key in ("name", "namespace", "uid")}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}."},
            "involvedObject": {"kind": "Pod", "apiVersion": "v1", **involved},
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
            "source": {"component": "kubelet"},
        }
        await self._call("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", event)

    def _log_file(self, namespace: str, pod: str) -> Path:
        return self._folder / f"{namespace}_{pod}.log"

    async def _log(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        path = self._log_file(namespace, name)
        if not path.exists():
            return web.Response(status=400, text="the container is waiting to start")
        query = request.query
        follow, stamped = (query.get(key, "").lower() == "true" for key in ("follow", "timestamps"))
        since = ""
        if "sinceSeconds" in query:
            earlier = datetime.now(UTC) - timedelta(seconds=int(query["sinceSeconds"]))
            since = earlier.isoformat()[:19]
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        with path.open("rb") as lines:
            ended = False
            while True:
                some = lines.readlines()
                if "tailLines" in query:
                    some = some[-int(query["tailLines"]) :]
                for line in some:
                    stamp, _, words = line.partition(b" ")
                    if stamp.decode()[:19] >= since:
                        await response.write(line if stamped else words)
                if not follow or ended:
                    return response
                ended = path in self._over
                await asyncio.sleep(0.1)


def _path(pod: Object) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
