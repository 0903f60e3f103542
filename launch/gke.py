"""Submits a run to Kubernetes as a JobSet: TPU slices on GKE, or GPU nodes. `python -m launch.gke --help`."""

import argparse
import json
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from dalle_jax.errors import UserError, closest, run_main
from launch.cluster.accelerators import GPUS, Slice, parse_slice
from launch.cluster.command_checks import check_folders, check_slices

EXAMPLE = """example:
  python -m launch.gke --name=dalle --accelerator=v5e-256 --slices=2 --spot --image=REGISTRY/dalle-jax:tpu \\
      -- python -m launch.train --config=configs/decoder_12b.py --workdir=gs://BUCKET/RUN --config.mesh.slices=2 ...
  python -m launch.gke --name=dalle --accelerator=h100 --nodes=4 --gpus=8 --image=REGISTRY/dalle-jax:cuda \\
      -- python -m launch.train --config=configs/decoder_1b.py --workdir=gs://BUCKET/RUN ...
  (... is the data and the codec, as the config's docstring has them)

  kubectl logs --follow --prefix --selector=jobset.sigs.k8s.io/jobset-name=dalle    follow
  kubectl get jobset dalle                                     how is it?
  kubectl delete jobset dalle                                  save and stop; the same command goes on with it
"""

TPU_TOLERATION = {"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}
GPU_TOLERATION = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
SPOT_TOLERATION = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the options")


def make_parser() -> Parser:
    """The options; those of Kubernetes have its names."""
    parser = Parser("python -m launch.gke", description=__doc__, epilog=EXAMPLE, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--name", required=True, type=_matching(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?", "small letters, digits and dashes"))
    add("--accelerator", required=True, help="v4-N, v5e-N, v5p-N, v6e-N, or a GPU: " + ", ".join(GPUS))
    add("--slices", type=_count, default=1, help="of TPUs, joined by the network; training: --config.mesh.slices too")
    add("--nodes", type=_count, default=1, help="of GPUs; one process each")
    add("--gpus", type=_count, default=8, help="of a node")
    add("--image", required=True, type=_matching(r"[\w.:/@-]+", "an image's name"), help="built from launch/Dockerfile")
    add("--namespace", default="default", type=_matching(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "a namespace's name"))
    add("--spot", action="store_true", help="on nodes that may be taken away at any time")
    queue = _matching(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", "a queue's name")
    add("--queue", default="", type=queue, help="Kueue's local queue that admits it")
    address = _matching(r"([A-Za-z0-9][\w.-]*@[\w.-]+)?", "a service account's address")
    add("--service-account", default="", type=address, help="Google service account for gs://, by Workload Identity")
    claim = _matching(r"([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?", "a claim's name")
    add(
        "--cache-volume",
        default="",
        type=claim,
        help="claim of a volume that all pods write: caches outlive them there",
    )
    add("--restarts", type=_count, default=1000, help="after preemptions and crashes together")
    add("--grace", type=_count, default=120, help="seconds from SIGTERM to SIGKILL; spot nodes give 25 at the most")
    add("--dry-run", "--dry_run", action="store_true", help="print the manifest")
    return parser


def _matching(pattern: str, what: str):
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"'{text}' is not {what}")
        return text

    return check


def _count(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def fill_in(options: argparse.Namespace, command: Sequence[str]) -> str:
    """The manifest.

    Raises:
      UserError: the accelerator is unknown, or options do not go with it.
    """
    gpu = GPUS.get(options.accelerator)
    fields = _gpu_fields(options, gpu) if gpu else _tpu_fields(options, _slice(options))
    if options.spot:
        fields["node_selector"] |= {"cloud.google.com/gke-spot": "true"}
        fields["tolerations"] += [SPOT_TOLERATION]
    google, claim = options.service_account, options.cache_volume
    fields |= {
        "name": options.name,
        "namespace": options.namespace,
        "account_annotations": {"iam.gke.io/gcp-service-account": google} if google else {},
        "labels": {"kueue.x-k8s.io/queue-name": options.queue} if options.queue else {},
        "restarts": options.restarts,
        "grace": options.grace,
        "image": options.image,
        "command": ["tini", "--", *command],
        # An empty folder goes with its pod.
        "cache": {"name": "cache"} | ({"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}),
    }
    template = string.Template((Path(__file__).parent / "cluster" / "jobset.yaml").read_text())
    return template.substitute({key: json.dumps(value) for key, value in fields.items()})  # JSON is YAML


def _slice(options: argparse.Namespace) -> Slice:
    if not re.match(r"v\d", options.accelerator):
        near = closest(options.accelerator, GPUS)
        raise UserError(f"there is no GPU '{options.accelerator}'{near or ':'} say {', '.join(GPUS)}, or v5e-256")
    if options.nodes != 1:
        raise UserError(
            f"--nodes={options.nodes} is for GPUs: {options.accelerator} has the machines it has; see --slices"
        )
    return parse_slice(options.accelerator)


def _tpu_fields(options: argparse.Namespace, tpu: Slice) -> dict[str, Any]:
    """One job a slice, one pod a machine; GKE tells each process of the others."""
    return {
        "job": "slice",
        "replicas": options.slices,
        "hosts": tpu.hosts,
        # Each job gets a node pool, which is a slice, for itself.
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        "node_selector": {
            "cloud.google.com/gke-tpu-accelerator": tpu.generation.gke_accelerator,
            "cloud.google.com/gke-tpu-topology": tpu.topology,
        },
        "tolerations": [TPU_TOLERATION],
        "limits": {"google.com/tpu": min(tpu.chips, 4)},
        # The chips are devices that only root may open, and their memory is pinned beyond the usual limit.
        "pod_security": {"runAsUser": 0},
        "container_security": {"privileged": True},
        # Between slices: without the detour of a pod's own network.
        "host_network": True,
        "dns_policy": "ClusterFirstWithHostNet",
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}, {"containerPort": 8482}],
    }


def _gpu_fields(options: argparse.Namespace, label: str) -> dict[str, Any]:
    """One job, since JAX counts the processes of a job; one pod a node, with all of its GPUs."""
    if options.slices != 1:
        raise UserError(f"--slices={options.slices} is for TPUs: say --nodes for {options.accelerator}")
    return {
        "job": "node",
        "replicas": 1,
        "hosts": options.nodes,
        "annotations": {},
        "node_selector": {"cloud.google.com/gke-accelerator": label},
        "tolerations": [GPU_TOLERATION],
        "limits": {"nvidia.com/gpu": options.gpus},
        "pod_security": {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000},
        "container_security": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "host_network": False,
        "dns_policy": "ClusterFirst",
        "ports": [{"containerPort": 55527}],
    }


def main() -> int:
    """Fills the manifest in, and applies or prints it."""
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = make_parser().parse_args(arguments[:cut]), arguments[cut + 1 :]
    if not command:
        raise UserError("no command given: put it last, as in -- python -m launch.train --config=configs/X.py ...")
    check_folders(command)
    if options.accelerator not in GPUS:
        check_slices(command, options.slices)
    manifest = fill_in(options, command)
    if options.dry_run:
        print(manifest, end="")
        return 0
    if shutil.which("kubectl") is None:
        raise UserError("the command kubectl is not here: install it, or take what --dry-run prints to it")
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=manifest, text=True).returncode


if __name__ == "__main__":
    run_main(main)
