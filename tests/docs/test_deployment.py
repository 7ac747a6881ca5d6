"""What the deployment guides name is there, and their examples can be read."""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from botocore.session import get_session

from igneous_airflow.operators.provider import get_provider_info

ROOT = Path(__file__).parents[2]
POLICIES = ROOT / "docs" / "policies"
GUIDES = sorted((ROOT / "docs").glob("deploy-kubernetes.md"))
OURS = "\n".join(path.read_text() for path in (ROOT / "operators").glob("*.py"))


def blocks(guide: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", guide.read_text(), re.DOTALL)


@pytest.fixture(params=GUIDES, ids=lambda guide: guide.stem)
def guide(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_files_that_a_guide_names_are_there(guide: Path) -> None:
    named = set(re.findall(r"worker_image/[\w./-]+\.yaml", guide.read_text()))
    named |= {
        f"worker_image/manifests/{name}" for name in re.findall(r"`(\w+\.yaml)`", guide.read_text())
    }
    named -= {"worker_image/manifests/pod_template.yaml"}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_options_that_a_guide_sets_are_known(guide: Path) -> None:
    known = get_provider_info()["config"]["igneous"]["options"]
    for block in blocks(guide, "ini"):
        config = configparser.ConfigParser()
        config.read_string(re.sub(r"^# (\w+ = )", r"\1", block, flags=re.MULTILINE))
        assert config["igneous"].keys() <= known.keys()
        assert len(config["igneous"]) > 3


def test_policies_are_all_named_by_a_guide_and_none_is_missing() -> None:
    guides = "\n".join(path.read_text() for path in (ROOT / "docs").glob("deploy-*.md"))
    named = set(re.findall(r"\]\((?:policies/)([\w-]+\.\w+)\)", guides))
    assert named == {path.name for path in POLICIES.iterdir()}


@pytest.mark.parametrize("policy", sorted(POLICIES.glob("*.json")), ids=lambda path: path.stem)
def test_actions_of_policies_exist(policy: Path) -> None:
    document = json.loads(policy.read_text())
    assert document["Version"] == "2012-10-17"
    for statement in document["Statement"]:
        actions = statement["Action"]
        for action in [actions] if isinstance(actions, str) else actions:
            service, _, name = action.partition(":")
            model = get_session().get_service_model(service)
            # the permission for all of S3's ways to list is called as the oldest one was
            assert name in model.operation_names or action == "s3:ListBucket", action


def test_roles_of_clouds_are_for_the_account_of_the_pods() -> None:
    account = yaml.safe_load((ROOT / "worker_image/manifests/worker.yaml").read_text())["metadata"]
    namespace, name = account["namespace"], account["name"]
    (trust,) = json.loads((POLICIES / "eks-trust.json").read_text())["Statement"]
    subject = trust["Condition"]["StringEquals"]["OIDC:sub"]
    assert subject == f"system:serviceaccount:{namespace}:{name}"
    (guide,) = GUIDES
    assert f"svc.id.goog[{namespace}/{name}]" in guide.read_text()


def test_the_role_for_airflow_is_for_who_starts_pods_and_who_shows_layers() -> None:
    manifests = (ROOT / "worker_image/manifests/airflow.yaml").read_text()
    _, binding = yaml.safe_load_all(manifests)
    accounts = [f"{each['namespace']}:{each['name']}" for each in binding["subjects"]]
    (trust,) = json.loads((POLICIES / "eks-trust-airflow.json").read_text())["Statement"]
    subjects = trust["Condition"]["StringEquals"]["OIDC:sub"]
    accounts.append("airflow:airflow-api-server")
    assert subjects == [f"system:serviceaccount:{account}" for account in accounts]


@pytest.mark.parametrize("queues", ["queues", "existing-queue"])
def test_commands_of_a_guide_fill_in_every_word_of_its_policies(
    guide: Path, tmp_path: Path, queues: str
) -> None:
    """The part of the commands for EKS that needs no cluster, as it is written."""
    (block,) = (block for block in blocks(guide, "sh") if "eks-trust" in block)
    block = re.sub(r"(worker|airflow)-queues", rf"\1-{queues}", block)
    script = block[block.index("mkdir") : block.index("aws iam create-role")]
    shutil.copytree(POLICIES, tmp_path / "docs" / "policies")
    words = {"ACCOUNT": "123", "REGION": "eu-west-1", "BUCKET": "cells", "OIDC": "oidc.test/id/7"}
    words |= {"QUEUE": "tasks", "DEAD_LETTER_QUEUE": "tasks-dead"}
    subprocess.run(["sh", "-ec", script], cwd=tmp_path, env=os.environ | words, check=True)
    filled = {path.stem: path.read_text() for path in (tmp_path / "filled").iterdir()}
    assert set(filled) == set(re.findall(r"file://filled/([\w-]+)\.json", block))
    for text in filled.values():
        assert json.loads(text)["Statement"]
        assert not any(word in text for word in words)


def test_the_role_for_buckets_of_google_holds_permissions_of_objects_only() -> None:
    role = yaml.safe_load((POLICIES / "gcs-worker-role.yaml").read_text())
    assert role.keys() == {"title", "description", "stage", "includedPermissions"}
    wanted = {f"storage.objects.{verb}" for verb in ("create", "delete", "get", "list")}
    assert set(role["includedPermissions"]) == wanted


def test_messages_that_a_guide_explains_are_ours(guide: Path) -> None:
    source = re.sub(r'"\s+f?"', "", OURS)
    for message in re.findall(r"^\| `(the [^`]*)`", guide.read_text(), re.MULTILINE):
        words = message.replace("the pod ", "").partition(":")[0]
        for part in words.split(" ... "):
            assert part.removeprefix("the ") in source, part


def test_the_folder_of_the_files_is_found_as_the_guide_says() -> None:
    (guide,) = GUIDES
    (command,) = (line for line in blocks(guide, "console") if "import igneous_airflow" in line)
    _, _, script = shlex.split(command.removeprefix("$ "))
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    folder = Path(answer.stdout.decode().strip())
    assert (folder / "Dockerfile").samefile(ROOT / "worker_image" / "Dockerfile")
