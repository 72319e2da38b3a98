"""Names on the Hugging Face hub: `owner/name` or, pinned, `owner/name@revision`."""

from __future__ import annotations

from pathlib import Path

# the repository that spec 000 names has left the hub
ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}


def resolve(name: str) -> tuple[str, str]:
    """A hub id and its revision ("main" unless pinned); a local folder stays what it is."""
    if Path(name).exists():
        return name, "main"
    plain, _, revision = name.partition("@")
    return ALIASES.get(plain, plain), revision if revision else "main"


def is_hub_id(name: str) -> bool:
    """Does the name mean a repository, not something on this disk?"""
    return not Path(name).exists() and not name.startswith((".", "/")) and name.count("/") == 1


def why_not(error: BaseException, name: str, place: str = "") -> str:
    """Why a repository could not be had, and what to do, as half a sentence. `place` is "datasets/" for data sets.
    The hub's own libraries wrap each other's errors; the one that says why is somewhere in the chain."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

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
        return (
            f"{why}, and it is not in the hub's local cache: run `python -m urepa.prefetch` with the same overrides "
            "where there is internet"
        )
    return str(error).splitlines()[0]
