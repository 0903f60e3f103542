"""launch.gke: what it refuses, the manifests it makes, and these against the published schemas."""

import ast
import sys

import pytest
import yaml

from dalle_jax.errors import UserError
from launch.cluster.accelerators import GENERATIONS, parse_slice
from launch.cluster.command_checks import check_slices
from tests.launch.starters import ROOT, assert_golden, assert_refused, run, script

pytestmark = pytest.mark.entry

NAMED = ["--name=dalle", "--image=us-docker.pkg.dev/p/r/dalle-jax:tpu"]
TRAIN = ["--", "python", "-m", "launch.train", "--config=configs/decoder_12b.py", "--workdir=gs://bucket/run"]
PROMPT = '--prompt=a red "circle": it\'s $x #1\n- and {more}'
GENERATE = ["--", "python", "-m", "launch.generate", "--workdir=gs://bucket/run", PROMPT]
MANIFESTS = {
    "tpu": ["--accelerator=v5e-16", *TRAIN],
    "tpu_slices": ["--accelerator=v4-128", "--slices=2", "--spot", "--queue=team", "--namespace=models",
                   "--service-account=trainer@p.iam.gserviceaccount.com", "--restarts=5", "--grace=25",
                   "--cache-volume=dalle-cache", *GENERATE],
    "gpu": ["--accelerator=h100", "--nodes=4", "--gpus=8", "--spot", *TRAIN],
}  # fmt: skip


def gke(*arguments: str, **environment: str):
    return run([sys.executable, "-m", "launch.gke", *arguments], **environment)


def manifest(name: str) -> str:
    done = gke(*NAMED, "--dry-run", *MANIFESTS[name])
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--name=dalle", *TRAIN], ["required", "--accelerator", "--image"]),
        (["--name=Dalle", *TRAIN], ["--name", "'Dalle' is not small letters"]),
        ([*NAMED, "--accelerator=h10", *TRAIN], ["no GPU 'h10'", "did you mean 'h100'"]),
        ([*NAMED, "--accelerator=v5e-257", *TRAIN], ["no slice v5e-257", "128, 256"]),
        ([*NAMED, "--accelerator=h100", "--slices=2", *TRAIN], ["--slices=2 is for TPUs"]),
        ([*NAMED, "--accelerator=v4-8", "--nodes=2", *TRAIN], ["--nodes=2 is for GPUs"]),
        ([*NAMED, "--accelerator=v4-8", "--slices=none", *TRAIN], ["--slices", "'none'", "whole number"]),
        ([*NAMED, "--accelerator=v4-8", "--queue=my team", *TRAIN], ["--queue", "'my team' is not a queue's name"]),
        ([*NAMED, "--accelerator=v4-8", "--service-account=me", *TRAIN], ["'me' is not a service account's address"]),
        ([*NAMED, "--accelerator=v4-8", "--cache-volume=/mnt", *TRAIN], ["'/mnt' is not a claim's name"]),
        ([*NAMED, "--accelerator=v4-8", "--spt", *TRAIN], ["--spt", "--help"]),
        ([*NAMED, "--accelerator=v4-8"], ["no command given"]),
        ([*NAMED, "--accelerator=v4-8", "--", "python", "--workdir=runs/x"], ["--workdir=runs/x", "gs://"]),
        ([*NAMED, "--accelerator=h100", "--", "python", "--workdir", "runs/x"], ["--workdir=runs/x", "gs://"]),
        ([*NAMED, "--accelerator=v4-8", "--slices=2", *TRAIN], ["--slices=2", "add --config.mesh.slices=2"]),
    ],
)
def test_refusals(arguments, parts):
    assert_refused(gke("--dry-run", *arguments), *parts)  # what is not refused is not applied


def test_slices_of_the_mesh():
    """Training says how many slices it is laid over; what takes those that are there need not, nor do GPUs."""
    check_slices([*TRAIN, "--config.mesh.slices=4", "--config.mesh.slices", "2"], 2)
    check_slices(TRAIN, 1)
    check_slices(GENERATE, 2)
    for words in (["-m", "launch.efficiency"], ["launch/train.py"], ["launch.local", "--", "-m", "launch.train"]):
        with pytest.raises(UserError, match="add --config.mesh.slices=2"):
            check_slices(["python", *words], 2)
    with pytest.raises(UserError, match="--slices=1, but the command says --config.mesh.slices=2"):
        check_slices([*TRAIN, "--config.mesh.slices=2"], 1)
    assert gke(*NAMED, "--accelerator=h100", "--dry-run", *TRAIN, "--config.mesh.slices=2").returncode == 0


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(name):
    text = manifest(name)
    assert_golden(f"gke.{name}.yaml", text)
    account, role, binding, jobset = yaml.safe_load_all(text)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == binding["subjects"][0]["name"] == account["metadata"]["name"]
    command = MANIFESTS[name]
    assert pod["containers"][0]["command"] == ["tini", "--", *command[command.index("--") + 1 :]]


def test_apply(tmp_path):
    """What kubectl gets is the manifest, and its exit code is the script's."""
    program = script(tmp_path / "kubectl", '#!/bin/sh\necho "$@" >&2; cat; exit 3\n')
    done = gke(*NAMED, *MANIFESTS["tpu"], PATH=f"{program.parent}:/usr/bin:/bin")
    assert done.returncode == 3
    assert done.stderr == "apply -f -\n"
    assert done.stdout == manifest("tpu")
    assert_refused(gke(*NAMED, *MANIFESTS["tpu"], PATH=str(tmp_path / "nothing")), "kubectl is not here", "--dry-run")


def test_slices():
    """Sizes, topologies and machines agree; either way of writing a v5e is read."""
    for name, generation in GENERATIONS.items():
        for chips, topology in generation.topologies.items():
            tpu = parse_slice(f"{name}-{chips * generation.cores_per_chip}")
            product = 1
            for side in topology.split("x"):
                product *= int(side)
            assert (tpu.chips, tpu.topology, product) == (chips, topology, chips)
            assert parse_slice(tpu.accelerator_type) == tpu
            assert tpu.hosts * 4 == chips or chips < 4
    assert parse_slice("v5e-256").accelerator_type == "v5litepod-256"
    assert parse_slice("v5p-128").chips == 64


def test_starters_need_nothing_installed():
    """They run on a laptop with Python alone."""
    for file in ("launch/cluster/accelerators.py", "launch/cluster/command_checks.py", "launch/gke.py"):
        nodes = list(ast.walk(ast.parse((ROOT / file).read_text())))
        names = [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
        names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        assert {name.split(".")[0] for name in names} <= {"dalle_jax", "launch"} | sys.stdlib_module_names
    done = run([sys.executable, "-S", "-m", "launch.gke", *NAMED, "--dry-run", *MANIFESTS["tpu"]])
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_against_the_kubernetes_schemas(name):
    """Accounts and roles, and the job and pod inside the JobSet, by the strict schemas: no unknown field."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs the `clusters` extra").validate
    *plain, jobset = yaml.safe_load_all(manifest(name))
    template = jobset["spec"]["replicatedJobs"][0]["template"]
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}, "spec": template["spec"]}
    for document in [*plain, job]:
        for version in ("1.30.0", "1.37.0"):
            validate(document, version, strict=True)
    job["spec"]["template"]["spec"]["serviceAcount"] = "x"
    with pytest.raises(Exception, match="serviceAcount"):
        validate(job, "1.37.0", strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MANIFESTS)
def test_against_the_jobset_api(name):
    """By the models generated from the JobSet API: nothing is refused, and nothing that they do not know is left."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="needs the `clusters` extra")
    *_, jobset = yaml.safe_load_all(manifest(name))
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2" and jobset["kind"] == "JobSet"

    assert lost(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == []
    jobset["spec"]["failurePolicy"]["maxRestart"] = 1
    assert lost(jobset, models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()) == ["spec.failurePolicy.maxRestart"]


def lost(ours, theirs, path: str = "") -> list[str]:
    """What reading and writing took from a document; defaults may come, empty mappings go."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        kept = [(f"{path}.{key}".lstrip("."), x, theirs.get(key)) for key, x in ours.items() if x != {}]
        return [line for name, x, y in kept for line in lost(x, y, name)]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [line for i, pair in enumerate(zip(ours, theirs, strict=True)) for line in lost(*pair, f"{path}[{i}]")]
    return [] if ours == theirs else [path]
