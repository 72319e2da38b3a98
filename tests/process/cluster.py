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

    def said(self) -> str:
        """The daemons' logs."""
        return "\n".join(f"--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted(self.folder.glob("*.log")))


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Starts SLURM, and stops exactly what it started. RuntimeError with the daemons' logs if it does not start."""
    cluster = Cluster(folder)
    _write_files(folder)
    environment = os.environ | cluster.environment
    started: list[subprocess.Popen[Any]] = []

    def start(*command: str) -> None:
        out = open(folder / f"{len(started)}.out.log", "w")  # noqa: SIM115  lives as long as the daemon
        started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True))

    munge = folder / "munge"
    try:
        files = [f"--{kind}={munge / name}" for kind, name in _MUNGE_FILES.items()]
        start("munged", "--foreground", "--force", *files)
        _wait(lambda: (munge / "socket").exists(), started, cluster)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", "n1")
        start("slurmd", "-D", "-N", "n2")
        _wait(lambda: _all_idle(cluster), started, cluster)
        yield cluster
    finally:
        if len(started) > 1:
            cluster.run("scancel", "-f", "-u", _user(), check=False)
        for process in reversed(started):
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


def _wait(condition: Callable[[], bool], daemons: list[subprocess.Popen[Any]], cluster: Cluster) -> None:
    end = time.monotonic() + HANGS
    while not condition():
        dead = [p.args for p in daemons if p.poll() is not None]
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
