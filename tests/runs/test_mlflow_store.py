"""A sqlite store is made whole or not at all; an unusable one is reported in one sentence and left unchanged."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from urepa.core.errors import UserError
from urepa.runs.mlflow_store import connect, has_run, location, open_existing, prepare_store

pytestmark = pytest.mark.slow  # MLflow's tables take seconds


@pytest.fixture
def db(tmp_path: Path, empty_db: Path) -> Path:
    return Path(shutil.copy(empty_db, tmp_path / "mlflow.db"))


def execute(db: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(db)) as database, database:
        database.execute(sql)


@pytest.fixture
def half_made(tmp_path: Path) -> Path:
    """The file that MLflow leaves if it is killed during its migrations."""
    from alembic import command
    from mlflow.store.db import utils
    from mlflow.store.tracking.dbmodels.initial_models import Base

    db = tmp_path / "mlflow.db"
    engine = utils.create_sqlalchemy_engine(f"sqlite:///{db}")
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        config = utils._get_alembic_config(f"sqlite:///{db}")
        config.attributes["connection"] = connection
        command.upgrade(config, "728d730b5ebd")  # "add registered model tags table", of MLflow 1.6
    engine.dispose()
    return db


def refused(db: Path) -> str:
    """The message about the file, which is the same in training and in compare; the file stays unchanged."""
    before = db.read_bytes()
    said = set()
    for door in (prepare_store, open_existing):
        with pytest.raises(UserError) as error:
            door(f"sqlite:///{db}")
        said.add(str(error.value))
    assert db.read_bytes() == before
    (sentence,) = said
    assert "\n" not in sentence
    return sentence


def test_a_half_made_store(half_made: Path) -> None:
    """It contains no run. If it is moved away as proposed, a new one is made."""
    assert f"{half_made} is a half-made MLflow database" in refused(half_made)
    assert f"move it away (mv {half_made} {half_made}.half)" in refused(half_made)
    assert not has_run(f"sqlite:///{half_made}", "x")
    half_made.rename(half_made.with_suffix(".half"))
    assert connect(f"sqlite:///{half_made}").search_experiments()[0].name == "Default"


def test_a_store_of_an_older_mlflow(half_made: Path) -> None:
    """It has experiments, so it was in use: MLflow would migrate it at once, without a copy."""
    execute(half_made, "insert into experiments (experiment_id, name, lifecycle_stage) values (0, 'Default', 'active')")
    said = refused(half_made)
    assert "was made by an older MLflow" in said
    assert f"`mlflow db upgrade sqlite:///{half_made}`" in said


def test_a_store_of_a_newer_mlflow(db: Path) -> None:
    execute(db, "update alembic_version set version_num = 'ffffffffffff'")
    assert "was made by a newer MLflow than the installed" in refused(db)


def test_a_file_that_is_no_store(tmp_path: Path) -> None:
    other = tmp_path / "photos.db"
    execute(other, "create table photos (name)")
    assert "is a database of another program" in refused(other)
    text = tmp_path / "notes.db"
    text.write_text("these are notes, and no database" * 100)
    assert "cannot be read as an SQLite database" in refused(text)
    assert not has_run(f"sqlite:///{text}", "x")


def test_a_missing_store_is_made(tmp_path: Path) -> None:
    """Beside leftovers of killed processes: an empty file, half-made files of another name, the journal of a removed
    file."""
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    db = folder / "mlflow.db"
    for name in ("mlflow.db", ".mlflow.db.0.tmp", ".mlflow.db.0.tmp-journal"):
        (folder / name).touch()
    (folder / "mlflow.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(5000))
    client = connect(f"sqlite:///{db}")
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    run = client.create_run("0").info.run_id
    assert has_run(f"sqlite:///{db}", run)
    client.delete_run(run)
    assert not has_run(f"sqlite:///{db}", run)
    db.unlink()
    assert not has_run(f"sqlite:///{db}", run)


def test_the_path_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert location("sqlite:///a/m.db") == location(f"sqlite:///{tmp_path}/a/m.db") == str(tmp_path / "a" / "m.db")
    assert location("http://host:1") == "http://host:1"
