"""Runs the tests of pods against a real API server with its controllers; not a part of the suite.

    python tests/operators/kubernetes/real_cluster.py FOLDER [arguments of pytest ...]

FOLDER holds the programs etcd, kube-apiserver and kube-controller-manager, and kubectl is in PATH.
Rights are what the shipped manifests say: the account that the tests use for Airflow is one of
those that `airflow.yaml` names. In the end it is printed which of its rights nobody has used.
"""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import yaml

HERE = Path(__file__).parent
MANIFESTS = HERE.parents[2] / "worker_image" / "manifests"
#: token, name and groups of the accounts of the tests
ACCOUNTS = {
    "admin": ("administrator", "system:masters"),
    "airflow": ("system:serviceaccount:airflow:airflow-worker", "system:serviceaccounts"),
    "nobody": ("nobody", ""),
}
# every request of Airflow's
AUDIT = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata", "users": [ACCOUNTS["airflow"][0]]}],
}
# others would take the only node for dead, or want certificates for it
CONTROLLERS = "job,garbagecollector,namespace,serviceaccount,serviceaccount-token"


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


@contextmanager
def running(folder: Path, *command: str) -> Iterator[None]:
    """Run a server, with its output in a file of its name, until the block is left."""
    name = Path(command[0]).name
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def kubeconfig(folder: Path, port: int, token: str) -> Path:
    """The administrator's, for kubectl and the controllers."""
    certificate = str(folder / "apiserver.crt")
    server = {"server": f"https://127.0.0.1:{port}", "certificate-authority": certificate}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "tests",
        "clusters": [{"name": "tests", "cluster": server}],
        "users": [{"name": "admin", "user": {"token": token}}],
        "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "admin"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return path


def kubectl(config: Path, *arguments: str) -> bool:
    command = ["kubectl", f"--kubeconfig={config}", *arguments]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode == 0


def wait_for(config: Path) -> None:
    deadline = time.monotonic() + 120
    while not kubectl(config, "get", "--raw", "/readyz"):
        if time.monotonic() > deadline:
            raise TimeoutError("the API server does not answer")
        time.sleep(1)


def rights_used(log: Path) -> str:
    """Say which rights of Airflow's role nobody used, and what was refused to Airflow."""
    used, refused = set(), set()
    for event in map(json.loads, log.read_text().splitlines()):
        if meant := event.get("objectRef"):
            resource = "/".join(filter(None, (meant["resource"], meant.get("subresource"))))
            allowed = event["annotations"]["authorization.k8s.io/decision"] == "allow"
            (used if allowed else refused).add(f"{event['verb']} {resource}")
    role, _ = yaml.safe_load_all((MANIFESTS / "airflow.yaml").read_text())
    granted = {
        f"{verb} {resource}"
        for rule in role["rules"]
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }
    unused = ", ".join(sorted(granted - used)) or "none"
    return f"rights not used: {unused}; refused: {', '.join(sorted(refused)) or 'nothing'}\n"


def main(programs: Path, arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        clients, peers, port, manager = free_ports(4)
        tokens = {account: secrets.token_hex(16) for account in ACCOUNTS}
        lines = [f'{tokens[a]},{user},{a},"{group}"' for a, (user, group) in ACCOUNTS.items()]
        (folder / "tokens.csv").write_text("\n".join(lines) + "\n")
        (folder / "audit.yaml").write_text(json.dumps(AUDIT))
        key = folder / "service-accounts.pem"
        subprocess.run(
            ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True
        )
        store, peer = (f"http://127.0.0.1:{number}" for number in (clients, peers))
        etcd = ["--data-dir", str(folder / "etcd"), "--listen-client-urls", store]
        etcd += ["--advertise-client-urls", store, "--listen-peer-urls", peer]
        etcd += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
        stack.enter_context(running(folder, str(programs / "etcd"), *etcd))
        server = {
            "etcd-servers": store,
            "bind-address": "127.0.0.1",
            "secure-port": str(port),
            "cert-dir": str(folder),
            "token-auth-file": str(folder / "tokens.csv"),
            "authorization-mode": "RBAC",
            "audit-policy-file": str(folder / "audit.yaml"),
            "audit-log-path": str(folder / "audit.log"),
            "service-account-issuer": "https://tests",
            "service-account-key-file": str(key),
            "service-account-signing-key-file": str(key),
            "kubelet-preferred-address-types": "InternalIP",
        }
        options = [f"--{option}={value}" for option, value in server.items()]
        stack.enter_context(running(folder, str(programs / "kube-apiserver"), *options))
        config = kubeconfig(folder, port, tokens["admin"])
        wait_for(config)
        options = [f"--kubeconfig={config}", f"--controllers={CONTROLLERS}"]
        options += [f"--service-account-private-key-file={key}", "--leader-elect=false"]
        options += ["--bind-address=127.0.0.1", f"--secure-port={manager}", "--port=0"]
        options += [f"--cert-dir={folder}/manager"]
        stack.enter_context(running(folder, str(programs / "kube-controller-manager"), *options))
        for file in ("namespace", "worker", "airflow"):
            if not kubectl(config, "apply", "-f", str(MANIFESTS / f"{file}.yaml")):
                raise RuntimeError(f"{file}.yaml cannot be applied")
        cluster = {
            "address": f"https://127.0.0.1:{port}",
            "tokens": tokens,
            "certificate": [str(folder / "apiserver.crt"), str(folder / "apiserver.key")],
            "eviction": "policy/v1beta1",
        }
        environment = {**os.environ, "IGNEOUS_AIRFLOW_CLUSTER": json.dumps(cluster)}
        pytest = [sys.executable, "-m", "pytest", *arguments]
        code = subprocess.run(pytest, env=environment, check=False).returncode
        sys.stdout.write(rights_used(folder / "audit.log"))
        return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # which ends the servers as well
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
