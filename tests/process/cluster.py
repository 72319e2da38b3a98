"""A real SLURM on this machine for the tests in this folder: two simulated nodes with eight simulated H200s each, on
loopback, with its daemons and files in a separate folder. Needs Debian's slurm-wlm and munge; runs as root or as any
user."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DAEMONS = ("munged", "slurmctld", "slurmd")
SLURMD = ("slurmd", "-D", "-N")  # and the node's name
COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
SYSTEM_PATH = "/usr/sbin:/sbin"
HANGS = 60.0
INTERVAL = 0.3  # seconds

CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=86400
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=64 RealMemory=512000 Gres=gpu:h200:8
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=64 RealMemory=512000 Gres=gpu:h200:8
PartitionName=main Nodes=n[1-2] Default=YES State=UP
"""


def seldom(ask: Callable[[], bool]) -> Callable[[], bool]:
    """A slower polling interval for waits: each query is a process and work for the daemons, so the last answer is
    reused for a while."""
    last, answer = -INTERVAL, False

    def asked() -> bool:
        nonlocal last, answer
        if time.monotonic() - last >= INTERVAL:
            answer, last = ask(), time.monotonic()
        return answer

    return asked


def what_is_missing() -> str | None:
    """Why SLURM cannot run here, if so."""
    path = f"{os.environ['PATH']}:{SYSTEM_PATH}"
    gone = [name for name in (*DAEMONS, *COMMANDS) if shutil.which(name, path=path) is None]
    return f"{', '.join(gone)} not installed (apt-get install slurm-wlm munge)" if gone else None


class Cluster:
    """The operations that tests need. The commands run in `environment`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[tuple[str, ...], subprocess.Popen[Any]] = {}  # by command, in the order of their start
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{SYSTEM_PATH}"}

    def run(self, *command: str, check: bool = True) -> str:
        """A SLURM command's output."""
        done = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
        assert not check or done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def jobs(self) -> dict[str, dict[str, str]]:
        """Every job that ever existed, by its displayed id (`12` or `12_3`): state, name, and more."""
        fields = {"state": "T", "name": "j", "raw": "A", "reason": "r"}
        form = "|".join(["%i", *(f"%{code}" for code in fields.values())])
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", form).splitlines()
        return {job: dict(zip(fields, values, strict=True)) for job, *values in (line.split("|") for line in lines)}

    def details(self, job: str) -> dict[str, str]:
        """`scontrol show job`, by key."""
        words = self.run("scontrol", "-o", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start(self, *command: str) -> None:
        """Starts a daemon, which `running` stops."""
        out = open(self.folder / f"{command[0]}_{len(self.daemons)}.out.log", "a")  # noqa: SIM115  outlives this call
        environment = os.environ | self.environment
        self.daemons[command] = subprocess.Popen(
            command, env=environment, stdout=out, stderr=out, start_new_session=True
        )

    def tasks(self, node: str) -> dict[int, int]:
        """The processes of all tasks on a node: rank in the step by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                pairs = (pair.partition("=") for pair in (folder / "environ").read_bytes().decode().split("\0"))
                variables = {name: value for name, _, value in pairs}
                ours = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
                if ours and variables.get("SLURMD_NODENAME") == node and "SLURM_STEP_NODELIST" in variables:
                    found[int(folder.name)] = int(variables["SLURM_PROCID"])
        return found

    def lose_node(self, node: str) -> None:
        """Kills a node's slurmd and all that it has started, as a loss of power does. slurmctld is told at once; by
        itself it would notice after SlurmdTimeout."""
        tasks = self.tasks(node)
        parents = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in tasks}
        daemon = self.daemons[(*SLURMD, node)]
        steps = [pid for pid in parents if "slurmstepd" in Path(f"/proc/{pid}/cmdline").read_text()]
        assert tasks, f"no task runs on {node}"
        assert steps, f"the tasks {tasks} on {node} have no slurmstepd"
        for pid in (daemon.pid, *steps, *tasks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        daemon.wait()
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def return_node(self, node: str) -> None:
        """Starts the node again."""
        self.start(*SLURMD, node)
        _wait(lambda: self.run("sinfo", "-h", "-n", node, "-o", "%T").split() != ["down"], self)

    def said(self) -> str:
        """The daemons' logs."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts SLURM, and stops exactly what it started. RuntimeError with the daemons' logs if it does not start."""
    cluster = Cluster(folder)
    _write_files(folder)
    munge = folder / "munge"
    try:
        files = [f"--{kind}={munge / name}" for kind, name in _MUNGE_FILES.items()]
        cluster.start("munged", "--foreground", "--force", *files)
        _wait(lambda: (munge / "socket").exists(), cluster)
        cluster.start("slurmctld", "-D")
        cluster.start(*SLURMD, "n1")
        cluster.start(*SLURMD, "n2")
        _wait(lambda: _all_idle(cluster), cluster)
        yield cluster
    finally:
        if len(cluster.daemons) > 1:
            cluster.run("scancel", "-f", "-u", _user(), check=False)
        for process in reversed(cluster.daemons.values()):
            _stop(process)


_MUNGE_FILES = {
    "socket": "socket",
    "key-file": "key",
    "pid-file": "pid",
    "log-file": "munged.log",
    "seed-file": "seed",
}


def _user() -> str:
    return subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()


def _write_files(folder: Path) -> None:
    for name in ("state", "spool/n1", "spool/n2", "gpus", "munge"):
        (folder / name).mkdir(parents=True)
    (folder / "munge").chmod(0o711)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    for i in range(8):
        (folder / "gpus" / f"gpu{i}").symlink_to("/dev/null")
    port, port1, port2 = _free_ports(3)
    host = socket.gethostname().split(".")[0]
    conf = CONF.format(folder=folder, host=host, user=_user(), port=port, port1=port1, port2=port2)
    (folder / "slurm.conf").write_text(conf)
    gpus = f"AutoDetect=off\nNodeName=n[1-2] Name=gpu Type=h200 File={folder}/gpus/gpu[0-7]\n"
    (folder / "gres.conf").write_text(gpus)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


def _all_idle(cluster: Cluster) -> bool:
    return cluster.run("sinfo", "-h", "-N", "-o", "%T", check=False).split() == ["idle", "idle"]


def _wait(condition: Callable[[], bool], cluster: Cluster) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        dead = [p.args for p in cluster.daemons.values() if p.poll() is not None]
        if dead or time.monotonic() > end:
            raise RuntimeError(f"SLURM did not start ({dead or 'nodes are not idle'})\n{cluster.said()}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
