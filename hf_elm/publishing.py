"""From a folder on disk to one commit on the Hub: exported where it is a run's, checked in a clean process, then sent."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .adapter_folders import ADAPTER_CONFIG, base_of_adapter
from .card_files import CARD, has_users_card, new_card
from .hub_contents import HubFile, check_contents, is_run_folder, refuse_link, refuse_pickled_weights
from .hub_push import Push, check_repo_id, push_files, require_login
from .model_cards.card_text import is_own_card


def publish(
    folder: str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    license: str | None = None,
    overwrite_card: bool = False,
    base: str | None = None,
    merge: bool = False,
    dry_run: bool = False,
    report: Callable[[str], Any] = lambda text: None,
    list_files: Callable[[list[HubFile]], str] = lambda files: "",
) -> Push | None:
    """Publish the model in ``folder`` as ``repo_id``; ``folder`` is not changed.

    Args:
        private, revision, message: see `hf_elm.hub_push.push_files`.
        license: for the card.
        overwrite_card: replace the repository's README.md even where it was edited there.
        base: of an adapter, the Hub id of its base, where its files name a folder.
        merge: of an adapter, publish its base with the adapter in the weights.
        dry_run: no network; everything else.
        report: called with what is to be told; ``list_files`` makes the text of the list.

    Returns:
        what was done; None for a dry run.

    Raises:
        FileNotFoundError, ValueError: the folder cannot be published, or ``repo_id`` is no user/name.
        HubError: the Hub did not take it.
    """
    check_repo_id(repo_id)
    _check_folder(folder)
    base = _base_to_name(folder, base, merge)
    if not dry_run:
        require_login(repo_id)
    with tempfile.TemporaryDirectory(prefix="hf_elm_publish_") as scratch:
        files = _prepared(Path(folder), Path(scratch), {"repo_id": repo_id, "license": license}, base)
        report(f"{folder} loads and runs in a process without hf_elm; for {repo_id}:\n{list_files(files)}")
        if dry_run:
            report("dry run: nothing was sent\n")
            return None
        push = push_files(
            files,
            repo_id,
            message=message or f"Publish with hf_elm {__version__}",
            private=private,
            revision=revision,
            keep_card=None if overwrite_card else _kept_cards(files),
        )
    report(_summary(push))
    return push


def _kept_cards(files: list[HubFile]) -> Callable[[str], bool] | None:
    """Which README.md of the repository stays: one that was edited there, unless the user gives one of their own."""
    card = next(file for file in files if file.name == CARD).path.read_text(encoding="utf-8", errors="replace")
    return (lambda text: not is_own_card(text)) if is_own_card(card) else None


def _check_folder(folder: str) -> None:
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"DIR={folder} is no folder; give one that a run, save_pretrained or `hf-elm export` wrote."
        )
    if _is_adapter(path):
        refuse_pickled_weights(path, "DIR")
        return
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"DIR={folder} has no config.json; give a folder that a run, save_pretrained or export wrote."
        )
    refuse_pickled_weights(path, "DIR")
    if not is_run_folder(path):
        check_contents(path)


def _is_adapter(path: Path) -> bool:
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def _base_to_name(folder: str, base: str | None, merge: bool) -> str | None:
    """The Hub id that the published adapter names as its base; None where a model is published."""
    if _is_adapter(Path(folder)) and not merge:
        base_of_adapter(folder)  # is at hand
        from .adapter_publishing import published_base  # imports torch

        return published_base(folder, base)
    if base is not None:
        reason = "merge=true publishes a model" if merge else f"DIR={folder} holds a model"
        raise ValueError(f"base={base} concerns adapters alone, but {reason}; leave it out.")
    if merge and not _is_adapter(Path(folder)):
        raise ValueError(f"merge=true concerns adapters alone, but DIR={folder} holds a model; leave it out.")
    return None


def _prepared(folder: Path, scratch: Path, declared: dict[str, Any], base: str | None) -> list[HubFile]:
    """The files to publish, proven to load; ``base``: see `_base_to_name`."""
    from .hub_folder import check_saved_folder, export_checkpoint  # imports torch

    if base is not None:
        from .adapter_publishing import prepare_adapter

        _refuse_links(folder)
        return prepare_adapter(folder, scratch, base, declared)
    if is_run_folder(folder) or _is_adapter(folder):
        _refuse_links(folder)
        export_checkpoint(str(folder), scratch / "model", card=declared)
        return check_contents(scratch / "model")
    files = check_contents(folder)
    check_saved_folder(str(folder))
    if not has_users_card(folder):
        path = scratch / CARD
        path.write_text(new_card(folder, **declared), encoding="utf-8")
        card = HubFile(CARD, path, path.stat().st_size)
        files = sorted([card, *(file for file in files if file.name != CARD)], key=lambda file: file.name)
    return files


def _refuse_links(folder: Path) -> None:
    """Of a run's folder only what stands at its top is read."""
    for path in sorted(folder.iterdir()):
        refuse_link(folder, path)


def _summary(push: Push) -> str:
    lines = [
        f"{push.url}/commit/{push.commit}"
        if push.changed
        else f"{push.url} already holds exactly this; nothing to commit"
    ]
    if push.deleted:
        lines.append(f"took away weights of an earlier model: {', '.join(push.deleted)}")
    if push.kept_card:
        lines.append(f"kept the {CARD} that was edited there; overwrite_card=true replaces it")
    if push.changed:
        lines.append(f'load it with from_pretrained(..., revision="{push.commit}", trust_remote_code=True)')
    return "\n".join(lines) + "\n"
