"""Folders in buckets of a real S3-compatible server, with a proxy between that spoils requests."""

import gc
import itertools
import json
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import tenacity
from cloudfiles import interfaces
from google.api_core import exceptions as google_errors
from google.auth.exceptions import DefaultCredentialsError, RefreshError
from google.cloud import storage

from igneous_airflow.errors import (
    AccessDenied,
    CorruptChunk,
    IgneousError,
    InvalidParameter,
    MissingChunk,
    PermanentError,
    PlanRefused,
    StorageUnavailable,
)
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Ledger
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.storage.bucket import BucketFolder
from igneous_airflow.storage.bucket_errors import explain
from igneous_airflow.storage.files import Folder, StoredFile, open_folder
from igneous_airflow.storage.info import Info, Scale
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.provenance import read_provenance, record_processing
from igneous_airflow.testing.layers import random_voxels, write_layer

# Google's library leaves sessions open when credentials are refused
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

HERE = Path(__file__).parent
SERVER = runpy.run_path(str(HERE.parent / "queue" / "sqs_server.py"))
PROXY = runpy.run_path(str(HERE / "faulty_proxy.py"))
Fault = PROXY["Fault"]
NUMBERS = itertools.count()
REFUSED_INSIDE = {
    "status": 200,
    "body": "<DeleteResult><Error><Key>x</Key><Code>AccessDenied</Code></Error></DeleteResult>",
}
DENIED = {"status": 403, "code": "AccessDenied", "times": 1_000}


@pytest.fixture(scope="module")
def proxy() -> Iterator[Any]:
    """A proxy of an S3 server, to which `s3://` leads by the environment."""
    with SERVER["required"]("s3") as server, PROXY["running"](server) as proxy:
        earlier = dict(os.environ)
        # keys without a session token, as people have them
        os.environ.update(AWS_ACCESS_KEY_ID="testing", AWS_SECRET_ACCESS_KEY="testing")
        os.environ.pop("AWS_SESSION_TOKEN", None)
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.endpoint
        yield proxy
        os.environ.clear()
        os.environ.update(earlier)


@pytest.fixture
def bucket(proxy: Any) -> Iterator[str]:
    """A bucket of its own for each test, since cloud-files keeps connections by bucket."""
    name = f"bucket-{next(NUMBERS)}"
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket=name)
    proxy.requests.clear()
    yield name
    proxy.faults.clear()
    proxy.page = 0
    client.close()


@pytest.fixture
def folder(bucket: str) -> Folder:
    return open_folder(f"s3://{bucket}/layers/one")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cloud-files give up after two attempts, and botocore after one."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for method in vars(interfaces.S3Interface).values():
        if policy := getattr(method, "retry", None):
            monkeypatch.setattr(policy, "stop", tenacity.stop_after_attempt(2))
            monkeypatch.setattr(policy, "wait", tenacity.wait_none())
    quick = tenacity.retry(reraise=True, stop=tenacity.stop_after_attempt(2))
    monkeypatch.setattr(interfaces, "retry", quick)


# what a folder is


@pytest.mark.parametrize("compression", ["", "gzip"])
@pytest.mark.parametrize("size", [0, 1, 255, 256])
def test_a_file_of_no_more_bytes_than_its_reader_takes_is_read(
    folder: Folder, compression: str, size: int
) -> None:
    file = StoredFile(bytes(range(256))[:size], compression)
    assert folder.read("a/b", 256) is None
    folder.write("a/b", file)
    assert folder.read("a/b", 256) == file


def test_no_more_is_asked_for_of_a_file_than_its_reader_takes(folder: Folder, proxy: Any) -> None:
    folder.write("a/b", StoredFile(bytes(1 << 20)))
    proxy.requests.clear()
    with pytest.raises(CorruptChunk, match="larger than the 256 bytes"):
        folder.read("a/b", 256)
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("compression", ["", "gzip", "br", "zstd"])
def test_a_file_is_read_as_it_was_written(folder: Folder, compression: str) -> None:
    file = StoredFile(bytes(range(256)), compression)
    assert folder.read("a/b") is None
    assert not folder.exists("a/b")
    folder.write("a/b", file, content_type="image/jpeg")
    assert folder.read("a/b") == file
    assert folder.exists("a/b")
    folder.write("a/b", StoredFile(b"new"))
    assert folder.read("a/b") == StoredFile(b"new")
    folder.delete("a/b")
    folder.delete("a/b")
    assert folder.read("a/b") is None


def test_folders_are_listed_beyond_the_names_of_one_answer(folder: Folder, proxy: Any) -> None:
    proxy.page = 10
    names = {f"{number:05d}" for number in range(35)}
    for name in names:
        folder.write(f"done/{name}", StoredFile(b"x"))
    folder.write("done/deep/er", StoredFile(b"x"))
    folder.write("done-not", StoredFile(b"x"))
    assert set(folder.names("done")) == names
    assert dict(folder.sizes("done")) == dict.fromkeys(names, 1)
    folder.delete_folder("done")
    assert list(folder.names("done")) == []
    assert not folder.exists("done/deep/er")
    assert folder.exists("done-not")


def written_again(folder: Folder) -> None:
    """Check that a listing tells a file that was written again from the one that was there."""
    for name in ("one", "two", "deep/three"):
        folder.write(f"files/{name}", StoredFile(b"voxels"))
    before = {entry.name: entry for entry in folder.entries("files")}
    assert {name: entry.size for name, entry in before.items()} == {"one": 6, "two": 6}
    alone = folder.entry("files/one")
    folder.write("files/one", StoredFile(b"VOXELS"))
    after = {entry.name: entry for entry in folder.entries("files")}
    assert after.keys() == before.keys()
    assert after["two"] == before["two"]
    assert after["one"] != before["one"]
    assert folder.entry("files/one") != alone
    assert folder.entry("files/none") is None
    assert [entry.name for entry in open_folder(f"{folder.url}/files").entries("")] == sorted(after)


def test_a_listing_tells_when_a_file_was_written_again(folder: Folder, proxy: Any) -> None:
    proxy.page = 1
    written_again(folder)


@pytest.mark.parametrize(
    "etag", ["0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef-2"]
)
@pytest.mark.parametrize(
    "encryption",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption": "aws:kms:dsse"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
    ids=str,
)
def test_objects_are_read_whose_etag_is_not_made_of_their_content(
    folder: Folder, proxy: Any, encryption: dict[str, str], etag: str
) -> None:
    """As that of objects which keys of KMS encrypt, in one part or several."""
    file = StoredFile(os.urandom(1_000))
    folder.write("chunk", file)
    proxy.faults.append(Fault(headers={**encryption, "etag": f'"{etag}"'}, times=1_000))
    assert folder.read("chunk") == file
    assert folder.version("chunk") == f'etag:"{etag}"'


def test_objects_that_come_with_other_bytes_are_noticed(
    folder: Folder, proxy: Any, hasty: None
) -> None:
    folder.write("chunk", StoredFile(b"voxels"))
    proxy.faults.append(Fault(headers={"etag": f'"{"0" * 32}"'}, times=1_000))
    with pytest.raises(StorageUnavailable, match="MD5"):
        folder.read("chunk")


def test_a_folder_can_be_given_by_an_alias_of_cloud_files(
    proxy: Any, bucket: str, tmp_path: Path
) -> None:
    aliases = tmp_path / "cloudfiles" / "aliases.json"
    aliases.parent.mkdir()
    aliases.write_text(json.dumps({"local": {"host": f"s3://{proxy.endpoint}/"}}))
    program = (
        "import sys; from igneous_airflow.storage.files import StoredFile, open_folder; "
        "folder = open_folder(sys.argv[1]); folder.write('x', StoredFile(b'abc')); "
        "print(folder.read('x').content.decode(), *folder.names(''))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "AWS_ENDPOINT_URL_S3"}
    done = subprocess.run(
        [sys.executable, "-c", program, f"local://{bucket}/folder"],
        env=environment | {"CLOUD_FILES_DIR": str(aliases.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["abc", "x"]
    assert any(f"/{bucket}/folder/x" in request for request in proxy.requests)


@pytest.mark.parametrize("url", ["s3+http://127.0.0.1:9000/bucket/layer", "loc://bucket/layer"])
def test_an_address_that_would_become_a_local_folder_is_refused(url: str) -> None:
    with pytest.raises(InvalidParameter, match="not an address we can open"):
        open_folder(url)
    assert not Path(url.partition("://")[0] + ":").exists()


# faults that pass


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503, "code": "SlowDown"},
        {"status": 503, "code": "ServiceUnavailable", "times": 3},  # more than botocore's own two
        {"status": 429, "code": "TooManyRequests"},
        {"delay": 1.5},
        {"cut": "answer"},
        {"cut": "request"},
    ],
    ids=str,
)
def test_faults_that_pass_are_waited_for(
    folder: Folder, proxy: Any, fault: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    content = os.urandom(200_000)
    for method in ("PUT", "GET"):
        proxy.faults.append(Fault(method=method, **fault))
    folder.write("chunk", StoredFile(content, "gzip"))
    assert folder.read("chunk") == StoredFile(content, "gzip")
    assert all(left.times == 0 for left in proxy.faults)


def test_faults_of_lists_and_deletions_that_pass_are_waited_for(folder: Folder, proxy: Any) -> None:
    folder.write("done/1", StoredFile(b"x"))
    for method in ("GET", "DELETE", "HEAD"):
        proxy.faults.append(Fault(method=method, status=503, code="SlowDown", times=2))
    assert list(folder.names("done")) == ["1"]
    assert folder.exists("done/1")
    folder.delete("done/1")
    assert list(folder.names("done")) == []


def test_an_upload_that_was_cut_leaves_the_old_object_or_none(
    folder: Folder, proxy: Any, hasty: None
) -> None:
    proxy.faults.append(Fault(method="PUT", cut="request", times=1_000))
    content = os.urandom(200_000)
    with pytest.raises(StorageUnavailable, match=f"cannot write {folder.url}/chunk: "):
        folder.write("chunk", StoredFile(content))
    proxy.faults.clear()
    assert folder.read("chunk") is None
    folder.write("chunk", StoredFile(content))
    proxy.faults.append(Fault(method="PUT", cut="request", times=1_000))
    with pytest.raises(StorageUnavailable):
        folder.write("chunk", StoredFile(os.urandom(300_000)))
    proxy.faults.clear()
    assert folder.read("chunk") == StoredFile(content)


@pytest.mark.parametrize("action", ["read", "write", "exists", "names", "delete"])
def test_faults_that_stay_are_an_error_that_names_the_object_and_may_be_retried(
    folder: Folder, proxy: Any, hasty: None, action: str
) -> None:
    proxy.faults.append(Fault(status=500, times=1_000))
    with pytest.raises(
        StorageUnavailable, match=rf"cannot .* {folder.url}/a/b: .*(500|InternalError)"
    ) as caught:
        do(folder, action)
    assert not isinstance(caught.value, PermanentError)


# refusals


def do(folder: Folder, action: str) -> object:
    return {
        "read": lambda: folder.read("a/b"),
        "write": lambda: folder.write("a/b", StoredFile(b"x")),
        "exists": lambda: folder.exists("a/b"),
        "names": lambda: list(folder.names("a/b")),
        "delete": lambda: folder.delete("a/b"),
        "delete_folder": lambda: folder.delete_folder("a"),
        "try_writing": folder.try_writing,
    }[action]()


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("read", "s3:GetObject on bucket"),
        ("write", "s3:PutObject and s3:PutObjectAcl on bucket"),
        ("exists", "s3:GetObject on bucket"),
        ("names", "s3:ListBucket on bucket"),
        ("delete", "s3:DeleteObject on bucket"),
        ("try_writing", "s3:PutObject and s3:PutObjectAcl on bucket"),
    ],
)
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "ExpiredToken"])
def test_a_refusal_names_bucket_and_permission_at_once(
    folder: Folder, proxy: Any, bucket: str, action: str, permission: str, code: str
) -> None:
    status = 400 if code == "ExpiredToken" else 403
    proxy.faults.append(Fault(**{**DENIED, "status": status, "code": code}))
    with pytest.raises(AccessDenied, match=f"{permission} {bucket}, or renew them") as caught:
        do(folder, action)
    assert len(proxy.requests) <= 2, "no retry can help, but botocore may ask for the region"
    assert folder.url in str(caught.value)


def test_nothing_is_written_to_a_bucket_before_a_run_is_launched(
    bucket: str, proxy: Any, tmp_path: Path
) -> None:
    write_layer(tmp_path / "layer", random_voxels(Vec3(32, 32, 8)))
    url = f"s3://{bucket}/layer"
    layer = open_folder(url)
    layer.write("info", StoredFile((tmp_path / "layer" / "info").read_bytes()))
    stage = Downsample(layer=url, num_mips=1)
    run = {"url": f"file://{tmp_path}/run", "queue": "memory://unused", "by": "Ada"}
    proxy.requests.clear()
    stage.plan().require_accepted()
    Run.launch(stage, **run, plan_only=True)
    assert {request.split()[0] for request in proxy.requests} <= {"GET", "HEAD"}
    Run.launch(stage, **run)
    written = [request for request in proxy.requests if request.split()[0] not in ("GET", "HEAD")]
    assert [request.split()[0] for request in written] == ["PUT", "DELETE"]
    assert all(".probe." in request for request in written)
    assert list(layer.names("")) == ["info"]
    proxy.faults.append(Fault(method="PUT", **DENIED))
    with pytest.raises(PlanRefused, match=f"s3:PutObject and s3:PutObjectAcl on bucket {bucket}"):
        Run.launch(stage, **{**run, "url": f"file://{tmp_path}/other"})
    assert not (tmp_path / "other").exists()


def test_objects_that_stay_though_their_deletion_was_answered_are_an_error(
    folder: Folder, proxy: Any
) -> None:
    """S3 answers a deletion of many objects with success, and with what it refused inside."""
    folder.write("done/1", StoredFile(b"x"))
    folder.write("done/2", StoredFile(b"x"))
    proxy.faults += [Fault(method="POST", **REFUSED_INSIDE), Fault("DELETE", **DENIED)]
    with pytest.raises(AccessDenied, match="s3:DeleteObject"):
        folder.delete_folder("done")


def test_a_bucket_that_does_not_exist_is_named_at_once(proxy: Any) -> None:
    proxy.requests.clear()
    with pytest.raises(InvalidParameter, match="there is no bucket nowhere-at-all here"):
        open_folder("s3://nowhere-at-all/layer").read("info")
    assert len(proxy.requests) <= 2


def test_missing_credentials_are_named(bucket: str, proxy: Any, tmp_path: Path) -> None:
    program = "from igneous_airflow.storage.files import open_folder; open_folder({!r}).read('x')"
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
    environment = {k: v for k, v in os.environ.items() if k not in keys}
    done = subprocess.run(
        [sys.executable, "-c", program.format(f"s3://{bucket}/layer")],
        env=environment | {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"s3:GetObject on bucket {bucket}" in done.stderr
    assert "Unable to locate credentials" in done.stderr


# what stands on folders


def test_a_layer_in_a_bucket_survives_faults_and_names_missing_chunks(
    bucket: str, proxy: Any
) -> None:
    scale = Scale("4_4_40", (4.0, 4.0, 40.0), Vec3(70, 50, 9), Vec3(3, -5, 1), Vec3.full(32), "raw")
    info = Info.new(data_type="uint16", layer_type="image", scale=scale)
    voxels = np.random.default_rng(1).integers(0, 9999, (70, 50, 9), dtype=np.uint16)
    url = f"s3://{bucket}/layer"
    proxy.faults.append(Fault(status=503, code="SlowDown", times=3))
    Layer.create(url, info).write(scale, voxels)
    proxy.faults.append(Fault(method="GET", part="4_4_40", cut="answer", times=3))
    layer = Layer.open(url)
    assert (layer.read(scale, scale.bounds)[..., 0] == voxels).all()
    chunk = next(iter(scale.chunks))
    layer.delete_chunk(scale, chunk)
    with pytest.raises(MissingChunk, match=f"chunk {chunk} of {url}/4_4_40"):
        layer.read(scale, scale.bounds)


def test_runs_that_record_themselves_at_the_same_moment_are_both_in_the_provenance(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2, timeout=30)
    write, writers = BucketFolder.write, set()

    def write_together(self: BucketFolder, name: str, *rest: Any, **options: Any) -> None:
        first = threading.get_ident() not in writers
        writers.add(threading.get_ident())
        if first:
            meeting.wait()  # both have read
        write(self, name, *rest, **options)
        if first:
            meeting.wait()  # both have written

    monkeypatch.setattr(BucketFolder, "write", write_together)
    with ThreadPoolExecutor(2) as threads:
        for name in ("one", "two"):
            threads.submit(record_processing, folder, {"task": name}, "me", sources=[name])
    provenance = read_provenance(folder)
    assert len(writers) == 2
    assert sorted(entry["method"]["task"] for entry in provenance["processing"]) == ["one", "two"]
    assert sorted(provenance["sources"]) == ["one", "two"]


def test_a_ledger_in_a_bucket_never_takes_old_receipts_for_new_ones(
    bucket: str, proxy: Any
) -> None:
    ledger = Ledger(f"s3://{bucket}/runs/one", "1a2b")
    for task in range(3):
        ledger.write_receipt(Receipt(task=task, attempt=1, seconds=0, worker="me"))
    assert ledger.done(5).count == 3
    proxy.faults += [Fault(method="POST", **REFUSED_INSIDE), Fault("DELETE", **DENIED)]
    with pytest.raises(AccessDenied):
        ledger.forget_everything()
    proxy.faults.clear()
    ledger.forget_everything()
    assert ledger.done(5).count == 0


# Google's storage speaks in other words


@pytest.fixture(scope="module")
def google() -> Iterator[Any]:
    """A proxy of a server that speaks Google's language, to which `gs://` leads."""
    programs = SERVER["required_programs"](HERE / "gcp-storage-emulator.lock")
    port = SERVER["free_port"]()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    command = [str(programs / "gcp-storage-emulator"), "start", "--in-memory", *address]
    behind = f"http://127.0.0.1:{port}"
    with SERVER["process"](command, behind, os.environ), PROXY["running"](behind) as proxy:
        earlier = os.environ.get("STORAGE_EMULATOR_HOST")
        os.environ["STORAGE_EMULATOR_HOST"] = proxy.endpoint
        client = storage.Client(project="test")
        client.create_bucket("google")
        client.close()
        yield proxy
        os.environ.pop("STORAGE_EMULATOR_HOST")
        if earlier:
            os.environ["STORAGE_EMULATOR_HOST"] = earlier


@pytest.fixture
def google_folder(google: Any) -> Iterator[Folder]:
    google.requests.clear()
    yield open_folder(f"gs://google/layers/{next(NUMBERS)}")
    google.faults.clear()
    gc.collect()  # here, where what it finds is known


def test_a_folder_of_google_works_as_well(google_folder: Folder) -> None:
    """The emulator forgets how a file is compressed, so here none is."""
    folder, content = google_folder, os.urandom(100_000)
    assert folder.read("done/1") is None
    assert not folder.exists("done/1")
    for name in ("done/1", "done/2", "done/deep/3", "other"):
        folder.write(name, StoredFile(content))
    assert folder.read("done/1") == StoredFile(content)
    assert folder.exists("done/1")
    assert sorted(folder.names("done")) == ["1", "2"]
    assert dict(folder.sizes("done")) == {"1": 100_000, "2": 100_000}
    folder.delete("done/1")
    folder.delete("done/1")
    assert list(folder.names("done")) == ["2"]
    folder.delete_folder("done")
    assert list(folder.names("done")) == []
    assert folder.exists("other")
    folder.try_writing()


def test_a_listing_of_google_tells_when_a_file_was_written_again(google_folder: Folder) -> None:
    written_again(google_folder)


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"delay": 1}], ids=str)
def test_faults_of_google_that_pass_are_waited_for(
    google_folder: Folder, google: Any, fault: dict[str, Any]
) -> None:
    for method in ("POST", "GET"):
        google.faults.append(Fault(method=method, body="{}", **fault))
    google_folder.write("chunk", StoredFile(b"abc"))
    assert google_folder.read("chunk") == StoredFile(b"abc")
    assert all(left.times == 0 for left in google.faults)


@pytest.mark.parametrize(
    ("action", "permission"),
    [
        ("read", "storage.objects.get"),
        ("write", "storage.objects.create and storage.objects.delete"),
        ("exists", "storage.objects.get"),
        ("names", "storage.objects.list"),
        ("delete", "storage.objects.delete"),
    ],
)
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_google_names_bucket_and_permission_at_once(
    google_folder: Folder, google: Any, action: str, permission: str, status: int
) -> None:
    google.faults.append(Fault(status=status, body="{}", times=1_000))
    with pytest.raises(AccessDenied, match=f"{permission} on bucket google, or renew them"):
        do(google_folder, action)
    assert len(google.requests) <= 2, "no retry can help"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (google_errors.Forbidden("no"), AccessDenied, "storage.objects.get on bucket b"),
        (google_errors.Unauthorized("no"), AccessDenied, "renew them"),
        (DefaultCredentialsError("none"), AccessDenied, "none"),
        (RefreshError("expired"), AccessDenied, "expired"),
        (google_errors.ServiceUnavailable("later"), StorageUnavailable, "later"),
        (google_errors.TooManyRequests("later"), StorageUnavailable, "later"),
        (google_errors.InternalServerError("oops"), StorageUnavailable, "oops"),
        (ConnectionError("reset"), StorageUnavailable, "reset"),
        (google_errors.BadRequest("what?"), StorageUnavailable, "what?"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_google_are_told_apart(
    error: Exception, kind: type[IgneousError], words: str
) -> None:
    ours = explain("read", "gs://b/layer/info", error)
    assert type(ours) is kind
    assert words in str(ours)
    assert "gs://b/layer/info" in str(ours)


def test_many_operations_in_one_process_do_not_pile_up() -> None:
    """A process that lives long must not try ever harder."""

    from igneous_airflow.storage.cloud_files_mended import mend_cloud_files

    mend_cloud_files()
    for _ in range(2 * sys.getrecursionlimit()):
        interfaces.retry(lambda: 1)
    assert interfaces.retry(lambda: 1)() == 1
    with pytest.raises(ValueError, match="at once"):
        interfaces.retry(_refused)()


def _refused() -> None:
    error = ValueError("at once")
    error.code = "403"  # type: ignore[attr-defined]
    raise error
