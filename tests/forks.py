"""Real processes that need not import everything again: forks of one process in which everything is imported.

A fork has its own pid, memory, signals, exit code and files; the command begins after the fork, in its own working
folder and environment. When it returns, it waits for other threads, exit handlers and output as any process does, and
then ends without taking the objects of all modules apart, which takes half a second. Run as a script, this file is the
process that forks: it reads one request per line on stdin, and prints a line for each fork that begins or ends.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import urepa

Json = dict[str, Any]


class Forked:
    """A fork, with the methods of subprocess.Popen that tests use."""

    def __init__(self, forks: "Forks", pid: int) -> None:
        self._forks, self.pid = forks, pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with self._forks.news:
            return self._forks.ended.get(self.pid)

    def wait(self, timeout: float | None = None) -> int:
        with self._forks.news:
            if not self._forks.news.wait_for(lambda: self.pid in self._forks.ended, timeout):
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
            return self._forks.ended[self.pid]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """The process that forks, as a test uses it. It ends when this process does, with its stdin."""

    def __init__(self, env: dict[str, str]) -> None:
        command = [sys.executable, __file__]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.news = threading.Condition()
        self.begun: dict[int, int] = {}  # pid by request
        self.ended: dict[int, int] = {}  # exit code by pid, as subprocess has it
        self.requests = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            news = json.loads(line)
            with self.news:
                if "request" in news:
                    self.ended.pop(news["pid"], None)  # an earlier process may have had this pid
                    self.begun[news["request"]] = news["pid"]
                else:
                    self.ended[news["pid"]] = news["code"]
                self.news.notify_all()

    def start(self, what: list[str], cwd: Path, env: dict[str, str], out: Path, err: Path) -> Forked:
        """`python WHAT`, where what is `-m MODULE ARGUMENTS` or `FILE ARGUMENTS`."""
        assert self.process.stdin is not None
        with self.news:
            self.requests += 1
            number = self.requests
            request = {"request": number, "what": what, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            done = self.news.wait_for(lambda: number in self.begun or self.process.poll() is not None, 300)
            assert done, "no fork came"
            assert number in self.begun, "the process that forks has ended"
            return Forked(self, self.begun[number])


HANGS = 300  # seconds after which a process is taken to hang; nothing asserts on time


def environment() -> dict[str, str]:
    """This process's environment without variables that would change a run, and with one thread so that sums round the
    same."""
    odd = ("MLFLOW_", "HYDRA_", "OMP_", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(odd)}
    return kept | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


@functools.cache
def forks() -> Forks:
    """One for all tests of this process."""
    return Forks(environment())


def run(
    what: list[str], folder: Path, timeout: float = HANGS, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python WHAT` in a folder to its end, as a fork."""
    with tempfile.TemporaryDirectory() as place:
        out, err = (Path(place) / name for name in ("out", "err"))
        process = forks().start(what, folder, environment() if env is None else env, out, err)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(what, code, out.read_text(), err.read_text())


def run_code(
    code: str, arguments: list[str], folder: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs `python -c CODE ARGUMENTS` in a folder to its end, as a fork."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "code.py"
        file.write_text(code)
        return run([str(file), *arguments], folder, env=env)


# --- the process that forks -------------------------------------------------------------------------------


IMPORTS = (
    *(
        "urepa.training.run_lifecycle",
        "urepa.train",
        "urepa.evaluate",
        "torch._dynamo",
        "diffusers.models.unets.unet_2d_condition",
    ),
    *("mlflow", "mlflow.store.tracking.sqlalchemy_store", "sqlalchemy.dialects.sqlite"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "sklearn.linear_model", "sklearn.neighbors"),
)


def modules_of_packages() -> Iterator[str]:
    """urepa's modules without its commands, which run as __main__."""
    for found in pkgutil.walk_packages(urepa.__path__, "urepa."):
        if found.ispkg or found.name.count(".") > 1:
            yield found.name


def leave(code: int) -> NoReturn:
    """Ends this process as the interpreter does, up to taking its objects apart."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def import_everything() -> None:
    """Imports what `urepa.train` and `urepa.evaluate` import, registers what each command registers first, and checks
    the quickstart's config."""
    import hydra

    from urepa.cli import CONF, prepare
    from urepa.config import own_package
    from urepa.runs.run_folder import to_plain
    from urepa.training.checks.combinations import check

    for name in (*IMPORTS, *modules_of_packages()):
        importlib.import_module(name)
    for name in ("urepa.train", "urepa.evaluate"):
        del sys.modules[name]  # they run as __main__
    prepare()
    own_package.load([])
    with hydra.initialize_config_dir(CONF, version_base="1.3"):  # what compositions and checks keep for later ones
        check(to_plain(hydra.compose("train")), [])
    if sys.platform == "linux":  # a process with threads cannot be forked safely; pyarrow's allocator sees to its own
        others = [
            p.read_text().strip() for p in Path("/proc/self/task").glob("*/comm") if p.parent.name != str(os.getpid())
        ]
        assert set(others) <= {"jemalloc_bg_thd"}, others


def serve() -> Json:
    """Forks for each request and returns the request in the fork. The process itself ends here, with its stdin."""
    answers, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    wakes, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wakes, selectors.EVENT_READ)
    rest = b""
    while True:
        ready = {key.fd for key, _ in selector.select()}
        if wakes in ready:
            os.read(wakes, 4096)
            reap(answers)
        if 0 not in ready:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            sys.exit(0)
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            request: Json = json.loads(line)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(nothing, 0)
                for descriptor in (answers, nothing, wakes, wake):
                    os.close(descriptor)
                selector.close()
                return request
            os.write(answers, json.dumps({"request": request["request"], "pid": pid}).encode() + b"\n")


def reap(answers: int) -> None:
    """Reports which forks have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        os.write(answers, json.dumps({"pid": pid, "code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")


if __name__ == "__main__":
    gc.disable()  # a fifth of the time of these imports
    import_everything()
    gc.collect()
    gc.enable()
    gc.freeze()  # what is imported is no fork's garbage, and pages that its collector does not touch stay shared
    gc.set_threshold(10_000, 20, 20)  # as in tests/conftest.py
    asked = serve()
    for name, descriptor in (("out", 1), ("err", 2)):
        file = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    first, *arguments = asked["what"]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [asked["cwd"] if first == "-m" else str(Path(first).parent), *filter(None, given)]
    try:
        if first == "-m":
            module, *arguments = arguments
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *arguments]
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        leave(int(stop.code is not None) if not isinstance(stop.code, int) else stop.code)
    leave(0)
