"""`[igneous] allowed` and `queues` in Airflow: forms, REST, the viewer's page, and workers."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException, ParamValidationError

from igneous_airflow.errors import AccessDenied, IgneousError, InvalidParameter
from igneous_airflow.operators.chain import Chain, Step
from igneous_airflow.operators.form import Form
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.pod_template import PodTemplate
from igneous_airflow.operators.settings import PodSettings, load_run, queue_names, queue_url
from igneous_airflow.operators.stage import EnqueueStage, FinishStage, PlanStage
from igneous_airflow.operators.watch import FindArrivals, WatchedFolder
from igneous_airflow.operators.workers import LocalWorkers
from igneous_airflow.run import Run
from igneous_airflow.stage import fields_of_kind
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage import bucket, local
from igneous_airflow.storage.files import open_folder, open_own_folder

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
STEP = Step(Downsample)
FORM = Form(Chain((STEP,)))
SECRET = "hunter2xyzzy"
RUN = "s3://bucket/runs/dag_run_group-12345678"


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Set `[igneous] allowed`."""
    return lambda text: monkeypatch.setenv("AIRFLOW__IGNEOUS__ALLOWED", str(text))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are opened from now on."""
    seen: list[str] = []
    for kind in (local.LocalFolder, bucket.BucketFolder):

        def noted(self: Any, root: object, init: Any = kind.__init__) -> None:
            seen.append(str(root))
            init(self, root)

        monkeypatch.setattr(kind, "__init__", noted)
    return seen


def plan(context: Any) -> Any:
    return PlanStage(task_id="plan", form=FORM, step=STEP).execute(context)


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def every_address() -> Iterator[tuple[str, str]]:
    for name, stage in registered_stages().items():
        for field in fields_of_kind(stage, "layer", "address", "files"):
            yield name, field


@pytest.mark.parametrize(("stage", "field"), list(every_address()))
def test_a_form_refuses_each_address_outside_with_the_title_of_its_field(
    stage: str, field: str, allow: Make, tmp_path: Path, context: Make, opened: list[str]
) -> None:
    kind = registered_stages()[stage]
    allow(tmp_path / "lab")
    names = fields_of_kind(kind, "layer", "address", "files")
    values = {name: str(tmp_path / "lab" / name) for name in names}
    values[field] = str(tmp_path / "lab-private")
    step = Step(kind)
    task = PlanStage(task_id="plan", form=Form(Chain((step,))), step=step)
    title = kind.model_fields[field].title
    expected = rf"- {field}: '{title}' names file://{tmp_path}/lab-private is outside"
    with pytest.raises(AirflowFailException, match=expected) as caught:
        task.execute(context(**values))
    assert f"[igneous] allowed admits {tmp_path}/lab" in str(caught.value)
    assert opened == []
    assert list(tmp_path.iterdir()) == []


def test_a_chain_refuses_an_address_of_a_late_step_at_its_start(
    allow: Make, tmp_path: Path, opened: list[str], dags: dict[str, DAG]
) -> None:
    allow(tmp_path / "lab")
    (task,) = dags["igneous_contrast"].roots
    assert isinstance(task, PlanStage)
    values = {"layer": str(tmp_path / "lab" / "a"), "dest": str(tmp_path / "b")}
    opened.clear()
    with pytest.raises(AirflowFailException, match=r"- dest: 'Destination' names .* is outside"):
        task.form.read(values)
    assert opened == []


def test_a_dag_run_with_an_address_outside_fails_at_its_plan(
    allow: Make, dags: dict[str, DAG], make_layer: Make, tmp_path: Path
) -> None:
    layer = make_layer()
    before = everything(layer)
    allow(f"{tmp_path}/lab, s3://lab")
    dag_run = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    assert dag_run.state == "failed"
    assert everything(layer) == before
    assert all('"refused"' in f.read_text() for f in tmp_path.glob("state/*/run.json"))


def test_a_run_that_was_allowed_once_is_not_finished_when_it_is_no_more(
    allow: Make, make_layer: Make, context: Make, tmp_path: Path
) -> None:
    layer = make_layer()
    url = plan(context(layer=str(layer), num_mips=1))["run_url"]
    before = everything(layer)
    allow("s3://lab")
    for task in (EnqueueStage(task_id="e", run_url=url), FinishStage(task_id="f", run_url=url)):
        with pytest.raises(AirflowFailException):
            task.execute(context())
    assert everything(layer) == before


@pytest.mark.parametrize("text", ["lab", "s3://lab,,gs://b", "s3+http://host/lab"])
def test_nothing_runs_while_the_setting_cannot_be_understood(
    text: str, allow: Make, make_layer: Make, context: Make, tmp_path: Path
) -> None:
    layer = make_layer()
    allow(text)
    with pytest.raises(AirflowFailException, match="Nothing is read or written until"):
        plan(context(layer=str(layer), num_mips=1))
    with pytest.raises(AccessDenied, match="Nothing is read or written until"):
        open_folder(f"file://{layer}")
    assert all('"refused"' in f.read_text() for f in tmp_path.glob("state/*/run.json"))


def test_runs_and_home_of_airflow_are_no_layers_though_all_else_is_allowed(
    allow: Make, make_layer: Make, context: Make, tmp_path: Path
) -> None:
    from airflow.configuration import AIRFLOW_HOME

    state, home = tmp_path / "state", AIRFLOW_HOME
    for allowed in ("", str(tmp_path), f"{tmp_path}, {home}, /"):
        allow(allowed)
        for place in (state, state / "x", f"{home}/dags", home, f"/proc/self/root{home}"):
            refused = "of the deployment itself"
            if allowed == str(tmp_path) and home in str(place):
                refused = "is outside"
            with pytest.raises(AirflowFailException, match=refused):
                plan(context(layer=str(place), num_mips=1))
    open_own_folder(f"file://{state}")
    assert plan(context(layer=str(make_layer()), num_mips=1))["plan"]["tasks"] == 4


def test_local_workers_are_limited_as_airflow_is(
    allow: Make, make_layer: Make, context: Make, tmp_path: Path
) -> None:
    layer = make_layer()
    url = plan(context(layer=str(layer), num_mips=1))["run_url"]
    EnqueueStage(task_id="enqueue", run_url=url).execute(context())
    before = everything(layer)
    allow(f"{tmp_path}/lab, s3://lab")
    with pytest.raises(AirflowFailException, match=r"is outside of what may be read and written"):
        LocalWorkers(task_id="workers", run_url=url).work({"params": {"workers": 1}})
    assert everything(layer) == before
    failure = load_run(url).final_failures()[0]
    assert f"--allowed admits {tmp_path}/lab, s3://lab" in failure.error


def test_pods_are_limited_as_airflow_is(allow: Make) -> None:
    record = {
        "id": "r", "url": RUN, "launch_id": "1a2b", "stage": "downsample", "resolved": {},
        "requested": {}, "queue": "sqs://tasks", "own_queue": True, "blocks": 1, "by": "me",
        "created": 0, "changes": [{"state": "planned", "by": "me", "at": "2026-01-01T00:00:00"}],
    }  # fmt: skip
    settings = PodSettings.read()

    def arguments() -> list[str]:
        template = PodTemplate.load(settings.template)
        pod = template.fill_in(Run.model_validate(record), RunOptions(), settings)
        args: list[str] = pod["spec"]["containers"][0]["args"]
        return args

    assert "--allowed" not in arguments()
    allow("s3://lab,\n gs://b/raw")
    given = arguments()
    assert given[given.index("--allowed") + 1] == "s3://lab,gs://b/raw"


def test_a_watched_folder_outside_is_refused(allow: Make, tmp_path: Path) -> None:
    (tmp_path / "private" / "stack").mkdir(parents=True)
    (tmp_path / "private" / "stack" / "0.tif").touch()
    folders = {"folder": str(tmp_path / "private"), "layers": str(tmp_path / "layers")}
    task = FindArrivals(task_id="look", watched=WatchedFolder.model_validate(folders))
    allow(tmp_path / "lab")
    with pytest.raises(AirflowFailException, match="private is outside"):
        task.execute({"dag_run": type("DagRun", (), {"dag_id": "watch"})})


def test_a_form_offers_the_queues_of_the_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FORM.params()["queue"].schema["enum"] == ["sqlite", None]
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", "sqs?region=eu-west-1")
    further = "sqlite,\nlarge = sqs://large?region=eu-west-1, sqs://small,"
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", further)
    names = ["sqs?region=eu-west-1", "sqlite", "large", "sqs://small"]
    assert queue_names() == names
    param = FORM.params()["queue"]
    assert param.schema["enum"] == [*names, None]
    assert param.resolve() is None
    with pytest.raises(ParamValidationError):
        param.resolve("sqs://large?region=eu-west-1")
    assert queue_url(RUN, "large")[0].startswith("sqs://large?region=eu-west-1")


def test_a_form_offers_the_images_namespaces_and_accounts_of_the_deployment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = PodSettings.read()
    usual = {"worker_image": settings.image, "namespace": settings.namespace}
    for field in ("worker_image", "namespace", "service_account"):
        enum = FORM.params()[field].schema["enum"]
        assert enum == [*([usual[field]] if field in usual else []), None]
    further = {"IMAGES": "a:1, b:1", "NAMESPACES": "large", "SERVICE_ACCOUNTS": "reader"}
    for option, names in further.items():
        monkeypatch.setenv(f"AIRFLOW__IGNEOUS__{option}", names)
    params = FORM.params()
    assert params["worker_image"].schema["enum"] == [settings.image, "a:1", "b:1", None]
    assert params["namespace"].schema["enum"] == [settings.namespace, "large", None]
    assert params["service_account"].schema["enum"] == ["reader", None]
    for field in ("worker_image", "namespace", "service_account"):
        assert params[field].resolve() is None
        with pytest.raises(ParamValidationError):
            params[field].resolve("other")
    assert params["service_account"].resolve("reader") == "reader"


@pytest.mark.parametrize(
    "asked",
    [
        "sqs://q?endpoint=http://127.0.0.1:8123/",
        "sqlite:///{tmp}/new/path.db",
        "sqs",
        "https://sqs.us-east-2.amazonaws.com/123456789012/q",
        "SQLITE",
        "sqlite ",
    ],
)
def test_another_queue_is_refused_before_anything_is_asked_or_made(
    asked: str, make_layer: Make, context: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer()
    before = everything(tmp_path)
    monkeypatch.setattr("botocore.client.BaseClient._make_api_call", pytest.fail)
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", "large = sqs://large")
    asked = asked.replace("{tmp}", str(tmp_path))
    with pytest.raises(AirflowFailException, match="choose from sqlite, large"):
        plan(context(layer=str(layer), num_mips=1, queue=asked))
    assert everything(tmp_path) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        (f"large = sqs://KEY:{SECRET}@q", "holds credentials"),
        (f"sqs?secret={SECRET}", "holds credentials"),
        ("large = sqs://a, large = sqs://b", "two queues large"),
    ],
)
def test_queues_that_cannot_be_offered_are_refused(
    queues: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", queues)
    with pytest.raises(InvalidParameter, match=words) as caught:
        FORM.params()
    assert SECRET not in str(caught.value)


def test_records_of_runs_on_other_queues_still_load(make_layer: Make, tmp_path: Path) -> None:
    stage = Downsample(layer=str(make_layer()), num_mips=1)
    queue = f"sqlite://{tmp_path}/other.db"
    url = f"file://{tmp_path}/run"
    Run.launch(stage, url=url, queue=queue, by="me", own_queue=False)
    assert load_run(url).queue == queue


LEAKS = [
    {"layer": f"s3://KEY:{SECRET}@bucket/path"},
    {"layer": f"https://host/layer?X-Amz-Signature={SECRET}"},
    {"layer": [f"s3://KEY:{SECRET}@bucket/path"]},
    {"layer": "/data/layer", "queue": f"sqs://KEY:{SECRET}@q"},
    {"layer": "/data/layer", "mip": f"s3://KEY:{SECRET}@b"},
]


@pytest.mark.parametrize("values", LEAKS)
def test_a_plan_never_repeats_credentials(
    values: dict[str, Any], context: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    with pytest.raises(AirflowFailException) as caught:
        plan(context(**values))
    assert SECRET not in f"{caught.value}{caught.value.__cause__}{caplog.text}{capfd.readouterr()}"
    assert everything(tmp_path) == {}


def left_in_airflow() -> list[str]:
    """Files of Airflow's home, its database and logs among them, in which the secret is found."""
    from airflow.configuration import AIRFLOW_HOME

    return [str(path) for path, content in everything(Path(AIRFLOW_HOME)).items()
            if SECRET.encode() in content]  # fmt: skip


@pytest.mark.parametrize("values", LEAKS)
def test_airflow_stores_no_dag_run_whose_parameters_hold_credentials(
    values: dict[str, Any], dags: dict[str, DAG]
) -> None:
    with pytest.raises((ParamValidationError, ValueError)):
        dags["igneous_downsample"].test(run_conf=values)
    assert left_in_airflow() == []


@pytest.mark.parametrize("values", LEAKS)
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/v2/dags/igneous_downsample/dagRuns", lambda v: {"logical_date": None, "conf": v}),
        ("/api/v2/backfills", lambda v: {"dag_id": "igneous_downsample", "dag_run_conf": v}),
    ],
)
def test_the_api_refuses_credentials_and_keeps_nothing(
    path: str, body: Make, values: dict[str, Any], airflow_database: None
) -> None:
    from airflow.api_fastapi.app import create_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user
    from fastapi.testclient import TestClient

    app = create_app(apps="core")
    user = SimpleAuthManagerUser(username="Ada", role="admin")
    for each in (app, *(route.app for route in app.routes if hasattr(route, "app"))):
        if hasattr(each, "dependency_overrides"):
            each.dependency_overrides[get_user] = lambda: user
    with TestClient(app) as client:
        answer = client.post(path, json=body(values))
        other = client.post(path, json=body({"layer": "/data/layer"}))
    assert answer.status_code == 400
    assert "holds credentials" in answer.json()["detail"]
    assert SECRET not in answer.text
    assert other.status_code != 400, "it came through to Airflow, which knows no such DAG"
    assert left_in_airflow() == []


def requested(path: str, body: object, method: str = "POST") -> tuple[list[bytes], list[Any]]:
    """What comes through the guard, sent in two pieces, and what is answered."""
    from igneous_airflow.operators.conf_guard import ConfGuard

    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = [
        {"type": "http.request", "body": content[:9], "more_body": True},
        {"type": "http.request", "body": content[9:], "more_body": False},
        {"type": "http.disconnect"},
    ]
    came, answers = [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request":
            came.append(message["body"])

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(ConfGuard(app)(scope, receive, send))  # type: ignore[arg-type]
    return came, answers


OURS = "/api/v2/dags/igneous_mesh/dagRuns"
OTHERS = "/api/v2/dags/another/dagRuns"
LEAK = {"layer": f"s3://KEY:{SECRET}@b"}


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        (OURS, {"conf": {"layer": "s3://b"}}, "POST"),
        (OURS, {"conf": LEAK}, "GET"),
        (OURS, {"conf": None}, "POST"),
        (OURS, ["x"], "POST"),
        (OURS, b"\xff no JSON at all", "POST"),
        ("/api/v2/connections", {"conf": LEAK}, "POST"),
        (
            OURS,
            {"conf": {}, "note": "see: bob@example.org, http://host:8080, or s3://b/x."},
            "POST",
        ),
        (OTHERS, {"conf": {"to": "mailto:bob@example.org", "why": "a: b@c", "n": 1}}, "POST"),
        (OTHERS, {"conf": {}, "dag_run_id": "manual__2026-01-01T00:00:00+00:00"}, "POST"),
    ],
)
def test_other_requests_pass_the_guard_as_they_are(path: str, body: object, method: str) -> None:
    came, answers = requested(path, body, method)
    assert b"".join(came) == (body if isinstance(body, bytes) else json.dumps(body).encode())
    assert answers == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (OURS, {"conf": LEAK}),
        (f"/airflow{OURS}/", {"conf": {"a": {"b": list(LEAK.values())}}}),
        ("/execution/dag-runs/igneous_ingest/run-1", {"conf": LEAK}),
        ("/api/v2/backfills", {"dag_id": "igneous_ingest", "dag_run_conf": LEAK}),
        (OTHERS, {"conf": LEAK}),
        (OTHERS, {"conf": {LEAK["layer"]: 1}}),
        ("/api/v2/backfills/dry_run", {"dag_id": "another", "dag_run_conf": LEAK}),
        ("/api/v2/assets/3/materialize", {"conf": LEAK}),
        ("/api/v2/assets/events", {"asset_id": 3, "extra": LEAK}),
        (OURS, {"conf": {}, "note": f"of {LEAK['layer']}, again"}),
        (OURS, {"conf": {}, "dag_run_id": LEAK["layer"]}),
        (OURS, b"\xef\xbb\xbf" + json.dumps({"conf": LEAK}).encode()),
        (OURS, b"[" * 300_000),
        (OURS, b'{"conf":' + b'{"a":' * 300 + json.dumps(LEAK).encode() + b"}" * 301),
    ],
)
def test_requests_with_credentials_do_not(path: str, body: object) -> None:
    came, answers = requested(path, body)
    assert came == []
    assert answers[0]["status"] == 400
    assert SECRET.encode() not in answers[1]["body"]


def sent_in_pieces(path: str, count: int) -> tuple[int, list[Any]]:
    """How many pieces of 64 kB are read of a request to the guard alone, and what is answered."""
    from igneous_airflow.operators.conf_guard import ConfGuard

    read, answers = 0, []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        """Refuse without reading, as a router that knows no such path does."""

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"[" * 65_536, "more_body": read < count}

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": path}
    asyncio.run(ConfGuard(app)(scope, receive, send))  # type: ignore[arg-type]
    return read, answers


def test_a_request_is_read_only_where_it_makes_a_dag_run_and_no_further_than_needed() -> None:
    assert sent_in_pieces("/nothing", 10_000) == (0, [])
    read, answers = sent_in_pieces(OURS, 10_000)
    assert read == 16
    assert answers[0]["status"] == 413


def test_the_body_is_not_looked_at_in_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from igneous_airflow.operators import conf_guard

    threads = []
    monkeypatch.setattr(
        conf_guard, "_problems", lambda *_: threads.append(threading.current_thread()) or []
    )
    requested(OURS, {"conf": {}})
    assert threads != [threading.main_thread()]


def test_the_plugin_puts_the_guard_before_the_api() -> None:
    from igneous_airflow.operators.conf_guard import ConfGuard
    from igneous_airflow.operators.plugin import IgneousPlugin

    assert [each["middleware"] for each in IgneousPlugin.fastapi_root_middlewares] == [ConfGuard]


def test_whoever_imports_the_operators_is_limited(allow: Make) -> None:
    allow("s3://lab")
    with pytest.raises(IgneousError, match=r"\[igneous\] allowed admits s3://lab"):
        open_folder("s3://other")
