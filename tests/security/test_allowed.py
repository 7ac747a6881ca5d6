"""Only addresses below an allowed prefix are opened, however they are written."""

import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from igneous_airflow.errors import AccessDenied, PlanRefused
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.sources.opening import find_source
from igneous_airflow.stage import field_schemas, fields_of_kind
from igneous_airflow.stages import registered_stages
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage import allowed as allowed_module
from igneous_airflow.storage import bucket, local
from igneous_airflow.storage.allowed import Allowed, limit_process, process_limits
from igneous_airflow.storage.consensus import Consensus
from igneous_airflow.storage.files import (
    open_file,
    open_folder,
    open_own_folder,
    open_source_folder,
)
from igneous_airflow.storage.label_map import LabelMap
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.levels import LevelsFolder
from igneous_airflow.testing.layers import random_voxels, write_layer

SETTING = "[igneous] allowed"


def admits(prefixes: str, url: str) -> bool:
    try:
        Allowed.parse(prefixes, SETTING).require(url)
    except AccessDenied:
        return False
    return True


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("s3://lab", "s3://lab/em/image"),
        ("s3://lab/", "s3://lab"),
        ("s3://lab/em", "s3://lab/em/"),
        ("gs://b/a", "precomputed://gs://b/a/image"),
        ("gs://b/a", "gs://b/a/image|neuroglancer-precomputed:"),
        ("precomputed://gs://b/a", "gs://b/a/image"),
        ("matrix://lab", "s3://https://s3-hpcrc.rc.princeton.edu/lab/em"),
        ("s3://https://s3-hpcrc.rc.princeton.edu/lab", "matrix://lab/em"),
        ("s3://https://S3.Example.org:443/lab", "s3://https://s3.example.org./lab/em"),
        ("https://host/a b", "https://HOST:443/a%20b/c"),
        ("/data/lab", "file:///data/lab/em"),
        ("file:///data/lab/", "/data/lab//em/./x/../y"),
        ("file://localhost/data/lab", "file:///data/lab"),
        ("s3://other, gs://b/a ,\n/data/lab", "gs://b/a/image"),
        ("", "gs://anything"),
        ("/data", "/data/50%_sample"),
        ("gs://b", "gs://b/what?.tif"),
    ],
)
def test_what_is_below_a_prefix_is_admitted(prefix: str, url: str) -> None:
    assert admits(prefix, url)


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("s3://lab", "s3://lab-private/em"),
        ("s3://lab", "s3://la"),
        ("s3://lab/em", "s3://lab"),
        ("s3://lab/em", "s3://lab/em-private"),
        ("s3://lab", "gs://lab"),
        ("s3://lab", "s3://https://elsewhere.example.org/lab"),
        ("s3://https://host/lab", "s3://https://host:8443/lab"),
        ("s3://https://host/lab", "s3://http://host/lab"),
        ("s3://https://host/lab", "https://host/lab"),
        ("https://host/lab", "middleauth+https://host/lab"),
        ("/data/lab", "/data/lab-private"),
        ("/data/lab", "file:///data"),
        ("/data/lab", "/data/lab/../private"),
        ("/data/lab", "/data/lab/%2e%2e/private"),
        ("gs://b/a", "gs://b/a/../c"),
        ("gs://b/a", "gs://b/a/%2e%2e/c"),
        ("gs://b/a", "gs://b/a/%252e%252E/c"),
        ("gs://b/a", "gs://b/a/x%2F..%2F..%2Fc"),
        ("gs://b/a", f"gs://b/a/%{25 * '25'}2e%{25 * '25'}2e/c"),
        ("gs://b/a", "gs://b/a/\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/c"),
        ("gs://b/a", "gs://b/a/\N{TWO DOT LEADER}/c"),
        ("gs://b/a", "gs://b/a//../c"),
        ("gs://b/a", "gs://b//a"),
        ("gs://b/a", "gs:///b/a"),
        ("gs://b/a", "gs://b/a\\..\\c"),
        ("gs://b/a", "gs://b/a/x|https:"),
        ("gs://b/a", "gs://b/a/x|zarr2:"),
        ("gs://b/a", "gs://b/%61"),
        ("https://host/a", "https://host/%2e%2e/a"),
        ("https://host/a", "https://host/a?x=/../../c"),
        ("https://host/a", "https://host/a#x"),
        ("https://host/a", "https://host\\@elsewhere/a"),
        ("https://host/a", "https://host%2eelsewhere/a"),
        ("https://host/a", "https://host/a%2Fb/../../c"),
        ("https://host/a", "https://host/a/..;/c"),
        ("https://host/a", "https://host/a/..;x=1/c"),
        ("https://host/a", "https://host/a/%2e%2e%3b/c"),
        ("https://host/a", "https://host/a/b%0ac"),
        ("https://host/a", "https://host/a/%c0%ae%c0%ae/c"),
        ("https://host/a", "https://host/a/%25c0%25ae%25c0%25ae/c"),
        ("https://host/a", "https://host/a/%e0%80%ae%e0%80%ae/c"),
        ("s3://lab", "unknown://lab"),
        ("s3://lab", "lab"),
        ("s3://lab", ""),
        ("s3://lab", "s3://"),
    ],
)
def test_what_leads_elsewhere_is_not(prefix: str, url: str) -> None:
    assert not admits(prefix, url)


def test_letters_that_only_look_alike_are_other_names() -> None:
    composed, decomposed = "gs://b/M\u00fcller", "gs://b/Mu\u0308ller"
    assert admits(composed, composed + "/em")
    assert not admits(composed, decomposed)
    assert not admits(decomposed, composed)


def test_aliases_of_ones_own_lead_to_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloudfiles import paths

    own = {"lab": "s3://https://s3.lab.example.org/", "S3": "file:///etc/", "disk": "file:///data/"}
    monkeypatch.setattr(paths, "ALIASES", {**paths.ALIASES, **own})
    monkeypatch.setattr(paths, "ALIASES_FROM_FILE", {})
    assert admits("lab://bucket", "s3://https://s3.lab.example.org/bucket/em")
    assert admits("s3://https://s3.lab.example.org/bucket", "lab://bucket/em")
    assert not admits("s3://bucket", "lab://bucket/em")
    assert not admits("s3://lab", "S3://lab"), "it is not the protocol, but an alias"
    assert admits("/data/em", "disk://em/image")
    assert not admits("/data/em", "disk://em/../other")


def test_links_on_disk_are_followed_on_both_sides(tmp_path: Path) -> None:
    inside, outside = tmp_path / "lab", tmp_path / "private"
    inside.mkdir()
    outside.mkdir()
    (inside / "way_out").symlink_to(outside)
    (inside / "nowhere").symlink_to(outside / "not there yet")
    (inside / "self").symlink_to(inside)
    (tmp_path / "known_as").symlink_to(inside)
    assert not admits(str(inside), str(inside / "way_out" / "layer"))
    assert not admits(str(inside), str(inside / "nowhere"))
    assert not admits(str(inside), f"{inside}/way_out/../private")
    assert not admits(str(inside), f"/proc/self/root{outside}")
    assert admits(str(inside), str(inside / "self" / "layer"))
    assert admits(str(inside), str(tmp_path / "known_as" / "layer"))
    assert admits(str(tmp_path / "known_as"), str(inside / "layer"))


TOKENS = (
    "s3://", "gs://", "https://", "http://", "mem://", "file://", "matrix://", "precomputed://",
    "middleauth+https://", "lab", "lab-private", "host", "s3.example.org", "a", "/", "//", ".",
    "..", "%2e", "%2F", "%25", "|https:", "|zarr2:", "|file:", "|neuroglancer-precomputed:", ":443",
    ":80", ":8443", "?", "#", "\\", "@", "~", " ", "\N{TWO DOT LEADER}", "HTTPS://", "S3://",
)  # fmt: skip
PREFIXES = (
    "s3://lab",
    "gs://lab/a",
    "s3://https://s3.example.org/lab",
    "https://host/lab",
    "mem://a",
)


def as_opened(url: str) -> tuple[str, str, tuple[str, ...]] | None:
    """Where cloud-files, which opens all but disks, takes an address; None where it is refused."""
    from cloudfiles import paths
    from cloudfiles.exceptions import UnsupportedProtocolError

    if url.partition("://")[0] not in paths.ALLOWED_PROTOCOLS:  # by BucketFolder
        return None
    try:
        found = paths.extract(paths.normalize(url))
    except UnsupportedProtocolError:
        return None
    path = unquote(found.path) if found.protocol in ("http", "https") else found.path
    segments = posixpath.normpath(f"/{found.bucket or ''}/{path}").strip("/").split("/")
    return found.protocol, (found.host or "").replace(":443", ""), tuple(segments)


@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.sampled_from(PREFIXES),
    st.lists(st.sampled_from(TOKENS), max_size=8),
    st.booleans(),
)
def test_what_is_admitted_is_opened_below_the_prefix(
    prefix: str, tokens: list[str], below: bool
) -> None:
    url = (prefix if below else "") + "".join(tokens)
    assume(admits(prefix, url))
    opened, root = as_opened(url), as_opened(prefix)
    assert root is not None
    if opened is not None:
        assert opened[:2] == root[:2]
        assert opened[2][: len(root[2])] == root[2]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.sampled_from(["in", "out", "lab", "lab-private", "..", ".", "", "up", "deep", "link"]),
        max_size=7,
    )
)
def test_what_is_admitted_on_disk_lies_below_the_prefix(tree: Path, parts: list[str]) -> None:
    """Judged by the folders' own numbers, on the way up from where the kernel gets to."""
    url = "/".join([str(tree), *parts])
    assume(Path(url).is_dir())
    root, found = (tree / "lab").stat(), False
    folder = os.open(url, os.O_RDONLY)
    try:
        while not found:
            here = os.fstat(folder)
            found = (here.st_dev, here.st_ino) == (root.st_dev, root.st_ino)
            upper = os.open("..", os.O_RDONLY, dir_fd=folder)
            os.close(folder)
            folder = upper
            if os.path.samestat(os.fstat(folder), here):
                break
    finally:
        os.close(folder)
    assert admits(str(tree / "lab"), url) == found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with links in and out, up and around."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("lab/deep/in", "lab-private/deep", "out/lab"):
        (root / folder).mkdir(parents=True)
    (root / "in").symlink_to(root / "lab")
    (root / "lab" / "out").symlink_to(root / "lab-private")
    (root / "lab" / "link").symlink_to(root / "lab" / "deep")
    (root / "lab-private" / "up").symlink_to("..")
    (root / "lab" / "up").symlink_to("..")
    return root


@pytest.mark.parametrize(
    "text",
    ["lab", "data/lab", "s3://", "s3://lab, ,gs://b", ",", "s3+http://host/lab", "s3://lab/../b",
     "s3://lab*", "/data/[ab]", "none", "~/data", "s3://lab//em", "https://host/a?b", '""'],
)  # fmt: skip
def test_a_setting_that_cannot_be_understood_admits_nothing(text: str) -> None:
    with pytest.raises(AccessDenied, match=r"\[igneous\] allowed has the entry"):
        Allowed.parse(text, SETTING)


def test_a_refusal_names_the_address_what_is_allowed_and_whom_to_ask() -> None:
    with pytest.raises(AccessDenied) as caught:
        Allowed.parse("s3://lab/em,/data", SETTING).require("s3://other/em")
    text = str(caught.value)
    assert text.startswith("s3://other/em is outside")
    assert "[igneous] allowed admits s3://lab/em, /data" in text
    assert "ask the administrator" in text


def test_folders_of_the_deployment_are_no_layers_unless_they_are_listed() -> None:
    anything = Allowed.parse("", SETTING, ("s3://b/runs", "file:///opt/airflow"))
    for url in (
        *("s3://b/runs", "s3://b/runs/x", "s3://b", "s3://http://s3:7070/b/runs/x"),
        *("https://host/b/runs", "/opt/airflow/dags", "/opt", "/", "s3://b/x/../runs"),
    ):
        with pytest.raises(AccessDenied, match=r"of the deployment itself|may lead"):
            anything.require(url)
    for url in ("s3://b/em", "s3://b/runs-of-mine", "/opt/layers", "https://host", "gs://c/runs"):
        anything.require(url)
    wide = Allowed.parse("s3://b,/opt", SETTING, anything.own)
    exact = Allowed.parse("s3://b/runs,/opt/airflow", SETTING, anything.own)
    for url in ("s3://b/runs/x", "/opt/airflow/dags"):
        for limit in (wide, exact):
            with pytest.raises(AccessDenied, match="of the deployment itself"):
                limit.require(url)
    listed = Allowed.parse("/opt/airflow/data", SETTING, anything.own)
    listed.require("/opt/airflow/data/layer")
    with pytest.raises(AccessDenied):
        listed.require("/opt/airflow/airflow.cfg")


@pytest.mark.parametrize("action", ["read", "read_part", "stream"])
def test_a_file_of_a_source_that_became_a_link_after_the_plan_is_not_followed_outside(
    action: str, tmp_path: Path
) -> None:
    for name in ("lab/stack/0.tif", "lab/other/1.tif", "private/0.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    limit_process("test", Allowed.parse(f"{tmp_path}/lab", "test"))
    folder = open_source_folder(f"file://{tmp_path}/lab/stack")
    actions: dict[str, Callable[[], object]] = {
        "read": lambda: folder.read("0.tif"),
        "read_part": lambda: folder.read_part("0.tif", 0, memoryview(bytearray(3))),
        "stream": lambda: cast("BufferedReader", folder.stream("0.tif")).close(),
    }
    assert folder.entry("0.tif") is not None
    (tmp_path / "lab/stack/0.tif").unlink()
    (tmp_path / "lab/stack/0.tif").symlink_to(tmp_path / "private/0.tif")
    with pytest.raises(AccessDenied, match=r"private/0\.tif is outside"):
        actions[action]()
    (tmp_path / "lab/stack/0.tif").unlink()
    (tmp_path / "lab/stack/0.tif").symlink_to(tmp_path / "lab/other/1.tif")
    actions[action]()


def test_limits_of_a_process_add_up_and_are_asked_again_each_time() -> None:
    prefixes = "s3://lab"
    limit_process("one", lambda: Allowed.parse(prefixes, "one"))
    limit_process("other", Allowed.parse("s3://lab/em,gs://b", "other"))
    open_folder("s3://lab/em")
    for url in ("s3://lab/lm", "gs://b"):
        with pytest.raises(AccessDenied):
            open_folder(url)
    prefixes = "gs://b"
    open_folder("gs://b")
    with pytest.raises(AccessDenied, match="one admits gs://b"):
        open_folder("s3://lab/em")
    assert [limit.prefixes for limit in process_limits()] == [
        ("gs://b",),
        ("s3://lab/em", "gs://b"),
    ]
    open_own_folder("s3://the/runs")


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


@pytest.mark.parametrize(
    "open_it",
    [
        open_folder,
        open_file,
        Layer.open,
        LabelMap.open,
        find_source,
        lambda url: find_source(f"{url}/*.tif"),
        lambda url: LevelsFolder(url, 0, "uint8"),
        lambda url: Consensus.open(url, url),
    ],
)
def test_whatever_opens_something_asks_first(open_it: Any, opened: list[str]) -> None:
    limit_process("x", Allowed.parse("/data/lab, s3://lab", "x"))
    for url in ("file:///data/lab-private/x", "s3://lab-private/x"):
        with pytest.raises(AccessDenied, match="outside"):
            open_it(url)
    assert opened == []


#: What stages need beside addresses.
OTHERS: dict[str, dict[str, Any]] = {}


def every_address() -> Iterator[tuple[str, str]]:
    for name, stage in registered_stages().items():
        for field in fields_of_kind(stage, "layer", "address", "files"):
            yield name, field


@pytest.mark.parametrize(("stage", "field"), list(every_address()))
def test_a_plan_refuses_an_address_of_any_field_before_it_reads_or_writes(
    stage: str, field: str, tmp_path: Path, opened: list[str]
) -> None:
    kind = registered_stages()[stage]
    lab, outside = tmp_path / "lab", tmp_path / "lab-private" / "x"
    addresses = fields_of_kind(kind, "layer", "address", "files")
    values = {name: str(lab / name) for name in addresses} | OTHERS.get(stage, {})
    required = {name for name, schema in field_schemas(kind).items() if "default" not in schema}
    assert required <= values.keys(), "say in OTHERS what the stage needs"
    limit_process("x", Allowed.parse(str(lab), "x"))
    kind.model_validate(values).require_allowed()
    launched = kind.model_validate(values | {field: str(outside)})
    with pytest.raises(PlanRefused, match=rf"- {field}: file://{outside} is outside"):
        Run.launch(launched, url=f"file://{tmp_path}/run", queue="memory://x", by="me")
    assert opened == []
    assert list(tmp_path.iterdir()) == []


def test_a_source_at_the_top_of_what_is_allowed_is_found_but_not_its_neighbors(
    tmp_path: Path,
) -> None:
    import numpy as np

    lab = tmp_path / "lab"
    lab.mkdir()
    for name in ("a.npy", "b.npy"):
        np.save(lab / name, np.zeros((4, 4, 4), np.uint8))
    limit_process("x", Allowed.parse(str(lab / "a.npy"), "x"))
    found = find_source(f"file://{lab}/a.npy")
    assert found.kind == "file"
    assert found.folder.exists("a.npy")
    for other in ("b.npy", "*.npy", "a.npy/../b.npy"):
        with pytest.raises(AccessDenied):
            find_source(f"file://{lab}/{other}")


def test_sections_that_are_links_to_elsewhere_are_refused(tmp_path: Path) -> None:
    stack, outside = tmp_path / "lab" / "stack", tmp_path / "secret.tif"
    stack.mkdir(parents=True)
    outside.write_bytes(b"II*\0")
    (stack / "0.tif").write_bytes(b"II*\0")
    (stack / "1.tif").symlink_to(stack / "0.tif")
    limit_process("x", Allowed.parse(str(tmp_path / "lab"), "x"))
    assert len(find_source(f"file://{stack}").files) == 2
    (stack / "2.tif").symlink_to(outside)
    for source in (stack, stack / "*.tif", stack / "2.tif"):
        with pytest.raises(AccessDenied, match=r"2\.tif is outside"):
            find_source(f"file://{source}")


def queued(tmp_path: Path) -> tuple[Run, Path]:
    layer = tmp_path / "private" / "layer"
    write_layer(layer, random_voxels(Vec3(64, 16, 8)))
    queue = f"sqlite://{tmp_path}/queue.db"
    run, _ = Run.launch(
        Downsample(layer=str(layer), num_mips=1),
        url=f"file://{tmp_path}/runs/run",
        queue=queue,
        by="me",
    )
    run.prepare()
    run.enqueue()
    return run, layer


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "igneous_airflow", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("how", ["option", "environment", "group"])
def test_processes_of_a_worker_do_no_task_outside_of_what_is_allowed(
    how: str, tmp_path: Path
) -> None:
    run, layer = queued(tmp_path)
    before = files(layer)
    allowed = f"{tmp_path}/lab,s3://lab"
    arguments = ["worker", run.queue, "--runs", run.runs_folder, "--until-done", "--processes", "2"]
    if how == "environment":
        answer = command(*arguments, IGNEOUS_AIRFLOW_ALLOWED=allowed)
    elif how == "group":
        answer = command("--allowed", allowed, *arguments)
    else:
        # the environment's own limit stays beside the option's
        answer = command(*arguments, "--allowed", allowed, IGNEOUS_AIRFLOW_ALLOWED=str(tmp_path))
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert len(run.final_failures()) == 4
    assert all("layer/" not in f.error or "outside" in f.error for f in run.final_failures())
    assert all(f.final and "is outside of what" in f.error for f in run.final_failures())
    assert files(layer) == before


def test_a_worker_reads_nothing_when_another_address_of_its_task_is_outside(tmp_path: Path) -> None:
    source, dest = tmp_path / "lab" / "source", tmp_path / "private" / "dest"
    write_layer(source, random_voxels(Vec3(64, 16, 8)))
    queue = f"sqlite://{tmp_path}/queue.db"
    stage = registered_stages()["transfer"].model_validate({"src": str(source), "dest": str(dest)})
    run, _ = Run.launch(stage, url=f"file://{tmp_path}/runs/run", queue=queue, by="me")
    run.prepare()
    run.enqueue()
    shutil.rmtree(source)  # reading it would fail in another way
    arguments = ["worker", run.queue, "--runs", run.runs_folder, "--until-done"]
    answer = command(*arguments, "--allowed", str(tmp_path / "lab"))
    assert answer.returncode == 1
    failures = run.final_failures()
    assert failures
    assert all(f"dest: file://{dest} is outside" in failure.error for failure in failures)


@pytest.mark.parametrize("is_limited", [True, False])
@pytest.mark.parametrize("place", ["runs/run", "."])
def test_a_worker_keeps_out_of_its_runs_folder_though_all_around_it_is_allowed(
    place: str, is_limited: bool, tmp_path: Path
) -> None:
    layer = tmp_path / place
    write_layer(layer, random_voxels(Vec3(64, 16, 8)))
    queue = f"sqlite://{tmp_path}/queue.db"
    stage = Downsample(layer=str(layer), num_mips=1)
    run, _ = Run.launch(stage, url=f"file://{tmp_path}/runs/run", queue=queue, by="me")
    run.prepare()
    run.enqueue()
    arguments = ["worker", run.queue, "--runs", run.runs_folder, "--until-done"]
    answer = command(*arguments, IGNEOUS_AIRFLOW_ALLOWED=str(tmp_path) if is_limited else "")
    assert answer.returncode == 1
    failures = run.final_failures()
    assert len(failures) == 4
    assert all("a folder of the deployment itself" in failure.error for failure in failures)


def test_a_worker_that_is_allowed_does_its_tasks(tmp_path: Path) -> None:
    run, _ = queued(tmp_path)
    arguments = ["worker", run.queue, "--runs", run.runs_folder, "--until-done"]
    answer = command(*arguments, "--allowed", f"{tmp_path}/private")
    assert answer.returncode == 0, answer.stderr
    assert run.progress().done == 4


def test_a_worker_whose_limits_cannot_be_understood_does_not_start(tmp_path: Path) -> None:
    run, _ = queued(tmp_path)
    arguments = ["worker", run.queue, "--runs", run.runs_folder, "--until-done"]
    answer = command(*arguments, "--allowed", "lab/em")
    assert answer.returncode == 1
    assert "Nothing is read or written until that is corrected" in answer.stderr
    assert run.progress().done == 0


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_commands_of_stages_honor_the_environment(options: list[str], tmp_path: Path) -> None:
    layer = tmp_path / "private" / "layer"
    write_layer(layer, random_voxels(Vec3(64, 16, 8)))
    runs = str(tmp_path / "runs")
    answer = command(
        "downsample", str(layer), "--runs", runs, *options, IGNEOUS_AIRFLOW_ALLOWED="s3://lab"
    )
    assert answer.returncode == 1
    assert "IGNEOUS_AIRFLOW_ALLOWED admits s3://lab" in answer.stderr
    assert not Path(runs).exists()


def test_a_dry_run_reads_nothing_when_another_address_is_outside(tmp_path: Path) -> None:
    lab, outside = tmp_path / "lab", tmp_path / "private"
    answer = command(
        *("transfer", str(lab), str(outside), "--dry-run"), IGNEOUS_AIRFLOW_ALLOWED=str(lab)
    )
    assert answer.returncode == 1
    assert f"dest: file://{outside} is outside" in answer.stderr
    assert "src" not in answer.stderr, "it would say that there is no layer"


@pytest.mark.parametrize("command_of", [["picture"], ["levels", "plot"], ["view"]])
def test_commands_that_look_at_layers_honor_the_environment(
    command_of: list[str], tmp_path: Path
) -> None:
    layer = tmp_path / "private" / "layer"
    write_layer(layer, random_voxels(Vec3(64, 16, 8)))
    answer = command(*command_of, str(layer), IGNEOUS_AIRFLOW_ALLOWED="s3://lab")
    assert answer.returncode == 1
    assert "is outside of what may be read and written" in answer.stderr


def test_no_module_opens_folders_but_by_the_doors() -> None:
    """Others call neither the classes that open folders, nor the deployment's door."""
    package = Path(allowed_module.__file__).parents[1]
    own = {"run.py", "runs_folder.py", "ledger.py", "overview.py", "audit_log.py"}
    own.add("storage/files.py")
    makers = {"storage/files.py", "storage/local.py", "storage/cache.py", "storage/bucket.py"}
    for path in [*package.rglob("*.py"), *(package / "operators").rglob("*.py")]:
        name, text = str(path.relative_to(package)), path.read_text()
        if name not in makers:
            assert not re.search(r"\b(LocalFolder|BucketFolder|CloudFiles)\(", text), name
        if name not in own:
            assert "open_own_folder" not in text, name


def test_limits_pass_between_processes_as_they_are() -> None:
    import pickle

    limit = Allowed.parse("s3://lab", "x", ("file:///srv/runs",))
    assert pickle.loads(pickle.dumps(limit)) == limit
    assert json.dumps(limit.prefixes)
