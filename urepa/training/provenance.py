"""What a run rests on beside its config: the samples that it was trained on, and the code of each stretch of its steps.

FOLDER/provenance.json: {"data": digests of the samples, how many there are, also in each bucket where there are some,
where they lay and what the classes are called, "code": [{"from_step", "git_commit", "code_state", "code_digest",
"numerics"}, ...]}. Written before the first step, compared before others.
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

FILE = "provenance.json"
UNCHECKED = "data not checked: the version that began this run did not record its samples"


def read(folder: Path) -> dict[str, Any]:
    """What is recorded; of a run of an earlier version what its summary tells, {} where there is none either."""
    if (file := folder / FILE).exists():
        return dict(read_json(file))
    told = read_summary(folder) or {}
    known: dict[str, Any] = {}
    if "data" in told:
        known["data"] = data_facts(told["data"], {})
    if "git_commit" in told:
        known["code"] = [{"from_step": 0} | {key: told[key] for key in ("git_commit", "code_state")}]
    return known


def class_names(folder: Path, num_classes: int) -> list[str]:
    """What the track of a run calls its classes, by id; [] of tracks without names and of earlier runs. UserError where
    it is no list of so many names."""
    names = read(folder).get("data", {}).get("classes", [])
    if names and (len(names) != num_classes or not all(isinstance(name, str) for name in names)):
        raise UserError(f"{folder / FILE} does not hold the names of {num_classes} classes; put it back from a copy")
    return list(names)


def bucket_names(folder: Path, declared: Sequence[str]) -> list[str]:
    """Of the buckets that a run's track may have, those that its data have; all of them where that is not recorded."""
    if len(declared) == 1:
        return list(declared)
    known = read(folder).get("data", {}).get("buckets", declared)
    return [name for name in declared if name in known]


def check_images(track: Any, is_new: bool) -> None:
    """Images that have changed since the caches were made from them: a new run is refused with a UserError; one that
    goes on is warned, as its caches are what counts."""
    if is_new:
        refuse_changes(track)
    elif (changed := track.source_changes()) is not None:
        print(
            f"warning: data.images={track.images} is not what the caches in {track.folder} were made from ({changed}); "
            "what counts for this run are the caches as they are"
        )


def begin(folder: RunFolder, config: dict[str, Any], cache: Any, code: dict[str, Any], step: int) -> None:
    """Stores config, samples and code of a run that goes on from `step`. UserError, and nothing is stored, where the
    steps before had other samples."""
    here = data_facts(cache.fingerprint(), _places(config))
    known = refuse_other_data(folder.path, here)
    if step and not known:
        print(UNCHECKED)
    folder.store_config(config)
    names = {"classes": list(cache.class_names)} if cache.class_names else {}
    warning = record(folder.path, here | names, code, step)
    if warning is not None:
        print(warning)


def check_data(folder: Path, config: dict[str, Any], cache: Any) -> bool:
    """UserError where the cache is of other samples than those of the run in `folder`; False where nobody can say."""
    return refuse_other_data(folder, data_facts(cache.fingerprint(), _places(config)))


def has_same_data(folder: RunFolder, config: dict[str, Any], track: Any, teacher: Any | None) -> bool:
    """UserError where the caches of the track are of other samples than those of the run in `folder`; False where
    nobody can say."""
    check_images(track, is_new=False)
    if not track.has_caches(teacher):
        return False
    cache = track.open(teacher)
    try:
        return check_data(folder.path, config, cache)
    finally:
        cache.close()


def _places(config: dict[str, Any]) -> dict[str, str]:
    """Where images and caches lie; a name stays what it is where it is no folder here."""
    named = {f"data.{key}": str(config["data"][key]) for key in ("images", "root")}
    return {key: str(Path(name).absolute()) if Path(name).is_dir() else name for key, name in named.items()}


def data_facts(fingerprint: dict[str, Any], places: dict[str, str]) -> dict[str, Any]:
    """Of a cache's fingerprint what says which samples they are; `places` is where they lie."""
    facts = {"content": content_of(fingerprint), "samples": fingerprint.get("samples", {}), "places": places}
    return facts | ({"buckets": fingerprint["buckets"]} if "buckets" in fingerprint else {})


def data_difference(known: dict[str, Any], here: dict[str, Any]) -> str | None:
    """In what the samples of `known` are not those of `here` (two of `data_facts`); None where they are the same, as
    far as both tell."""
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
    """UserError where the run in `folder` was trained on other samples than these. Returns whether anything is known
    of its samples that could be compared."""
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
    """The stretches of code that trained the steps before `step`; of a run that says nothing, one that is unknown."""
    if step == 0:
        return []
    known = read(folder).get("code", [{"from_step": 0}])
    return [stretch for stretch in known if stretch["from_step"] < step]


def record(folder: Path, here: dict[str, Any], code: dict[str, Any], step: int) -> str | None:
    """Writes down that the steps from `step` on are trained by `code` on these samples. Returns a warning where other
    code trained the steps before."""
    before = code_until(folder, step)
    changed = bool(before) and not same_code(code_of(before[-1]), code_of(code))
    stretches = [*before, {"from_step": step} | code] if changed or not before else before
    write_whole(folder / FILE, json.dumps({"data": here, "code": stretches}, indent=1))
    if not changed:
        return None
    numerics = f"{before[-1].get('numerics', UNKNOWN)} and {code['numerics']}"
    return (
        f"warning: up to step {step} this run was trained by other code ({code_of(before[-1])}; now {code_of(code)}; "
        f"numerics {numerics}): compare will set it apart"
    )


def validation_set(cache: Any) -> str:
    """A digest of the validation samples' ids: the same in two runs that were validated on the same images."""
    ids = sorted(sample.sample_id for sample in cache.splits["val"])
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]
