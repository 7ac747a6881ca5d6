"""A Kubernetes API server in memory: pods, their logs, jobs, events and nodes, over HTTP.

As much of the API as Airflow's operators, `kubelet.py` and kubectl need. Accounts may do what the
rules of their roles allow, as in a cluster; the account `admin` may do everything. A Job without
`completions` is worked on as Kubernetes does it. The tests of pods load this file by its path.
"""

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from typing import Any
from uuid import uuid4

import aiohttp
from aiohttp import web

Object = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: resource: (API version, kind)
KINDS = {
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
    "nodes": ("v1", "Node"),
    "jobs": ("batch/v1", "Job"),
}
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
NO_NAMESPACE = ""
_TERMINAL = ("Succeeded", "Failed")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Refused(Exception):
    """An answer with a Status object instead of what was asked for."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "reason": reason,
            "message": message,
            "code": code,
        }


def matches_labels(selector: str, labels: dict[str, str]) -> bool:
    """`k=v`, `k==v`, `k!=v`, `k` and `!k`, with commas between."""
    for part in filter(None, (part.strip() for part in selector.split(","))):
        key, unequal, value = part.partition("!=")
        if unequal:
            fits = labels.get(key) != value
        elif "=" in part:
            key, _, value = part.partition("=")
            fits = labels.get(key) == value.removeprefix("=")
        elif part.startswith("!"):
            fits = part[1:] not in labels
        else:
            fits = part in labels
        if not fits:
            return False
    return True


def matches_fields(selector: str, found: Object) -> bool:
    """`path.to.field=value`, with commas between."""
    for part in filter(None, selector.split(",")):
        path, _, value = part.partition("=")
        at: Any = found
        for name in path.split("."):
            at = at.get(name, "") if isinstance(at, dict) else ""
        if str(at) != value:
            return False
    return True


def merge(into: Object, patch: Object) -> None:
    """A JSON merge patch; of strategic merge patches, those that touch no lists."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


class Store:
    """Objects by resource, namespace and name, and who watches them."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._version = 1
        self._watchers: list[tuple[str, str, asyncio.Queue[Object]]] = []

    @property
    def version(self) -> str:
        return str(self._version)

    def find(self, resource: str, namespace: str, name: str) -> Object:
        try:
            return self._objects[resource, namespace, name]
        except KeyError:
            raise Refused(404, "NotFound", f'{resource} "{name}" not found') from None

    def all(self, resource: str, namespace: str = NO_NAMESPACE) -> list[Object]:
        return [
            found
            for (kind, where, _), found in self._objects.items()
            if kind == resource and namespace in (NO_NAMESPACE, where)
        ]

    def create(self, resource: str, namespace: str, new: Object) -> Object:
        metadata = new.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = metadata.pop("generateName") + uuid4().hex[:5]
        key = (resource, namespace, metadata["name"])
        if key in self._objects:
            raise Refused(409, "AlreadyExists", f'{resource} "{metadata["name"]}" already exists')
        metadata.update(namespace=namespace, uid=str(uuid4()), creationTimestamp=now())
        new["apiVersion"], new["kind"] = KINDS[resource]
        self._objects[key] = new
        self.changed(resource, new, "ADDED")
        return new

    def remove(self, resource: str, gone: Object) -> None:
        metadata = gone["metadata"]
        if self._objects.pop((resource, metadata["namespace"], metadata["name"]), None):
            self.changed(resource, gone, "DELETED")

    def changed(self, resource: str, what: Object, how: str = "MODIFIED") -> None:
        self._version += 1
        what["metadata"]["resourceVersion"] = self.version
        for kind, namespace, queue in self._watchers:
            if kind == resource and namespace in (NO_NAMESPACE, what["metadata"]["namespace"]):
                queue.put_nowait({"type": how, "object": copy.deepcopy(what)})

    @contextmanager
    def watch(self, resource: str, namespace: str) -> Iterator[asyncio.Queue[Object]]:
        queue: asyncio.Queue[Object] = asyncio.Queue()
        watcher = (resource, namespace, queue)
        self._watchers.append(watcher)
        try:
            yield queue
        finally:
            self._watchers.remove(watcher)


class Jobs:
    """The controller of Jobs that are work queues: pods are alike, one success is enough."""

    def __init__(self, store: Store, delete_pod: Callable[[Object, float], None]) -> None:
        self._store = store
        self._delete_pod = delete_pod

    def pods(self, job: Object) -> list[Object]:
        uid = job["metadata"]["uid"]
        pods = self._store.all("pods", job["metadata"]["namespace"])
        return [pod for pod in pods if pod["metadata"]["labels"].get("controller-uid") == uid]

    def look(self) -> None:
        """Start, count and end what is to be."""
        for job in self._store.all("jobs"):
            if not job["status"].get("conditions"):
                self._look_at(job)

    def _look_at(self, job: Object) -> None:
        pods = self.pods(job)
        active = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        ended = Counter(pod["status"]["phase"] for pod in pods)
        status = {
            "active": sum("deletionTimestamp" not in pod["metadata"] for pod in active),
            "succeeded": ended["Succeeded"],
            "failed": ended["Failed"],
        }
        spec, end = job["spec"], ""
        if status["failed"] > spec.get("backoffLimit", 6):
            end = "Failed"
            for pod in active:
                self._delete_pod(pod, 0)
        elif status["succeeded"] and not status["active"]:
            end = "Complete"
        elif not status["succeeded"]:
            for _ in range(spec["parallelism"] - status["active"]):
                self._start_pod(job)
                status["active"] += 1
        if end:
            status |= {"conditions": [{"type": end, "status": "True", "lastTransitionTime": now()}]}
        if status != job["status"]:
            job["status"] = status
            self._store.changed("jobs", job)

    def _start_pod(self, job: Object) -> None:
        pod = copy.deepcopy(job["spec"]["template"])
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        metadata = pod.setdefault("metadata", {})
        metadata.pop("name", None)
        metadata["generateName"] = f"{name}-"
        metadata["labels"] = {
            **metadata.get("labels", {}),
            "job-name": name,
            "controller-uid": uid,
        }
        pod["status"] = {"phase": "Pending"}
        self._store.create("pods", job["metadata"]["namespace"], pod)


class ApiServer:
    """Answers as a cluster's API server does; runs in a thread of its own.

    `accounts` are by token: the rules of the role that the account has in the namespace, or None
    for every right everywhere.
    """

    def __init__(self, accounts: dict[str, list[Object] | None], namespace: str) -> None:
        self._namespace = namespace
        self._accounts = accounts
        self._store = Store()
        self._jobs = Jobs(self._store, self._delete_pod)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> str:
        """Listen on a free port of this machine and return the address."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/version", self._version)
        for root in ("/api/v1", "/apis/batch/v1"):
            for place in ("", "/namespaces/{namespace}"):
                app.router.add_route("*", f"{root}{place}/{{resource}}", self._collection)
                item = f"{root}{place}/{{resource}}/{{name}}"
                app.router.add_route("*", item, self._item)
                app.router.add_route("*", f"{item}/{{sub}}", self._item)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}"

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._authorize(request)
            return await handler(request)
        except Refused as refused:
            return web.json_response(refused.body, status=refused.code)

    def _authorize(self, request: web.Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self._accounts:
            raise Refused(401, "Unauthorized", "Unauthorized")
        rules, place = self._accounts[token], request.match_info
        resource, verb = place.get("resource", ""), VERBS[request.method]
        if place.get("sub"):
            resource += f"/{place['sub']}"
        if verb == "get" and "name" not in place:
            verb = "watch" if request.query.get("watch") else "list"
        group = "batch" if request.path.startswith("/apis/batch/") else ""
        allowed = rules is None or any(
            group in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in rules
            if place.get("namespace") == self._namespace
        )
        if not allowed:
            raise Refused(
                403,
                "Forbidden",
                f'{resource} is forbidden: User "{token}" cannot {verb} resource "{resource}" in '
                f'API group "{group}" in the namespace "{place.get("namespace", "")}"',
            )

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        resource = request.match_info["resource"]
        namespace = request.match_info.get("namespace", NO_NAMESPACE)
        if resource not in KINDS:
            raise Refused(404, "NotFound", f"there is no resource {resource}")
        if request.method == "POST":
            new = await request.json()
            if resource == "pods":
                new["status"] = {"phase": "Pending"}
                new["metadata"].setdefault("labels", {})
            elif resource == "jobs":
                new["status"] = {}
                if "completions" in new["spec"]:
                    raise Refused(422, "Invalid", "only Jobs without completions are known here")
            created = copy.deepcopy(self._store.create(resource, namespace, new))
            self._jobs.look()
            return web.json_response(created, status=201)
        if request.query.get("watch"):
            return await self._watch(request, resource, namespace)
        version, kind = KINDS[resource]
        items = [found for found in self._store.all(resource, namespace) if _chosen(request, found)]
        metadata = {"resourceVersion": self._store.version}
        body = {"apiVersion": version, "kind": f"{kind}List", "metadata": metadata, "items": items}
        return web.json_response(body)

    async def _watch(
        self, request: web.Request, resource: str, namespace: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        loop = asyncio.get_running_loop()
        end = loop.time() + float(request.query.get("timeoutSeconds", 60))
        with self._store.watch(resource, namespace) as events:
            await response.prepare(request)
            if request.query.get("resourceVersion", "0") == "0":
                for found in self._store.all(resource, namespace):
                    events.put_nowait({"type": "ADDED", "object": found})
            while (left := end - loop.time()) > 0:
                try:
                    event = await asyncio.wait_for(events.get(), left)
                except TimeoutError:
                    break
                if _chosen(request, event["object"]):
                    await response.write(json.dumps(event).encode() + b"\n")
        return response

    async def _item(self, request: web.Request) -> web.StreamResponse:
        place = request.match_info
        resource, sub = place["resource"], place.get("sub", "")
        found = self._store.find(resource, place.get("namespace", NO_NAMESPACE), place["name"])
        if sub == "log":
            return await self._log(request, found)
        if request.method == "POST" and sub == "binding":
            found["spec"]["nodeName"] = (await request.json())["target"]["name"]
            self._store.changed(resource, found)
        elif request.method == "POST" and sub == "eviction":
            disruption = {"type": "DisruptionTarget", "status": "True"}
            found["status"].setdefault("conditions", []).append(disruption)
            self._delete_pod(found, found["spec"].get("terminationGracePeriodSeconds", 30))
        elif request.method == "PATCH":
            merge(found, await request.json())
            self._store.changed(resource, found)
        elif request.method == "DELETE":
            await self._delete(request, resource, found)
        self._jobs.look()
        return web.json_response(found)

    async def _delete(self, request: web.Request, resource: str, found: Object) -> None:
        options = {**request.query, **(await request.json() if request.can_read_body else {})}
        if resource == "pods":
            default = found["spec"].get("terminationGracePeriodSeconds", 30)
            seconds = options.get("gracePeriodSeconds")
            self._delete_pod(found, float(default if seconds is None else seconds))
            return
        self._store.remove(resource, found)
        if resource == "jobs" and options.get("propagationPolicy") != "Orphan":
            for pod in self._jobs.pods(found):
                self._delete_pod(pod, pod["spec"].get("terminationGracePeriodSeconds", 30))

    def _delete_pod(self, pod: Object, seconds: float) -> None:
        """Remove a pod at once when nothing of it runs; else ask its kubelet, which removes it."""
        runs = "nodeName" in pod["spec"] and pod["status"]["phase"] not in _TERMINAL
        if seconds and runs:
            pod["metadata"].update(deletionTimestamp=now(), deletionGracePeriodSeconds=seconds)
            self._store.changed("pods", pod)
        else:
            self._store.remove("pods", pod)

    async def _log(self, request: web.Request, pod: Object) -> web.StreamResponse:
        """Pass on what the pod's kubelet says."""
        container = request.query.get("container") or pod["spec"]["containers"][0]["name"]
        metadata = pod["metadata"]
        if "nodeName" not in pod["spec"]:
            raise Refused(400, "BadRequest", f'container "{container}" is waiting to start')
        node = self._store.find("nodes", NO_NAMESPACE, pod["spec"]["nodeName"])
        port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
        url = (
            f"http://127.0.0.1:{port}/containerLogs/"
            f"{metadata['namespace']}/{metadata['name']}/{container}"
        )
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, params=request.query) as log,
        ):
            if log.status != 200:
                raise Refused(log.status, "BadRequest", await log.text())
            await response.prepare(request)
            async for chunk in log.content.iter_any():
                await response.write(chunk)
        return response


def _chosen(request: web.Request, found: Object) -> bool:
    labels = found["metadata"].get("labels", {})
    return matches_labels(request.query.get("labelSelector", ""), labels) and matches_fields(
        request.query.get("fieldSelector", ""), found
    )
