"""Names on the Hugging Face hub: `owner/name` or, pinned, `owner/name@revision`. A file is `owner/name/FILE` or
`owner/name@revision/FILE`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from urepa.core.errors import UserError

# the repository that the description names is no longer on the hub
ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}

FILE = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")
PREFETCH = "run `python -m urepa.prefetch` with the same overrides where there is internet"


class HubFile(NamedTuple):
    """One file of a repository."""

    repository: str
    revision: str
    file: str


def resolve(name: str) -> tuple[str, str]:
    """A hub id and its revision ("main" unless pinned); a local folder is returned unchanged."""
    if Path(name).exists():
        return name, "main"
    plain, _, revision = name.partition("@")
    return ALIASES.get(plain, plain), revision if revision else "main"


def is_hub_id(name: str) -> bool:
    """Whether the name is a repository and not a local path."""
    return not Path(name).exists() and not name.startswith((".", "/")) and name.count("/") == 1


def hub_file(name: str) -> HubFile | None:
    """The file on the hub that a name refers to; None if it is a local path, or cannot be a file's name."""
    found = None if Path(name).exists() or name.startswith((".", "/", "~")) else FILE.fullmatch(name)
    return None if found is None else HubFile(found[1], found[2] or "main", found[3])


def ensure_local(name: str, key: str) -> Path:
    """The local path of `key=name`. A file on the hub is downloaded into the hub's cache. Raises UserError if there is
    no such file."""
    there = hub_file(name)
    if there is None:
        if not Path(name).exists():
            raise UserError(f"{key}={name} is not there; give a path, or a file on the hub as OWNER/NAME/FILE")
        return Path(name)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(there.repository, there.file, revision=there.revision))
    except (OSError, ValueError) as error:  # the hub's own errors are subclasses of these
        command = f"hf download {there.repository} {there.file} --revision {there.revision}"
        elsewhere = f"run `{command}` where there is internet"
        why = download_failure(error, there.repository, elsewhere=elsewhere)
        raise UserError(f"{key}={name} is not on this disk and could not be fetched from the hub: {why}") from error


def download_failure(error: BaseException, name: str, place: str = "", elsewhere: str = PREFETCH) -> str:
    """Why a download failed and what to do, as a clause. `place` is "datasets/" for data sets, `elsewhere` what to do
    on a machine with internet. The hub's libraries wrap each other's errors; the one with the reason may be anywhere in
    the chain."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    plain = resolve(name)[0]
    if any(isinstance(e, GatedRepoError) for e in chain):
        page = f"https://huggingface.co/{place}{plain}"
        return f"it is gated: accept its licence on {page}, then log in here with `hf auth login` or set HF_TOKEN"
    if any(isinstance(e, RepositoryNotFoundError) for e in chain):
        return "the hub has no such repository, or it is private: check the name, or log in with `hf auth login`"
    offline = is_hub_id(plain) and constants.HF_HUB_OFFLINE
    if offline or any(isinstance(e, LocalEntryNotFoundError | ConnectionError) for e in chain):
        why = "HF_HUB_OFFLINE is set" if offline else f"{constants.ENDPOINT} cannot be reached"
        return f"{why}, and it is not in the hub's local cache: {elsewhere}"
    if any(isinstance(e, EntryNotFoundError | RevisionNotFoundError) for e in chain):
        return "the repository has no such file, or no such revision"
    return str(error).splitlines()[0]
