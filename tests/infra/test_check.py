"""The files in infra/ pass every check of infra/check.py, and each check sees what it is for.

A broken file is the text of a committed one with one place changed. No check may open a connection.
"""

import socket
from typing import NamedTuple

import pytest

from infra import check
from infra.checks.files import read_files
from infra.checks.job_commands import job_problem
from infra.checks.shell import code_blocks, option, simple_commands

FILES = read_files()
AWS, GCP = "infra/aws/cluster.yaml", "infra/gcp/cluster.yaml"
HEAD_POLICY, NODE_POLICY = "infra/aws/head-policy.json", "infra/aws/node-policy.json"
NAMESPACE, CLUSTER = "infra/kuberay/namespace.yaml", "infra/kuberay/raycluster.yaml"
JOB = "infra/kuberay/rayjob.yaml"
COMPOSE, UNIT = "infra/mlflow/compose.yaml", "infra/mlflow/mlflow.service"
IMAGE, SERVER = "infra/Dockerfile", "infra/mlflow/Dockerfile"
README = "infra/README.md"


class Broken(NamedTuple):
    """One change to one file, and words of the fault that it must give."""

    path: str
    old: str
    new: str
    complaint: str


BROKEN = {
    "Ray accepts the cluster files": [
        Broken(AWS, "max_workers: 4\nup", "max_worker: 4\nup", "max_worker"),
        Broken(AWS, "min_workers: 0\n", "min_workers: 5\n", "smaller than the"),
        Broken(AWS, "use_internal_ips", "use_internal_ip", "a setting that Ray does not know"),
        Broken(AWS, "head_node_type: head", "head_node_type: had", "must be one of"),
        Broken(GCP, "resources: {CPU: 8, GPU: 1}", "resources: {GPU: half}", "'half'"),
        Broken(GCP, "type: gcp", "type: gpc", "NotImplementedError"),
        Broken(GCP, "container_name: cdvae", "container: cdvae", "container & image name"),
        Broken(GCP, "cluster_name: cdvae-gcp", "cluster_name: [cdvae]", "$.cluster_name"),
    ],
    "on-demand heads, spot GPU workers, minimum and maximum": [
        Broken(AWS, "MarketType: spot", "MarketType: capacity-block", "a machine on demand"),
        Broken(GCP, "SPOT", "STANDARD", "a machine on demand"),
        Broken(GCP, "max_workers: 4\n    resources", "max_workers: 0\n    resources", "0, 0 of 4"),
        Broken(GCP, "min_workers: 0\n    max_workers: 4", "min_workers: 5", "5, 0 of 4"),
        Broken(AWS, "GPU: 1", "GPU: 0", "no worker type with a GPU"),
        Broken(
            AWS,
            "      InstanceType: m7i.xlarge",
            "      InstanceType: m7i.xlarge\n      InstanceMarketOptions: {MarketType: spot}",
            "a spot machine as head",
        ),
    ],
    "token, storage and MLflow reach every node": [
        Broken(AWS, "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "got disabled"),
        Broken(GCP, "    - --env RAY_AUTH_MODE=token\n", "", "RAY_AUTH_MODE: got nothing"),
        Broken(GCP, "=gs://BUCKET/runs", "=/runs", "a folder in object storage"),
        Broken(AWS, "=https://mlflow", "=mlflow", "the address of an MLflow server"),
        Broken(AWS, "/home/cdvae/.ray/auth_token", "/home/cdvae/token", "file_mounts"),
    ],
    "EC2 would take the nodes": [
        Broken(
            AWS, "InstanceType: g6", "InstanceTyp: g6", 'Unknown parameter in input: "InstanceT'
        ),
        Broken(AWS, "DeviceIndex: 0", "DeviceIndex: first", "DeviceIndex"),
        Broken(AWS, "HttpTokens: required", "HttpTokens: needed", "needed, not one of"),
        Broken(AWS, "VolumeType: gp3", "VolumeType: gp33", "gp33, not one of"),
        Broken(AWS, "VolumeSize: 200", "VolumeSize: big", "VolumeSize"),
    ],
    "IAM policies grant calls that exist, by name": [
        Broken(HEAD_POLICY, "ec2:RunInstances", "ec2:RunInstance", "ec2:RunInstance"),
        Broken(HEAD_POLICY, '"ec2:RunInstances"', '"ec2:*"', "actions by name"),
        Broken(NODE_POLICY, "ecr:Batch", "ecs:Batch", "a call that the service has"),
        Broken(NODE_POLICY, "ecr:Batch", "ecrr:Batch", "a call that the service has"),
    ],
    "Compute Engine would take the nodes": [
        Broken(GCP, "machineType: g2", "machineTyp: g2", "node_config.machineTyp: got an unknown"),
        Broken(GCP, "Model: SPOT", "Model: CHEAP", "'CHEAP'"),
        Broken(GCP, "diskSizeGb: 200", "diskSizeGb: big", "'big'"),
        Broken(GCP, "autoDelete: true", "autoDelete: sometimes", "'sometimes'"),
        Broken(GCP, "tags: &tags {items: [cdvae-ray]}", "tags: &tags [cdvae-ray]", "a mapping"),
        Broken(GCP, "items: [cdvae-ray]", "items: cdvae-ray", "a list"),
        Broken(GCP, "tags: &tags {items: [cdvae-ray]}", "tags: &tags {items: [1]}", "a string"),
    ],
    "Kubernetes and KubeRay would take the manifests": [
        Broken(CLUSTER, "maxReplicas", "maxReplica", "maxReplica"),
        Broken(CLUSTER, "ray.io/v1", "ray.io/v1alpha1", "ray.io/v1"),
        Broken(CLUSTER, "version: v2", "version: v3", "'v3'"),
        Broken(CLUSTER, 'num-cpus: "2"', "num-cpus: 2", "2 is not of type 'string'"),
        Broken(CLUSTER, "tolerations:", "toleration:", "toleration"),
        Broken(CLUSTER, "secretKeyRef: {name", "secretKeyRef: {nam", "secretKeyRef"),
        Broken(JOB, "submissionMode: K8sJobMode", "submissionMode: Mail", "'Mail'"),
        Broken(JOB, "backoffLimit: 2", "backofLimit: 2", "backofLimit"),
        Broken(JOB, "mode: token", "mode: tokens", "'tokens'"),
        Broken(JOB, "runAsUser: 1000", "runAsUser: cdvae", "cdvae"),
        Broken(NAMESPACE, "podSelector:\n    matchLabels", "podSelector:\n    labels", "labels"),
        Broken(NAMESPACE, "kind: ServiceAccount", "kind: ServiceAcount", "ServiceAcount"),
    ],
    "Ray's autoscaler reads the manifests": [
        Broken(CLUSTER, 'num-cpus: "2"', 'num-cpus: "two"', "two"),
        Broken(
            CLUSTER, "enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false", "absent"
        ),
        Broken(JOB, "minReplicas: 0", "minReplicas: 1", "1, 0, 4"),
        Broken(JOB, "maxReplicas: 4", "maxReplicas: 0", "0, 0, 0"),
        Broken(CLUSTER, 'nvidia.com/gpu: "1"', 'amd.com/gpu: "1"', "no group with a GPU"),
    ],
    "storage and MLflow reach jobs in Kubernetes": [
        Broken(CLUSTER, '"s3://BUCKET/runs"', '"/runs"', "got /runs"),
        Broken(JOB, "--storage s3://BUCKET/runs", "--storage /runs", "got /runs"),
        Broken(JOB, "--storage s3://BUCKET/runs", "", "got nothing"),
        Broken(JOB, "MLFLOW_TRACKING_URI, value", "MLFLOW_URI, value", "MLFLOW_TRACKING_URI"),
    ],
    "pods have no privileges, and have limits": [
        Broken(CLUSTER, "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot False"),
        Broken(CLUSTER, "runAsUser: 1000", "runAsUser: 0", "user 0"),
        Broken(JOB, "type: RuntimeDefault", "type: Unconfined", "Unconfined"),
        Broken(JOB, "allowPrivilegeEscalation: false", "privileged: true", "'privileged': True"),
        Broken(CLUSTER, "drop: [ALL]", "drop: [KILL]", "all capabilities dropped"),
        Broken(CLUSTER, 'limits: {cpu: "7", memory: 26Gi', 'limits: {cpu: "7"', "none for memory"),
        Broken(JOB, "requests: {cpu: 500m, memory", "requests: {memory", "none for cpu"),
        Broken(JOB, "submitterPodTemplate:", "submitterPods:", "rayjob.yaml submitter"),
    ],
    "Dockerfiles": [
        Broken(IMAGE, "USER 1000:1000", "USER root", "a user who is not root"),
        Broken(SERVER, "USER 1000:1000", "", "got none"),
        Broken(IMAGE, "WORKDIR", "WORKDIRR", "an unknown instruction"),
        Broken(IMAGE, "COPY jobs jobs", "COPY job jobs", "no such file"),
        Broken(f"{IMAGE}.dockerignore", "!tune_spaces\n", "", "a line !tune_spaces"),
        Broken(SERVER, "--constraint constraints.txt", "", "no --constraint"),
    ],
    "compose file": [
        Broken(COMPOSE, "    restart:", "    restarts:", "database.restarts"),
        Broken(COMPOSE, "services:", "version: 3\nservices:", "version"),
        Broken(COMPOSE, "retries: 12", "tries: 12", "healthcheck.tries"),
        Broken(COMPOSE, "  artifacts: {}", "  artefacts: {}", "artifacts: got none in volumes"),
        Broken(COMPOSE, "    environment: MLFLOW", "    external: MLFLOW", "environment or file"),
        Broken(COMPOSE, "database: {cond", "databas: {cond", "databas: got none in services"),
        Broken(
            COMPOSE,
            "POSTGRES_PASSWORD_FILE: /run/secrets/database_password",
            "POSTGRES_PASSWORD: ${DATABASE_PASSWORD:-mlflow}",
            "a default password",
        ),
    ],
    "systemd unit": [
        Broken(UNIT, "ProtectHome", "ProtectHomes", "ProtectHomes"),
        Broken(UNIT, "[Install]", "[Instal]", "[Instal]"),
        Broken(UNIT, "User=mlflow\n", "", "no User=mlflow"),
        Broken(UNIT, "User=mlflow", "User=root", "no User=mlflow"),
        Broken(UNIT, "ExecStart=", "ExecStop=", "no ExecStart"),
    ],
    "clusters of machines are private": [
        Broken(AWS, " --dashboard-host=127.0.0.1", "", "got nothing, which means all addresses"),
        Broken(GCP, "host=127.0.0.1", "host=0.0.0.0", "got 0.0.0.0"),
        # Ray's own default command binds the dashboard to all addresses.
        Broken(GCP, "head_start_ray_commands", "worker_setup_commands", "--dashboard-host"),
        Broken(AWS, "use_internal_ips: true", "use_internal_ips: false", "use_internal_ips"),
        Broken(AWS, "aws ssm start-session", "nc", "SSM or IAP"),
        Broken(AWS, "IpAddress: false", "IpAddress: true", "a public address"),
        Broken(AWS, "          Groups: [sg-CDVAE]\n", "", "the group that Ray makes"),
        Broken(AWS, "HttpTokens: required", "HttpTokens: optional", "HttpTokens"),
        Broken(
            GCP,
            "subnetworks/cdvae\n",
            "subnetworks/cdvae\n          accessConfigs: [{type: ONE_TO_ONE_NAT}]\n",
            "a public address",
        ),
        Broken(GCP, "networkInterfaces: &network", "xs: &network", "Ray's own"),
        Broken(GCP, "--ulimit nofile=65536:65536", "--privileged", "--privileged"),
    ],
    "clusters in Kubernetes are private": [
        Broken(CLUSTER, "serviceType: ClusterIP", "serviceType: LoadBalancer", "LoadBalancer"),
        Broken(JOB, "serviceType: ClusterIP", "serviceType: NodePort", "NodePort"),
        Broken(JOB, "containerPort: 8265", "containerPort: 8265, hostPort: 8265", "hostPort"),
        Broken(CLUSTER, "automountServiceAccountToken: false", "hostNetwork: true", "hostNetwork"),
        Broken(CLUSTER, "serviceType", "enableIngress: true\n    serviceType", "enableIngress"),
        Broken(NAMESPACE, "kind: ServiceAccount", "kind: Ingress", "got Ingress"),
        Broken(NAMESPACE, "kind: NetworkPolicy", "kind: ConfigMap", "who may enter"),
        Broken(NAMESPACE, 'ray.io/is-ray-node: "yes"\n  pol', 'a: "b"\n  pol', "who may enter"),
        Broken(
            NAMESPACE, "    - from:\n        - pod", "    - {}\n    - from:\n        - pod", "who"
        ),
        Broken(JOB, "mode: token", "mode: disabled", "without a token"),
        Broken(CLUSTER, "{name: RAY_AUTH_MODE, value: token}", "{name: A, value: b}", "without a"),
        Broken(CLUSTER, "secretKeyRef", "configMapKeyRef", "without a token"),
        Broken(CLUSTER, "              env: *token\n", "", "without a token"),
    ],
    "compose publishes on loopback": [
        Broken(COMPOSE, "127.0.0.1:5000:5000", "5000:5000", "server.ports"),
        Broken(COMPOSE, "127.0.0.1:5000:5000", "0.0.0.0:5000:5000", "server.ports"),
        Broken(COMPOSE, '"127.0.0.1:5000:5000"', "{target: 5000, published: 5000}", "server.ports"),
        Broken(COMPOSE, "internal: true", "internal: false", "only the server reaches"),
        Broken(COMPOSE, "networks: [private]", "ports: ['[::1]:1:1']", "only the server reaches"),
        Broken(COMPOSE, "    cap_drop: [ALL]", "    network_mode: host", "network_mode"),
        Broken(COMPOSE, "    cap_drop: [ALL]", "    privileged: true", "privileged"),
    ],
    "the systemd unit listens on loopback": [
        Broken(UNIT, "--host 127.0.0.1", "--host 0.0.0.0", "got 0.0.0.0"),
        Broken(UNIT, "--host 127.0.0.1", "--host ::", "got ::"),
        Broken(UNIT, "--host 127.0.0.1 ", "", "got nothing"),
    ],
    "nothing is open to everybody": [
        Broken(README, "35.235.240.0/20", "0.0.0.0/0", "got 0.0.0.0/0"),
        Broken(README, '"UserIdGroupPairs"', '"Ipv6Ranges": [{"CidrIpv6": "::/0"}], "U"', "::/0"),
        Broken(README, "ssh -N -L 127.0.0.1:5000", "ssh -N -L 0.0.0.0:5000", "got 0.0.0.0"),
        Broken(README, "port-forward service", "port-forward --address 0.0.0.0 service", "0.0.0.0"),
        Broken(README, "docker push", "docker run -p 5000:5000", "got -p 5000:5"),
        Broken(AWS, "provider:\n", "# 0.0.0.0/0\nprovider:\n", "got 0.0.0.0/0"),
    ],
    "package versions": [
        Broken("constraints.txt", "google-auth==", "boto3==1.0.0\ngoogle-auth==", "1.0.0"),
        Broken("infra/requirements-mlflow.txt", "boto3==1.44.8", "boto3==1.44.7", "got 1.44.7"),
        Broken("infra/requirements-cluster.txt", "boto3==1.44.8", "boto3", "no exact version"),
        Broken(README, "boto3==1.44.8", "boto3==1.40.0", "got 1.40.0"),
        Broken(IMAGE, "--no-deps", "ray==2.59.0 --no-deps", "got 2.59.0, expected 2.60.0"),
        Broken(README, "boto3==1.44.8", "boto4==1.44.8", "a package that is pinned"),
    ],
    "image versions": [
        Broken("constraints.txt", "ray==2.60.0", "ray==2.61.0", "0.1.0-ray2.61.0"),
        Broken("constraints.txt", "mlflow==3.17.2", "mlflow==3.18.0", "expected 3.18.0"),
        Broken("pyproject.toml", 'version = "0.1.0"', 'version = "0.2.0"', "0.2.0-ray2.60.0"),
        Broken(AWS, "cdvae-ray:0.1.0-ray2.60.0", "cdvae-ray:latest", "got latest"),
        Broken(COMPOSE, "postgres:17-bookworm", "postgres", "a tag that names its version"),
        Broken(
            IMAGE, "BASE=python:3.11-slim-bookworm\nF", "BASE=python:latest\nF", "python:latest"
        ),
    ],
    "Ray's version in manifests": [
        Broken(CLUSTER, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "got 2.59.0"),
        Broken(JOB, "rayVersion: 2.60.0", "rayVersion: 2.9.0", "got 2.9.0"),
    ],
    "versions of interfaces": [
        Broken(JOB, "ray.io/v1", "ray.io/v1alpha1", "got ray.io/v1alpha1"),
        Broken(COMPOSE, "services:", "version: '3'\nservices:", "compose ignores it"),
    ],
    "no secrets": [
        Broken(AWS, "provider:", "# AKIA" + "ABCDEFGHIJKLMNOP\nprovider:", "an AWS access key"),
        Broken(README, "## AWS", "-----BEGIN OPENSSH " + "PRIVATE KEY-----", "a private key"),
        Broken(GCP, "provider:", "# gh" + "p_" + "a1B2" * 9 + "\nprovider:", "a GitHub token"),
        Broken(
            COMPOSE, "mlflow@database", "mlflow:" + "hunter@database", "a password in an address"
        ),
        Broken(COMPOSE, "PASSWORD_FILE: /run/secrets/database_password", "PASSWORD: a", "literal"),
        Broken(UNIT, "[Install]", "Environment=PGPASSWORD=" + "mlflow\n[Install]", "literal"),
        Broken(README, "openssl rand -hex 24", "echo " + "0a1b2c3d" * 6, "a long hexadecimal"),
        Broken(README, '"$(openssl rand -hex 24)"', "mlflow", "the literal"),
        Broken(
            CLUSTER,
            "- name: RAY_AUTH_TOKEN\n        valueFrom:\n          secretKeyRef: {",
            "- name: RAY_AUTH_TOKEN\n        value: abc\n        a: {",
            "the literal",
        ),
        Broken(
            AWS, "auth:", "# wJalr" + "X1UtnFEMIK7MDENGbPxRfiCYEXAMPLEKEYab\nauth:", "random string"
        ),
    ],
    "commands exist": [
        Broken(README, "--resources.num-workers 2", "--resources.workers 2", "--resources.workers"),
        Broken(README, "jobs/train.py cifar10 ", "jobs/train.py cifar11 ", "'cifar11'"),
        Broken(README, "python jobs/train.py", "python jobs/trains.py", "no jobs/trains.py"),
        Broken(README, "ray job submit --working-dir", "ray job submit --workdir", "--workdir"),
        Broken(README, "ray job list", "ray job show", "show"),
        Broken(
            README, "ray up infra/aws/cluster.yaml", "ray up infra/aws/clusters.yaml", "no file"
        ),
        Broken(README, "ray up infra/aws/cluster.yaml --yes", "ray up --yes", "Missing argument"),
        Broken(README, '"ray status"', '"ray statuses"', "statuses"),
        Broken(README, '{"excludes": [', "{excludes: [", "is no JSON"),
        Broken(README, "--group-name", "--groupname", "unknown options groupname"),
        Broken(README, " --group-name cdvae-ray", "", "missing options group-name"),
        Broken(
            README, "aws iam create-role ", "aws iam make-role ", "unknown command iam make-role"
        ),
        Broken(README, "aws ec2 describe", "aws ec3 describe", "unknown service ec3"),
        Broken(README, "make train", "make trains", "no target trains"),
        Broken(README, 'ARGS="smoke"', 'ARGS="smoke --fast"', "--fast"),
        Broken(README, "kubectl apply", "kubctl apply", "unknown program kubctl"),
        Broken(README, "$(openssl rand", "$(opensl rand", "unknown program opensl"),
        Broken(README, "namespace.yaml\n```", "namespaces.yaml\n```", "no file infra/kuberay/name"),
        Broken(README, '"family~nvidia-580"', '"family~nvidia-580', "No closing quotation"),
        Broken(README, "python infra/check.py", "python infra/checks.py", "infra/checks.py"),
        Broken("Makefile", "\ntrain:", "\ntraining:", "no target train"),
        Broken(
            AWS, "--object-manager-port=8076 --dash", "--object-port=8076 --dash", "object-port"
        ),
        Broken(
            AWS, "aws ecr get-login-password --region", "aws ecr get-login --region", "get-login"
        ),
        Broken(AWS, "login-password --region", "login-password --registry", "registry"),
        Broken(JOB, "--data.source parquet", "--data.sorce parquet", "--data.sorce"),
        Broken(
            COMPOSE, "--artifacts-destination", "--artifact-destination", "artifact-destination"
        ),
        Broken(UNIT, "mlflow server --host", "mlflow serve --host", "serve"),
    ],
}
CASES = [
    pytest.param(name, broken, id=f"{name}: {broken.complaint}")
    for name, cases in BROKEN.items()
    for broken in cases
]


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*_):
        raise AssertionError("a check opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", check.CHECKS)
def test_the_committed_files_pass(name):
    assert [str(fault) for fault in check.CHECKS[name](FILES)] == []


def test_every_check_has_broken_files():
    assert BROKEN.keys() == check.CHECKS.keys()


@pytest.mark.parametrize(("name", "broken"), CASES)
def test_a_broken_file_gives_a_line_that_says_what_to_do(name, broken):
    assert broken.old in FILES[broken.path]
    text = FILES[broken.path].replace(broken.old, broken.new)
    faults = [str(fault) for fault in check.CHECKS[name]({**FILES, broken.path: text})]
    named = [fault for fault in faults if broken.complaint in fault]
    assert named, faults
    for part in (": got ", ", expected ", "; "):
        assert part in named[0]
    assert "\n" not in named[0]


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        (AWS, "a: [", "a file that parses"),
        (HEAD_POLICY, "{", "a file that parses"),
        (JOB, None, f"{JOB}: got no such file"),
    ],
    ids=["YAML", "JSON", "missing"],
)
def test_a_file_that_cannot_be_read_is_the_only_complaint(
    monkeypatch, capsys, path, text, complaint
):
    broken = {key: value for key, value in FILES.items() if key != path}
    monkeypatch.setattr(check, "read_files", lambda: broken | ({path: text} if text else {}))
    assert check.main() == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("FAIL  files can be read")
    assert len(said) == 2
    assert complaint in said[1]


@pytest.fixture
def only(monkeypatch):
    """A function that leaves the script one check and one change to make."""

    def leave(name, broken):
        text = FILES[broken.path].replace(broken.old, broken.new)
        monkeypatch.setattr(check, "CHECKS", {name: check.CHECKS[name]})
        monkeypatch.setattr(check, "read_files", lambda: {**FILES, broken.path: text})
        monkeypatch.setattr(check.logging, "disable", lambda _: None)

    return leave


def test_the_script_prints_faults_and_exits_with_one(only, capsys):
    only("compose publishes on loopback", Broken(COMPOSE, "127.0.0.1:5000:5000", "5000:5000", ""))
    assert check.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok    files can be read",
        "FAIL  compose publishes on loopback",
        f"      {COMPOSE} server.ports: got 5000:5000, expected nothing that others reach without "
        "authentication; bind it to loopback or a private address, or take it out",
    ]


def test_the_script_exits_with_zero_where_all_is_well(only, capsys):
    only("compose publishes on loopback", Broken(COMPOSE, "name:", "name:", ""))
    assert check.main() == 0
    assert capsys.readouterr().out.count("ok ") == 2


def test_shell_text_is_taken_apart():
    text = "A=1 B='x y' ray up f --yes > /dev/null && echo \"$(cat a)\" | sudo x; b \\\n  --c='d e'"
    assert simple_commands(text) == [
        ["ray", "up", "f", "--yes"],
        ["echo", "SUBSTITUTED"],
        ["sudo", "x"],
        ["b", "--c=d e"],
        ["cat", "a"],
    ]
    assert option(["a", "--host", "b"], "--host") == option(["--host=b"], "--host") == "b"
    assert option(["a", "--hosts", "b"], "--host") == option(["--host"], "--host") == ""


def test_code_blocks_have_their_lines():
    assert code_blocks("a\n```bash\nb\nc\n```\n```\nd\n```\n", "bash") == [(3, "b\nc\n")]


def test_a_job_that_does_not_parse_first_is_named(monkeypatch):
    from infra.checks import job_commands

    class Silent:
        @staticmethod
        def main():
            return None

    monkeypatch.setattr(job_commands, "_job", lambda _: Silent)
    assert "does not parse its command line" in job_problem("train", [])
