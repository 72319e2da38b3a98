"""A run in an MLflow store: its experiment, the run itself, and the tags that MLflow's page displays."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from urepa.core.escaping import markdown
from urepa.runs.metrics import NOT_METRICS, number
from urepa.runs.run_folder import content_of, facts_of
from urepa.runs.upgrades import upgrade_facts

KIND = ("mlflow.experimentKind", "custom_model_development")  # not the kind for GenAI applications
PAGE = "workflowType=machine_learning"  # MLflow 3.17's page is chosen by its address instead
BATCH = 100  # parameters or tags per request
LONGEST_PARAM, LONGEST_TAG, LONGEST_NAME = 6000, 8000, 250  # limits of MLflow, in characters
LARGEST = 2**63  # upper limit of a step or a time, exclusive

FACTS_TAG = "urepa.summary"  # stored in MLflow, so it does not change when modules move

Say = Callable[[str], None]


def experiment_id(client: Any, name: str, say: Say) -> str:
    """The id of the experiment of that name. It is created or restored if necessary, with the kind model training."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=dict([KIND])))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another run created it at the same moment
    _revive_experiment(client, found, say)
    return str(found.experiment_id)


def _revive_experiment(client: Any, experiment: Any, say: Say) -> None:
    """Restores a deleted experiment and sets its kind, unless a user has chosen another; MLflow's guess is replaced."""
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment.experiment_id)
        say(f"the experiment {experiment.name} was deleted in MLflow: it is restored, with its runs")
    kind = experiment.tags.get(KIND[0], "")
    if not kind or "infer" in kind:
        client.set_experiment_tag(experiment.experiment_id, *KIND)


def find(client: Any, run_id: str | None) -> Any | None:
    """The run, deleted or not; None if the store has no run of that id."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def revive(client: Any, run: Any, say: Say) -> None:
    """Restores a deleted run and its experiment."""
    _revive_experiment(client, client.get_experiment(run.info.experiment_id), say)
    if client.get_run(run.info.run_id).info.lifecycle_stage != "active":
        client.restore_run(run.info.run_id)
        say(f"the MLflow run {run.info.run_name} ({run.info.run_id}) was deleted there: it is restored")


def begin(client: Any, name: str, run_name: str, key: str, say: Say) -> Any:
    """A new run without rows. If a run with this key exists, a process made it and was killed before it could record
    it, and that run is used. If that run has values, they belong to another history, and it is deleted in MLflow."""
    from mlflow.entities import ViewType

    experiment = experiment_id(client, name, say)
    for run in client.search_runs([experiment], f"tags.`urepa.key` = '{key}'", run_view_type=ViewType.ALL):
        if not run.data.metrics:
            revive(client, run, say)
            return run
        if run.info.lifecycle_stage == "active":
            client.delete_run(run.info.run_id)
    return client.create_run(experiment, tags={"urepa.key": key}, run_name=text(run_name, LONGEST_NAME))


def describe(client: Any, run: Any, params: dict[str, Any], tags: dict[str, Any], say: Say) -> None:
    """Logs the parameters that the run lacks, and sets its tags to their current values."""
    from mlflow.entities import Param

    run_id, known = run.info.run_id, run.data.params
    accepted = dict(_accepted_items(params, "parameter", say))
    for some in _batches([Param(k, text(v, LONGEST_PARAM)) for k, v in accepted.items() if k not in known]):
        client.log_batch(run_id, params=some)
    set_tags(client, run_id, tags, say)


def set_tags(client: Any, run_id: str, tags: dict[str, Any], say: Say) -> None:
    """Sets the tags to their current values."""
    from mlflow.entities import RunTag

    for some in _batches([RunTag(k, text(v, LONGEST_TAG)) for k, v in _accepted_items(tags, "tag", say)]):
        client.log_batch(run_id, tags=some)


def log_data(client: Any, run: Any, params: dict[str, Any], fingerprint: dict[str, Any]) -> None:
    """Logs the data set in MLflow's own column, once per run: its name, a digest of its content, and its location."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    others = ("teacher", "tokens")  # with mirrored samples, these differ between arms
    content = {k: v for k, v in content_of(fingerprint).items() if not k.startswith(others) and ".flip" not in k}
    if not content or (run.inputs is not None and run.inputs.dataset_inputs):
        return
    dataset = Dataset(
        name=text(params["data.name"], LONGEST_NAME),
        digest=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8],
        source_type="local",
        source=json.dumps({"uri": str(params["data.root"])}),
        profile=json.dumps(fingerprint.get("samples", {})),
    )
    client.log_inputs(run.info.run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def end_tags(guard: dict[str, float], summary: dict[str, Any] | None) -> dict[str, str]:
    """The counts of a run's guard and, for a finished run, the part of its summary that `urepa.compare` needs."""
    counts = {f"guard.{name}": str(int(value)) for name, value in guard.items()}
    facts = "" if summary is None else json.dumps(facts_of(summary))
    parts = [facts[at : at + LONGEST_TAG] for at in range(0, len(facts), LONGEST_TAG)]
    return counts | {f"{FACTS_TAG}.{n}" if n else FACTS_TAG: part for n, part in enumerate(parts)}


def facts_in(tags: dict[str, str]) -> dict[str, Any]:
    """The facts of a summary that `end_tags` stored, in the current format; {} for a run that is not finished."""
    more = itertools.takewhile(tags.__contains__, (f"{FACTS_TAG}.{n}" for n in itertools.count(1)))
    text = tags.get(FACTS_TAG, "{}") + "".join(tags[key] for key in more)
    facts: dict[str, Any] = json.JSONDecoder().raw_decode(text)[0]  # an earlier, longer text may remain after it
    return upgrade_facts(facts)


def page_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags that MLflow's own page displays: a run's description, its source and the code's version."""
    named = {key: tags.get(key, "") for key in ("experiment", "arm", "seed", "folder", "git_commit")}
    about = f"{named['experiment']} · {named['arm']} · seed {named['seed']}"
    return {
        "mlflow.note.content": f"{markdown(about)}\n\n{markdown(named['folder'])}",
        "mlflow.source.name": "urepa.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": named["git_commit"],
    }


def page(uri: str, experiment: str) -> str:
    """The address of an experiment on MLflow's page, opened as model training. For a sqlite store, the address is the
    default of `mlflow ui`."""
    server = uri.rstrip("/") if uri.startswith(("http://", "https://")) else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment}/runs?{PAGE}"


# --- names and values that MLflow refuses -------------------------------------------------------------------


@functools.cache
def invalid_name_reason(key: str) -> str:
    """Why MLflow accepts no metric, parameter or tag of this name; "" if it does."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH, path_not_unique, validate_param_and_metric_name

    if len(key) > MAX_ENTITY_KEY_LENGTH:
        return f"it is longer than {MAX_ENTITY_KEY_LENGTH} characters"
    if not validate_param_and_metric_name(key):
        return "a name there has letters, digits, spaces and _-.:/ only"
    return "as a path it would be another one" if path_not_unique(key) else ""


def text(value: Any, longest: int) -> str:
    """A value as text that every store can keep: without unpaired surrogates and null characters."""
    return str(value).encode(errors="backslashreplace").decode().replace("\0", "\\0")[:longest]


def _accepted_items(values: dict[str, Any], kind: str, say: Say) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if why := invalid_name_reason(key):
            say(f"MLflow takes no {kind} {key[:80]!r}: {why}")
        else:
            yield key, value


def points(row: dict[str, Any], say: Say) -> list[Any]:
    """A row's numbers as MLflow metrics, with the row's own time stamp. Withdrawn values become NaN. Values that MLflow
    refuses are left out and reported through `say`."""
    from mlflow.entities import Metric

    where = "it is in metrics.jsonl alone"
    if not (0 <= row["time"] < LARGEST and -LARGEST <= row["step"] < LARGEST):
        say(f"MLflow takes no row of step {row['step']} and time {row['time']}: {where}")
        return []
    found = []
    for name in row:
        if name in NOT_METRICS:
            continue
        why = invalid_name_reason(name)
        try:
            value = number(row[name])
        except OverflowError:
            why = "its value is too large"
        if why:
            say(f"MLflow takes no metric {name[:80]!r} ({why}): {where}")
        else:
            found.append(Metric(name, value, row["time"], row["step"]))
    return found


def _batches(values: Iterable[Any]) -> Iterator[list[Any]]:
    every = list(values)
    for at in range(0, len(every), BATCH):
        yield every[at : at + BATCH]
