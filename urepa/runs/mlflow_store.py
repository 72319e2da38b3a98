"""Opening an MLflow store. A sqlite file is made under another name and renamed, so that a kill leaves nothing half
made; one that cannot be used is said in one sentence.

The lock file `.NAME.lock` beside a sqlite file stays there: processes that open one file take turns with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from urepa.core.errors import UserError
from urepa.core.files import sync_folder

SQLITE = "sqlite:///"
FIRST_TABLES = {"experiments", "runs", "metrics", "params", "tags"}  # those that MLflow makes before it migrates
CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction
JOURNALS = ("-journal", "-wal", "-shm")


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store, as it is named from the working folder."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def location(uri: str) -> str:
    """Where a store is, whatever the working folder: a sqlite file's absolute path, or a server's address."""
    path = sqlite_file(uri)
    return uri if path is None else str(path.resolve())


def identity(uri: str) -> tuple[int, int] | None:
    """What changes when a sqlite file is removed or replaced: its device and inode; None for none, and for a server."""
    path = sqlite_file(uri)
    if path is None or not path.exists():
        return None
    there = path.stat()
    return there.st_dev, there.st_ino


def check_credentials(run: Path, uri: str) -> None:
    """UserError where a run's stored config, which may be a stranger's, names a server that MLflow would send this
    environment's credentials to, and the user does not name that server too."""
    given = [name for name in CREDENTIALS if os.environ.get(name)]
    if given and uri.startswith("http") and os.environ.get("MLFLOW_TRACKING_URI") != uri:
        raise UserError(
            f"{run} is tracked at {uri}, by its own config.yaml, and {given[0]} of this environment would go there: "
            f"set MLFLOW_TRACKING_URI={uri} too if you trust that server, or give tracking=none"
        )


def connect(uri: str) -> Any:
    """A client of a store, which is made first if it is a sqlite file that is not there. UserError if the file cannot
    be used."""
    path = sqlite_file(uri)
    if path is None:
        return _client(uri)
    path = path.resolve()  # of a link, the place that it leads to
    path.parent.mkdir(parents=True, exist_ok=True)
    with _creation_lock(path):
        for leftover in path.parent.glob(f".{path.name}.*.tmp*"):  # of a process that was killed while it made one
            leftover.unlink()
        if not path.exists() or path.stat().st_size == 0:
            _create_tables(path)
        require_usable(uri)
        return _client(uri)


def require_there(uri: str) -> None:
    """UserError where a sqlite file is not there; a server is not asked."""
    path = sqlite_file(uri)
    if path is not None and not path.is_file():
        raise UserError(f"there is no MLflow store at {path}; give store=URI, or runs=FOLDER for run folders")


def open_existing(uri: str) -> Any:
    """A client of a store that is there; UserError if none is, instead of a new empty one."""
    require_there(uri)
    from mlflow.exceptions import MlflowException

    require_usable(uri)
    try:
        return _client(uri)
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from error


def prepare_store(uri: str) -> None:
    """Before many processes start: makes a sqlite store's tables. A server has its own."""
    if sqlite_file(uri) is not None:
        connect(uri)


def has_run(uri: str, run_id: str) -> bool:
    """Is the run in this store, and not deleted there? A server that does not answer is taken to have it still."""
    path = sqlite_file(uri)
    if path is None:
        from mlflow.exceptions import MlflowException

        try:
            return bool(_client(uri).get_run(run_id).info.lifecycle_stage == "active")
        except MlflowException as error:
            return error.error_code != "RESOURCE_DOES_NOT_EXIST"
    if not path.exists():
        return False
    try:
        with _read_connection(path) as database:
            sql = "select 1 from runs where run_uuid = ? and lifecycle_stage = 'active'"
            return database.execute(sql, (run_id,)).fetchone() is not None
    except sqlite3.Error:  # no store of MLflow's: opening it says what it is
        return False


def require_usable(uri: str) -> None:
    """UserError where a sqlite file is not one that the installed MLflow can write to as it is. MLflow itself would
    migrate it on the way, without a copy."""
    path = sqlite_file(uri)
    if path is None:
        return
    try:
        with _read_connection(path) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            found = database.execute("select version_num from alembic_version") if "alembic_version" in tables else []
            revision = next((str(number) for (number,) in found), None)
            used = "experiments" in tables and database.execute("select 1 from experiments").fetchone() is not None
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{path} cannot be read as an SQLite database ({error}); move it away or give another tracking.uri, and "
            "the same command makes a new one"
        ) from error
    versions = _versions()
    if revision == versions.get_current_head():
        return
    if not tables & FIRST_TABLES:
        raise UserError(f"{path} is a database of another program; give another tracking.uri=sqlite:///FILE")
    if not used:
        raise UserError(
            f"{path} is a half-made MLflow database, left by a process that was killed while it made it, and holds no "
            f"run; move it away (mv {path} {path}.half) and the same command makes a new one"
        )
    if revision is None or _is_known(versions, revision):
        raise UserError(
            f"{path} was made by an older MLflow; keep a copy of it and upgrade it with `mlflow db upgrade {uri}`"
        )
    from mlflow import __version__

    raise UserError(
        f"{path} was made by a newer MLflow than the installed {__version__}; install that one, or give another "
        "tracking.uri"
    )


def _versions() -> Any:
    """The schema versions that the installed MLflow knows."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))


def _is_known(versions: Any, revision: str) -> bool:
    from alembic.util import CommandError

    try:
        return versions.get_revision(revision) is not None
    except CommandError:
        return False


@contextlib.contextmanager
def _read_connection(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that makes no file. Not read-only: a killed process's transaction may have to be undone."""
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """A lock for the creation of a sqlite file, which several processes at once would break."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _create_tables(path: Path) -> None:
    """Creates MLflow's tables under a temporary name, as that takes seconds and many transactions, and renames the
    file."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    _forget_connections(_client(f"{SQLITE}{temporary}"))
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    for ending in JOURNALS:  # of a database that is not there any more: sqlite would play it into this one
        path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _client(uri: str) -> Any:
    """A client whose store answers, that gives up soon instead of retrying for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    path = sqlite_file(uri)
    if path is not None:  # MLflow would stay with the working folder in which a name was first used
        uri = "".join((SQLITE, location(uri), *uri.partition("?")[1:]))
    client = MlflowClient(tracking_uri=uri)
    if path is not None:
        _forget_connections(client)  # MLflow keeps them for a process's life: the file may be another one by now
    client.search_experiments(max_results=1)
    return client


def _forget_connections(client: Any) -> None:
    client._tracking_client.store.engine.dispose()
