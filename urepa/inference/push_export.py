"""Uploads an export's folder to the Hugging Face hub: the files that its card lists, in one commit."""

from __future__ import annotations

from pathlib import Path

from urepa.core.errors import UserError
from urepa.core.escaping import markdown, printable

CARD, HEADING = "README.md", "## Files"


def listed_files(folder: Path) -> tuple[list[str], list[str]]:
    """The files below an export's folder that its card lists, and the others. Raises UserError if the folder has no
    such list, or a listed file is missing."""
    card = folder / CARD
    text = card.read_text() if card.is_file() else ""
    lines = text.partition(f"\n{HEADING}\n")[2].partition("\n## ")[0].splitlines()
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    listed = [name for name in there if f"- {markdown(name)}" in lines]
    expected = sum(line.startswith("- ") for line in lines)
    if not listed or len(listed) != expected:
        raise UserError(f"{folder} has {len(listed)} of the {expected} files that its {CARD} lists; export it anew")
    return listed, [name for name in there if name not in listed]


def require_login() -> None:
    """Raises UserError if the hub cannot be written to from here: checked before anything is exported."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError("push= needs the hub, and HF_HUB_OFFLINE is set: unset it, or drop push=")
    if get_token() is None:
        raise UserError("push= needs a login with write access to the hub: run `hf auth login` first")


def push(folder: Path, name: str, private: bool) -> str:
    """Uploads the listed files as one commit to the repository `name`, which is made if there is none, and returns
    its address. Files that are in the repository already stay, or are replaced. The token is that of the hub's own
    login. Raises UserError if the repository is more or less public than asked for, or the upload fails; the folder
    stays as it is."""
    listed, others = listed_files(folder)
    if others:
        print(f"not uploaded, as the export does not list them: {', '.join(map(printable, others))}")
    kind = "private" if private else "public"
    print(f"uploading {len(listed)} files to {name} ({kind}): {', '.join(map(printable, listed))}", flush=True)
    try:
        return _upload(folder, name, private, listed)
    except UserError:
        raise
    except Exception as error:  # each version of the client has other errors of its connection
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"the export is whole in {folder}, but it could not be uploaded to {name}: {why}; the same command uploads "
            "it again"
        ) from error


def _upload(folder: Path, name: str, private: bool, listed: list[str]) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    hub = HfApi()
    try:
        is_private = bool(hub.model_info(name).private)
    except RepositoryNotFoundError:
        hub.create_repo(name, private=private)
        is_private = private
    if is_private is not private:
        there, other = ("private", "private=true") if is_private else ("public", "private=false")
        raise UserError(f"{name} is on the hub already and is {there}: give {other} to upload there, or another name")
    files = [CommitOperationAdd(path_in_repo=file, path_or_fileobj=folder / file) for file in listed]
    hub.create_commit(name, files, commit_message=f"Upload {folder.name} by urepa.export")
    return f"{hub.endpoint}/{name}"
