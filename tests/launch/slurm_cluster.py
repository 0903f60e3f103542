"""A Slurm of two nodes on this machine, from the system's packages (Debian: slurmctld slurmd slurm-client munge).

Its daemons and commands know each other by munge, as those of a real cluster do, where munge is installed.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

NEEDED = ("slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
{authentication}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=10
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


BY_MUNGE = """
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={socket},cred_expire=5
"""
UNSEEN = """
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
"""
SEARCH = os.environ["PATH"] + ":/usr/sbin:/usr/local/sbin"


def missing() -> str:
    """Which daemons or commands are not here, or an empty string."""
    return ", ".join(name for name in NEEDED if shutil.which(name, path=SEARCH) is None)


class SlurmCluster:
    """Daemons in the foreground, with a configuration and ports of their own; ends them and all jobs on exit."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        self.environment = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": SEARCH,
        }

    def __enter__(self) -> "SlurmCluster":
        (self.folder / "state").mkdir(parents=True)
        (self.folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # two devices that are there
        try:
            by = self._start_munge() if shutil.which("munged", path=SEARCH) else UNSEEN
            names = {"host": socket.gethostname(), "user": getpass.getuser(), "folder": self.folder}
            text = CONFIG.format(**names, ports=_free_ports(), authentication=by.strip())
            (self.folder / "slurm.conf").write_text(text)
            self._start("slurmctld", "-D", "-c")
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node)
            self.wait(lambda: self("sinfo", "--noheader", "--format=%T%D").strip() == "idle2", "two idle nodes", 120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self("scancel", f"--user={getpass.getuser()}", "--full", check=False)
        for _ in range(60):  # what a job runs ends before the daemons that would end it
            if not self("squeue", "--noheader", check=False).strip():
                break
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)

    def _start_munge(self) -> str:
        """A munge with a key of its own; returns what Slurm's configuration says of it."""
        places = {name: self.folder / f"munge.{name}" for name in ("key", "socket", "pid", "seed", "log")}
        places["key"].write_bytes(os.urandom(128))
        places["key"].chmod(0o600)
        files = [f"--{name}-file={places[name]}" for name in ("key", "pid", "seed", "log")]
        # Forced: the folders above are those of a test, which a system's daemon would not trust.
        self._start("munged", "--foreground", "--force", f"--socket={places['socket']}", *files)
        self.wait(places["socket"].exists, "munge", 60)
        return BY_MUNGE.format(socket=places["socket"])

    def _start(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}-{len(self._daemons)}.log", "w") as log:
            daemon = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        self._daemons.append(daemon)

    def __call__(self, *command: str, check: bool = True) -> str:
        """A command's output."""
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}\n{self._logs()}"
        return done.stdout

    def wait(self, true: Callable[[], bool], what: str, seconds: float) -> None:
        """Until something is so."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"no {what} within {seconds} s\n{self._logs()}"
            time.sleep(0.5)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job."""
        words = self("scontrol", "show", "job", number, "--oneliner").split()
        return dict(word.partition("=")[::2] for word in words)

    def _logs(self) -> str:
        logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))]
        return "\n".join(logs)


def _free_ports() -> tuple[int, int, int]:
    """One, and two that follow each other, which is how Slurm's configuration writes them."""
    for _ in range(100):
        with socket.socket() as first, socket.socket() as second, socket.socket() as third:
            first.bind(("127.0.0.1", 0))
            second.bind(("127.0.0.1", 0))
            port = second.getsockname()[1]
            try:
                third.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return first.getsockname()[1], port, port + 1
    raise RuntimeError("no free ports")
