"""gke/submit.sh: the manifests that it makes, against the rules of Kubernetes and GKE for them."""

import math

import pytest

from .conftest import AWKWARD

yaml = pytest.importorskip("yaml")  # comes with datasets

JOB = ["--config=configs/dpo.py", "--workdir=gs://b/dpo"]
FLAGS = ["--name=dpo", "--image=europe-docker.pkg.dev/p/r/tpu:1", *JOB]

# The parts of the JobSet v1alpha2, Job v1 and Pod v1 schemas that the manifest uses: {key: type, list of one
# type, dict of such, or a set of allowed values}. A key that is not here is not one of the API, or not one of ours.
NAMES = {str: str}
POD = {
    "restartPolicy": {"Never"},  # what a podFailurePolicy demands
    "terminationGracePeriodSeconds": int,
    "hostNetwork": bool,
    "dnsPolicy": {"ClusterFirstWithHostNet"},  # what a pod on the host's network needs to find its peers
    "nodeSelector": NAMES,
    "tolerations": [{"key": str, "operator": {"Exists"}, "effect": {"NoSchedule"}}],
    "containers": [
        {
            "name": str,
            "image": str,
            "args": [str],
            "securityContext": {"privileged": bool},
            "envFrom": [{"secretRef": {"name": str}}],
            "resources": {"requests": {"google.com/tpu": int}, "limits": {"google.com/tpu": int}},
        }
    ],
}
FAILURE = {
    "action": {"Count", "FailJob"},
    "onPodConditions": [{"type": {"DisruptionTarget"}, "status": {"True"}}],
    "onExitCodes": {"containerName": str, "operator": {"In", "NotIn"}, "values": [int]},
}
JOB_SPEC = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed"},
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [FAILURE]},
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str, "namespace": str, "annotations": NAMES},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": {"Recreate", "BlockingRecreate"},
            "rules": [
                {
                    "name": str,
                    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                    "onJobFailureReasons": [str],
                }
            ],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB_SPEC}}],
    },
}


def check(value, schema, where="manifest"):
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, part in value.items():
            assert isinstance(key, str) and (key in schema or str in schema), f"{where}.{key}"
            check(part, schema.get(key, schema.get(str)), f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, where
        for i, part in enumerate(value):
            check(part, schema[0], f"{where}[{i}]")
    elif isinstance(schema, set):
        assert value in schema, (where, value)
    else:
        assert type(value) is schema, (where, value)


def submit(fakes, *flags):
    """What reaches kubectl as a manifest."""
    fakes.answer("kubectl", "apply", run="sys.stdout.write(sys.stdin.read())", always=True)
    ran = fakes.run("launch/gke/submit.sh", *FLAGS, *flags)
    assert ran.returncode == 0, ran.stderr
    manifest = yaml.safe_load(ran.stdout)
    check(manifest, JOBSET)
    return manifest


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


SLICES = [
    # type, GKE's name of the accelerator, topology, machines, chips in each
    ("v4-8", "tpu-v4-podslice", "2x2x1", 1, 4),
    ("v4-64", "tpu-v4-podslice", "2x4x4", 8, 4),
    ("v5e-1", "tpu-v5-lite-podslice", "1x1", 1, 1),
    ("v5e-8", "tpu-v5-lite-podslice", "2x4", 1, 8),
    ("v5litepod-64", "tpu-v5-lite-podslice", "8x8", 16, 4),
    ("v5p-16", "tpu-v5p-slice", "2x2x2", 2, 4),
    ("v5p-128", "tpu-v5p-slice", "4x4x4", 16, 4),
    ("v5p-2048", "tpu-v5p-slice", "8x8x16", 256, 4),
    ("v6e-4", "tpu-v6e-slice", "2x2", 1, 4),
    ("v6e-8", "tpu-v6e-slice", "2x4", 1, 8),
    ("v6e-16", "tpu-v6e-slice", "4x4", 4, 4),
    ("v6e-256", "tpu-v6e-slice", "16x16", 64, 4),
    ("tpu7x-8", "tpu7x", "2x2x1", 1, 4),
    ("tpu7x-16", "tpu7x", "2x2x2", 2, 4),
    ("tpu7x-128", "tpu7x", "4x4x4", 16, 4),
]


@pytest.mark.parametrize("kind, accelerator, topology, hosts, chips", SLICES)
def test_one_slice_of_every_generation(fakes, kind, accelerator, topology, hosts, chips):
    manifest = submit(fakes, f"--type={kind}")
    job, pod = job_of(manifest), pod_of(manifest)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    assert job["parallelism"] == job["completions"] == hosts
    amount = {"google.com/tpu": chips}
    assert pod["containers"][0]["resources"] == {"requests": amount, "limits": amount}
    assert math.prod(map(int, topology.split("x"))) == hosts * chips


@pytest.mark.parametrize(
    "generation, cores, sizes",
    [("v4", 2, 11), ("v5p", 2, 11), ("v5e", 1, 8), ("v6e", 1, 8), ("tpu7x", 2, 11)],
)
def test_the_table_adds_up(fakes, generation, cores, sizes):
    """The product of a topology is the number of chips, and the machines hold exactly these."""
    script = """
        source launch/common.sh; source launch/tpu_types.sh
        for ((size = 1; size <= 16384; size *= 2)); do
            (describe_tpu "$GENERATION-$size"; echo $size $TPU_TOPOLOGY $TPU_CHIPS $TPU_HOSTS $TPU_CHIPS_PER_HOST) || :
        done
    """
    rows = fakes.run("bash", "-c", script, GENERATION=generation).stdout.splitlines()
    assert len(rows) == sizes
    for row in rows:
        topology = row.split()[1]
        size, chips, hosts, each = (int(word) for word in row.split() if "x" not in word)
        assert math.prod(map(int, topology.split("x"))) == chips == hosts * each == size // cores


def test_several_slices_on_node_pools_of_their_own(fakes):
    manifest = submit(fakes, "--type=v5e-16", "--slices=4")
    assert manifest["spec"]["replicatedJobs"][0]["replicas"] == 4
    assert job_of(manifest)["parallelism"] == 4
    assert manifest["metadata"]["annotations"] == {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
    }


@pytest.mark.parametrize("restarts", [0, 3])
def test_why_a_pod_ended_decides_what_happens(fakes, restarts):
    """Plays Kubernetes' and JobSet's rules on the manifest."""
    manifest = submit(fakes, "--type=v5p-16", f"--max-restarts={restarts}")
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]

    def outcome(code, disrupted=False):
        for rule in job["podFailurePolicy"]["rules"]:
            if "onPodConditions" in rule:
                met = disrupted
            else:
                codes = rule["onExitCodes"]
                assert codes["containerName"] == pod_of(manifest)["containers"][0]["name"]
                met = (code in codes["values"]) == (codes["operator"] == "In")
            if met:
                break
        assert job["backoffLimit"] == 0  # so that a pod that counts fails the Job
        reason = {"Count": "BackoffLimitExceeded", "FailJob": "PodFailurePolicy"}[rule["action"]]
        return next(rule["action"] for rule in policy["rules"] if reason in rule["onJobFailureReasons"])

    assert outcome(75) == outcome(137, disrupted=True) == outcome(75, disrupted=True)
    assert outcome(75) == "RestartJobSetAndIgnoreMaxRestarts"
    assert outcome(1) == outcome(137) == outcome(70) == "RestartJobSet"
    assert policy["maxRestarts"] == restarts
    assert pod_of(manifest)["terminationGracePeriodSeconds"] >= 300


def test_arguments_survive_yaml_and_kubernetes(fakes):
    args = pod_of(submit(fakes, "--type=v4-8", *AWKWARD))["containers"][0]["args"]
    # Kubernetes puts a variable in place of $(NAME), and makes $ of $$. None of ours may be left for it to replace.
    assert all("$" not in arg.replace("$$", "") for arg in args)
    assert [arg.replace("$$", "$") for arg in args] == ["train", *JOB, *AWKWARD]


def test_capacity(fakes):
    assert (
        pod_of(submit(fakes, "--type=v4-8", "--spot"))["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    )
    reserved = pod_of(submit(fakes, "--type=v4-8", "--reservation=r-1"))["nodeSelector"]
    assert reserved["cloud.google.com/reservation-name"] == "r-1"


def test_namespace(fakes):
    manifest = submit(fakes, "--type=v4-8", "--namespace=no")
    assert manifest["metadata"]["namespace"] == "no"
    assert fakes.calls == [["kubectl", "apply", "--filename=-"]]


def test_pods_are_the_service_account_of_their_node_pool(fakes):
    """An account of Kubernetes would have no effect on the host's network, so none can be given."""
    pod = pod_of(submit(fakes, "--type=v4-8"))
    assert pod["hostNetwork"] is True and "serviceAccountName" not in pod
    refused = fakes.run("launch/gke/submit.sh", *FLAGS, "--type=v4-8", "--service-account=on")
    assert refused.returncode == 2 and "'--service-account=on' is not a flag" in refused.stderr


def test_secrets_go_into_a_secret(fakes, tmp_path):
    secret = tmp_path / "tpu.env"
    secret.write_text("HF_TOKEN=hf_secret\n")
    fakes.answer("kubectl", "create", out="kind: Secret\n")
    fakes.answer("kubectl", "apply", run="assert sys.stdin.read() == 'kind: Secret\\n'")
    manifest = submit(fakes, "--type=v4-8", f"--env-file={secret}")
    assert pod_of(manifest)["containers"][0]["envFrom"] == [{"secretRef": {"name": "dpo-env"}}]
    assert sorted(fakes.calls) == [
        ["kubectl", "apply", "--filename=-"],
        ["kubectl", "apply", "--filename=-"],
        [
            *"kubectl create secret generic dpo-env --namespace=default".split(),
            f"--from-env-file={secret}",
            "--dry-run=client",
            "--output=yaml",
        ],
    ]
    assert "hf_secret" not in str(manifest) + str(fakes.calls)


def test_a_dry_run_prints_the_same_manifest(fakes):
    real = submit(fakes, "--type=v5p-16", *AWKWARD)
    shown = fakes.run("launch/gke/submit.sh", *FLAGS, "--type=v5p-16", *AWKWARD, "--dry-run").stdout
    manifest, command = shown.rsplit("kubectl apply", 1)
    assert yaml.safe_load(manifest) == real and command == " --filename=-\n"
    assert len(fakes.calls) == 1
