"""Fixtures of the process-level tests: a cache made once, an empty MLflow database, and reference runs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, running, what_is_missing
from studies import Study, checkout
from workspace import EVALUATED, TINY, Workspace, forks, make_cache

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def cache(made_once: Callable[..., Path]) -> Path:
    """The caches of the tiny configuration, made by the preprocess command."""
    return made_once("cache", make_cache)


@pytest.fixture(scope="session")
def make_workspace(cache: Path, empty_db: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Makes working folders, each with an empty database: make_workspace(), or make_workspace(TINY_SIT)."""
    forks()  # here, before two threads ask for it at once

    def make(tiny: tuple[str, ...] = TINY) -> Workspace:
        here = Workspace(tmp_path_factory.mktemp("work"), cache, tiny)
        shutil.copy(empty_db, here.db)
        return here

    return make


@pytest.fixture
def work(make_workspace: Callable[[], Workspace]) -> Workspace:
    """A working folder that is still empty."""
    return make_workspace()


@pytest.fixture(scope="session")
def make_shared(cache: Path, empty_db: Path, made_once: Callable[..., Path]) -> Callable[..., Workspace]:
    """make_shared(name, *overrides): a working folder with a run, which all processes share."""

    def make(name: str, *overrides: str, **how: bool) -> Workspace:
        def fill(folder: Path) -> None:
            here = Workspace(folder, cache)
            shutil.copy(empty_db, here.db)
            here.train(*overrides, **how)

        return Workspace(made_once(name, fill), cache)

    return make


@pytest.fixture(scope="session")
def reference(make_shared: Callable[..., Workspace]) -> Workspace:
    """A tracked run without interruption. Do not write here."""
    return make_shared("reference", fresh=True)


@pytest.fixture(scope="session")
def evaluated(make_shared: Callable[..., Workspace]) -> Workspace:
    """The same run with an evaluation after training, and so with a last row of its own. Do not write here."""
    return make_shared("evaluated", *EVALUATED)


@pytest.fixture
def copied(work: Workspace, reference: Workspace) -> Workspace:
    """A copy of the reference's working folder, for tests that continue from it."""
    shutil.copytree(reference.folder, work.folder, dirs_exist_ok=True)
    return work


@pytest.fixture(scope="session")
def kill_seed() -> int:
    """The seed of random moments; UREPA_KILL_SEED repeats them."""
    given = os.environ.get("UREPA_KILL_SEED")
    seed = random.SystemRandom().randrange(10**6) if given is None else int(given)
    print(f"\nUREPA_KILL_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real SLURM for this session. Without its packages the tests are skipped with a message; if it is installed and
    does not start, they fail."""
    missing = what_is_missing()
    if missing is not None:
        pytest.skip(f"these tests need a SLURM of their own: {missing}")
    with running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def study(slurm: Cluster, make_workspace: Callable[[], Workspace], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """An arm with two seeds, each job from a copy of a checkout that is damaged after submission. Do not write here."""
    work = make_workspace()
    here = Study(work, checkout(tmp_path_factory.mktemp("checkout")), slurm)
    grid = ("arms=baseline", "seeds=0,1", "cluster=slurm", "cluster.cpus_per_task=1")
    here.launch(*work.overrides(), *grid, "cluster.array_parallelism=2", "stages=[preprocess,train]")
    (here.code / "urepa" / "training" / "trainer.py").write_text("this is no Python")
    here.wait()
    return here
