"""Stands in for `gcloud compute tpus`: keeps a transcript, and plays a queued resource and its machines.

Every worker of a TPU is a folder that is the HOME of what is run there over "SSH", so that
launch/cluster/tpu_worker.sh does its real work. A queued resource goes one state further each time it is described.
It is preempted once, at the look after the commands of all workers have begun for the first time; where its folder
has a file `warns`, that look sends SIGTERM to all that runs, and so many say ACTIVE before the machines go. Where
there is a file `keeps`, so many deletions are refused; where there is one `silent`, no machine answers. Its folder is
$GCLOUD_STANDIN, the transcript $GCLOUD_TRANSCRIPT.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ["GCLOUD_STANDIN"])
STATE, MACHINES, WARNS, KEEPS = HERE / "resource.json", HERE / "machines", HERE / "warns", HERE / "keeps"
WORKERS = 2
NEXT = {
    "WAITING_FOR_RESOURCES": "PROVISIONING",
    "PROVISIONING": "ACTIVE",
    "SUSPENDING": "SUSPENDED",
    "DELETING": None,
}


def main() -> int:
    """Writes the command down and plays it."""
    with open(os.environ["GCLOUD_TRANSCRIPT"], "a") as transcript:
        fcntl.flock(transcript, fcntl.LOCK_EX)
        print(json.dumps(sys.argv[1:]), file=transcript)
    command, rest = sys.argv[3:5], sys.argv[5:]
    positional = [word for word in rest if not word.startswith("--")]
    flags = dict(word[2:].partition("=")[::2] for word in rest if word.startswith("--"))
    return PLAYS[" ".join(command)](positional, flags)


def create(positional, flags) -> int:
    assert not STATE.exists()
    count = int(flags.get("node-count", 1))
    nodes = [f"{flags['node-prefix']}-{i}" for i in range(count)] if count > 1 else [flags["node-id"]]
    STATE.write_text(json.dumps({"name": positional[0], "state": "WAITING_FOR_RESOURCES", "nodes": nodes}))
    return 0


def describe(positional, flags) -> int:
    if not STATE.exists():
        print(f"ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource '{positional[0]}' was not found", file=sys.stderr)
        return 1
    resource = json.loads(STATE.read_text())
    print(resource["state"])
    state = NEXT.get(resource["state"], resource["state"])
    if state == "ACTIVE" and not MACHINES.exists():
        for node in resource["nodes"]:
            for worker in range(WORKERS):
                (MACHINES / node / str(worker)).mkdir(parents=True)
    begun = len(list(MACHINES.glob("*/*/begun"))) == len(list(MACHINES.glob("*/*")))
    if state == "ACTIVE" and begun and not (HERE / "preempted").exists() and not warned():
        (HERE / "preempted").write_text("")
        take_away()
        state = "SUSPENDING"
    STATE.write_text(json.dumps(resource | {"state": state}))
    if state is None:
        STATE.unlink()
    return 0


def warned() -> bool:
    """Whether there is still time; tells all that runs, and lets it end."""
    left = counted_down(WARNS)
    if left:
        send(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while holders() and time.monotonic() < deadline:
            time.sleep(0.05)
    return left > 0


def counted_down(file: Path) -> int:
    """The number in a file, which is one less afterwards; 0 without the file."""
    left = int(file.read_text()) if file.exists() else 0
    if left:
        file.write_text(str(left - 1))
    return left


def holders() -> list[Path]:
    """Of the runs that go on: where the number of the process stands that waits for the end."""
    found = MACHINES.glob("*/*/dalle-jax-run/holder")
    return [holder for holder in found if not (holder.parent / "exit").exists()]


def send(number: signal.Signals) -> None:
    """To every process of every run, the one that waits for its end too."""
    for holder in holders():
        os.killpg(int(holder.read_text()), number)


def take_away() -> None:
    """The machines and all that runs on them."""
    send(signal.SIGKILL)
    shutil.rmtree(MACHINES, ignore_errors=True)


def delete(positional, flags) -> int:
    if counted_down(KEEPS):
        print("ERROR: (gcloud.compute.tpus) INTERNAL: try again", file=sys.stderr)
        return 1
    take_away()
    STATE.write_text(json.dumps(json.loads(STATE.read_text()) | {"state": "DELETING"}))
    return 0


def ssh(positional, flags) -> int:
    if (HERE / "silent").exists():
        print("ssh: connect to host: Connection timed out", file=sys.stderr)
        return 255
    codes = []
    for home in homes(positional[0], flags["worker"]):
        environment = os.environ | {"HOME": str(home)}
        codes.append(subprocess.run(["bash", "-c", flags["command"]], cwd=home, env=environment).returncode)
    return max(codes, default=255)


def scp(positional, flags) -> int:
    *files, target = positional
    for home in homes(target.removesuffix(":"), flags["worker"]):
        for file in files:
            shutil.copy(file, home)
    return 0


def homes(node: str, worker: str) -> list[Path]:
    return sorted((MACHINES / node).glob("*" if worker == "all" else worker))


PLAYS = {
    "queued-resources create": create,
    "queued-resources describe": describe,
    "queued-resources delete": delete,
    "tpu-vm ssh": ssh,
    "tpu-vm scp": scp,
}

if __name__ == "__main__":
    sys.exit(main())
