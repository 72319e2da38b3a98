"""Opens an MLflow store. A sqlite file is created under another name and renamed, so that a kill leaves no incomplete
file. A store that cannot be used is reported in one sentence.

The lock file `.NAME.lock` next to a sqlite file is kept: processes that open the same file at once use it in turn.
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
FIRST_TABLES = {"experiments", "runs", "metrics", "params", "tags"}  # created before MLflow's migrations
CREDENTIALS = ("MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD")
BUSY_SECONDS = 30.0  # how long to wait for another process's transaction
JOURNALS = ("-journal", "-wal", "-shm")


def sqlite_file(uri: str) -> Path | None:
    """The path of a sqlite store's file, relative to the working folder; None for other stores."""
    return Path(uri.removeprefix(SQLITE).partition("?")[0]) if uri.startswith(SQLITE) else None


def location(uri: str) -> str:
    """The location of a store, independent of the working folder: a sqlite file's absolute path, or an address."""
    path = sqlite_file(uri)
    return uri if path is None else str(path.resolve())


def identity(uri: str) -> tuple[int, int] | None:
    """Device and inode of a sqlite file, which change when it is replaced; None if it is missing, and for a server."""
    path = sqlite_file(uri)
    if path is None or not path.exists():
        return None
    there = path.stat()
    return there.st_dev, there.st_ino


def check_credentials(run: Path, uri: str) -> None:
    """Raises UserError if a run's stored config, which may be untrusted, names a server to which MLflow would send this
    environment's credentials, unless the user names that server too."""
    given = [name for name in CREDENTIALS if os.environ.get(name)]
    if given and uri.startswith("http") and os.environ.get("MLFLOW_TRACKING_URI") != uri:
        raise UserError(
            f"{run} is tracked at {uri}, by its own config.yaml, and {given[0]} of this environment would go there: "
            f"set MLFLOW_TRACKING_URI={uri} too if you trust that server, or give tracking=none"
        )


def connect(uri: str) -> Any:
    """A client of a store. A missing sqlite file is created first. Raises UserError if the file cannot be used."""
    path = sqlite_file(uri)
    if path is None:
        return _client(uri)
    path = path.resolve()  # follows links
    path.parent.mkdir(parents=True, exist_ok=True)
    with _creation_lock(path):
        for leftover in path.parent.glob(f".{path.name}.*.tmp*"):  # left by a killed process
            leftover.unlink()
        if not path.exists() or path.stat().st_size == 0:
            _create_tables(path)
        require_usable(uri)
        return _client(uri)


def require_there(uri: str) -> None:
    """Raises UserError if a sqlite file does not exist. A server is not checked."""
    path = sqlite_file(uri)
    if path is not None and not path.is_file():
        raise UserError(f"there is no MLflow store at {path}; give store=URI, or runs=FOLDER for run folders")


def open_existing(uri: str) -> Any:
    """A client of an existing store. Raises UserError if there is none, instead of creating an empty one."""
    require_there(uri)
    from mlflow.exceptions import MlflowException

    require_usable(uri)
    try:
        return _client(uri)
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} does not answer: {str(error).splitlines()[0]}") from error


def prepare_store(uri: str) -> None:
    """Creates a sqlite store's tables, to be called before many processes start. A server needs no preparation."""
    if sqlite_file(uri) is not None:
        connect(uri)


def has_run(uri: str, run_id: str) -> bool:
    """Whether the store has the run and it is not deleted there. True if a server does not answer."""
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
    except sqlite3.Error:  # not a store of MLflow; the error is reported when it is opened
        return False


def require_usable(uri: str) -> None:
    """Raises UserError if the installed MLflow cannot write to the sqlite file as it is. MLflow itself would migrate it
    without making a copy."""
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
    """The schema versions of the installed MLflow."""
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
    """A connection that creates no file. It is not read-only: a killed process's transaction may need a rollback."""
    database = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=BUSY_SECONDS)
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def _creation_lock(path: Path) -> Iterator[None]:
    """A lock for the creation of a sqlite file, which would fail if several processes did it at once."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _create_tables(path: Path) -> None:
    """Creates MLflow's tables in a temporary file and renames it, because the creation takes seconds and many
    transactions."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    _forget_connections(_client(f"{SQLITE}{temporary}"))
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    for ending in JOURNALS:  # journals of a deleted database, which sqlite would apply to this one
        path.with_name(f"{path.name}{ending}").unlink(missing_ok=True)
    os.replace(temporary, path)
    sync_folder(path.parent)


def _client(uri: str) -> Any:
    """A client whose store answers. It gives up soon instead of retrying for minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    path = sqlite_file(uri)
    if path is not None:  # MLflow would keep the working folder in which a relative name was first used
        uri = "".join((SQLITE, location(uri), *uri.partition("?")[1:]))
    client = MlflowClient(tracking_uri=uri)
    if path is not None:
        _forget_connections(client)  # MLflow keeps connections open, but the file may have been replaced
    client.search_experiments(max_results=1)
    return client


def _forget_connections(client: Any) -> None:
    client._tracking_client.store.engine.dispose()
