"""Records what a run depends on besides its config: its training samples, and the code of each stretch of its steps.

FOLDER/provenance.json: {"data": digests and numbers of the samples, also by bucket if there are several, their
location, the names of the classes and a digest of the validation samples' ids, "code": [{"from_step", "git_commit",
"code_state", "code_digest", "numerics"}, ...], "warm_start": the weights from which it started
(`urepa.training.warm_start`), if any}. It is written before the first step, and compared before a run continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from urepa.core.code_version import UNKNOWN, code_of, same_code
from urepa.core.errors import UserError
from urepa.core.files import read_json, write_whole
from urepa.data.sources.source_changes import refuse_changes
from urepa.runs.run_folder import RunFolder, content_of
from urepa.runs.summary import read_summary
from urepa.training.warm_start_record import read_note

FILE = "provenance.json"
UNCHECKED = "data not checked: the version that began this run did not record its samples"


def read(folder: Path) -> dict[str, Any]:
    """The record; for a run of an earlier version the facts in its summary, or {} without a summary."""
    if (file := folder / FILE).exists():
        return dict(read_json(file))
    told = read_summary(folder) or {}
    known: dict[str, Any] = {}
    if "data" in told:
        known["data"] = data_facts(told["data"], {})
    if "git_commit" in told:
        known["code"] = [{"from_step": 0} | {key: told[key] for key in ("git_commit", "code_state")}]
    return known


def facts_so_far(folder: Path) -> dict[str, Any]:
    """The facts of a run without a summary by which it is compared, in the form of `facts_of`: of its data, of what it
    started from, and of its code. Those that an earlier version did not record are left out."""
    known = read(folder)
    data, source = known.get("data", {}), known.get("warm_start") or {}
    started = {"warm_start": source["sha256"][:10]} if "sha256" in source else {}
    facts = {"content": data["content"] | started} if "content" in data else {}
    facts |= {"validation_set": data["validation_set"]} if "validation_set" in data else {}
    return facts | ({"code": known["code"]} if known.get("code") else {})


def class_names(folder: Path, num_classes: int) -> list[str]:
    """The names of the classes of a run's track, by id; [] for tracks without names and for earlier runs. Raises
    UserError if the record is not a list of that many names."""
    names = read(folder).get("data", {}).get("classes", [])
    if names and (len(names) != num_classes or not all(isinstance(name, str) for name in names)):
        raise UserError(f"{folder / FILE} does not hold the names of {num_classes} classes; put it back from a copy")
    return list(names)


def bucket_names(folder: Path, declared: Sequence[str]) -> list[str]:
    """The declared buckets that the run's data have; all of them if that is not recorded."""
    if len(declared) == 1:
        return list(declared)
    known = read(folder).get("data", {}).get("buckets", declared)
    return [name for name in declared if name in known]


def check_images(track: Any, is_new: bool) -> None:
    """Compares the images with those from which the caches were made. If they have changed, a new run raises UserError.
    A run that continues prints a warning, because it uses the caches."""
    if is_new:
        refuse_changes(track)
    elif (changed := track.source_changes()) is not None:
        print(
            f"warning: data.images={track.images} is not what the caches in {track.folder} were made from ({changed}); "
            "this run uses the caches as they are"
        )


def begin(folder: RunFolder, config: dict[str, Any], cache: Any, code: dict[str, Any], step: int) -> None:
    """Stores the config, samples and code of a run that continues from `step`. Raises UserError, without storing
    anything, if the earlier steps used other samples."""
    here = data_facts(cache.fingerprint(), _places(config))
    known = refuse_other_data(folder.path, here)
    if step and not known:
        print(UNCHECKED)
    folder.store_config(config)
    names = {"classes": list(cache.class_names)} if cache.class_names else {}
    warning = record(folder.path, here | names | {"validation_set": validation_set(cache)}, code, step)
    if warning is not None:
        print(warning)


def check_data(folder: Path, config: dict[str, Any], cache: Any) -> bool:
    """Raises UserError if the cache has other samples than the run in `folder`. Returns whether they could be
    compared."""
    return refuse_other_data(folder, data_facts(cache.fingerprint(), _places(config)))


def has_same_data(folder: RunFolder, config: dict[str, Any], track: Any, teacher: Any | None) -> bool:
    """Raises UserError if the track's caches have other samples than the run in `folder`. Returns whether they could be
    compared."""
    check_images(track, is_new=False)
    if not track.has_caches(teacher):
        return False
    cache = track.open(teacher)
    try:
        return check_data(folder.path, config, cache)
    finally:
        cache.close()


def _places(config: dict[str, Any]) -> dict[str, str]:
    """The locations of images and caches; a name that is not a local folder is kept as it is."""
    named = {f"data.{key}": str(config["data"][key]) for key in ("images", "root")}
    return {key: str(Path(name).absolute()) if Path(name).is_dir() else name for key, name in named.items()}


def data_facts(fingerprint: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """The entries of a cache's fingerprint that identify its samples. `places`: their locations."""
    facts = {"content": content_of(fingerprint), "samples": fingerprint.get("samples", {}), "places": places}
    return facts | ({"buckets": fingerprint["buckets"]} if "buckets" in fingerprint else {})


def data_difference(known: dict[str, Any], here: dict[str, Any]) -> str | None:
    """The difference between the samples of `known` and of `here` (both from `data_facts`), in words; None if they are
    the same in everything that both record."""
    there, now = known["content"], here["content"]
    differing = [name for name in sorted(there.keys() & now.keys()) if there[name] != now[name]]
    if not differing:
        return None
    counts = [
        f"{known['samples'][split]} {split} samples there, {n} here"
        for split, n in sorted(here["samples"].items())
        if known["samples"].get(split, n) != n
    ]
    digests = [f"{name}: {there[name][:10]} there, {now[name][:10]} here" for name in differing]
    places = [
        f"{key}: {place} there, {here['places'][key]} here"
        for key, place in sorted(known["places"].items())
        if here["places"].get(key, place) != place
    ]
    return "; ".join([*counts, *digests, *places])


def refuse_other_data(folder: Path, here: dict[str, Any]) -> bool:
    """Raises UserError if the run in `folder` was trained on other samples than these. Returns whether the record has
    anything with which they could be compared."""
    known = read(folder).get("data")
    if known is None:
        return False
    difference = data_difference(known, here)
    if difference is not None:
        raise UserError(
            f"{folder} holds a run that was trained on other data ({difference}); give the data that it was trained "
            "on, or move that folder away"
        )
    return bool(known["content"].keys() & here["content"].keys())


def last_code(folder: Path) -> str:
    """The version of the code that trained a run's last steps."""
    return code_of(read(folder).get("code", [{}])[-1]).version


def code_until(folder: Path, step: int) -> list[dict[str, Any]]:
    """The stretches of code that trained the steps before `step`; a single unknown one for a run without a record."""
    if step == 0:
        return []
    known = read(folder).get("code", [{"from_step": 0}])
    return [stretch for stretch in known if stretch["from_step"] < step]


def record(folder: Path, here: dict[str, Any], code: dict[str, Any], step: int) -> str | None:
    """Records that `code` trains the steps from `step` on, on these samples. Returns a warning if other code trained
    the steps before."""
    before = code_until(folder, step)
    changed = bool(before) and not same_code(code_of(before[-1]), code_of(code))
    stretches = [*before, {"from_step": step} | code] if changed or not before else before
    source = read_note(folder)
    started = {} if source is None else {"warm_start": source}
    write_whole(folder / FILE, json.dumps({"data": here, "code": stretches} | started, indent=1))
    if not changed:
        return None
    numerics = f"{before[-1].get('numerics', UNKNOWN)} and {code['numerics']}"
    return (
        f"warning: up to step {step} this run was trained by other code ({code_of(before[-1])}; now {code_of(code)}; "
        f"numerics {numerics}): compare will set it apart"
    )


def validation_set(cache: Any) -> str:
    """A digest of the validation samples' ids, which is equal for runs that were validated on the same images."""
    ids = sorted(sample.sample_id for sample in cache.splits["val"])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
