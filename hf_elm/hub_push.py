"""One commit to the Hub: all files or none, with one clear sentence when it does not work."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from .hub_contents import HubFile


HTTP_ERROR = HfHubHTTPError.__mro__[1]  # of httpx, or of its successor: responses and lost connections
COMMIT_WAITS = (2.0, 4.0)  # seconds before the commit is tried again; uploads are retried by huggingface_hub
_WEIGHTS = re.compile(r"(model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|pytorch_model.*\.(bin|index\.json))")
_SERVER_FAULT = (
    "the Hub has a fault (HTTP {status}) that repeating did not cure; see https://status.huggingface.co and run the same command "
    "again later"
)
_MEANING = {
    401: "not logged in, or the token is not valid (HTTP 401); log in with `hf auth login`, or set HF_TOKEN to a token that may write",
    403: "the token may not write there (HTTP 403); make one with write access to {repo_id} at https://huggingface.co/settings/tokens",
    404: "not found (HTTP 404); check the name and that the token may see {repo_id}",
    409: "the repository changed meanwhile (HTTP 409); run the same command again",
    412: "the repository changed meanwhile (HTTP 412); run the same command again",
    413: "a file is too large for the Hub (HTTP 413); save the model in smaller shards (save_pretrained(max_shard_size=...))",
    429: "the Hub limits the rate (HTTP 429) and went on doing so; wait some minutes, then run the same command again",
}


class HubError(OSError):
    """The Hub did not do what it was asked; the message says what to do."""


@dataclass(frozen=True)
class Push:
    """What a push did.

    Attributes:
        url: of the repository.
        commit: its sha.
        changed: False where the repository already was as the folder is.
        deleted: weights of an earlier model that the commit took away, since they would stand beside the new ones.
        kept_card: the repository's README.md was edited there and was left as it is.
    """

    url: str
    commit: str
    changed: bool
    deleted: tuple[str, ...] = ()
    kept_card: bool = False


def check_repo_id(repo_id: str) -> None:
    """Refuse what is no ``user/name``.

    Raises:
        ValueError: with the rule.
    """
    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise HFValidationError("a user or organisation and a name, with one / between them")
    except HFValidationError as error:
        raise ValueError(f'the repository must be written user/name, got "{repo_id}": {error}') from None


def require_login(repo_id: str) -> None:
    """Ask the Hub who we are, before anything is computed.

    Raises:
        HubError: no token, a token that is not valid, no connection.
    """
    if get_token() is None:
        raise HubError("there is no token; log in with `hf auth login`, or set HF_TOKEN to a token that may write.")
    with clear_errors(repo_id):
        _api().whoami()


def push_files(
    files: Sequence[HubFile],
    repo_id: str,
    *,
    message: str,
    private: bool = False,
    revision: str | None = None,
    keep_card: Callable[[str], bool] | None = None,
) -> Push:
    """Create the repository (and the branch) where it is missing, and commit ``files`` to it, all in one commit.

    A commit is whole or not there; what was uploaded before an interruption is not sent again the next time. A commit whose
    answer was lost is looked for before it is repeated, and is never made twice.

    Args:
        private: make a new repository private; one that exists and is public is refused.
        revision: branch; None = main.
        keep_card: called with the text of the README.md that is there; True = leave it.

    Raises:
        HubError: what the Hub answered, and what to do.
    """
    api = _api()
    with clear_errors(repo_id):
        url = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise HubError(
                f"{repo_id} exists and is public; make it private in its settings first, or leave out --private."
            )
        if revision is not None and revision != "main":
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.repo_info(repo_id, revision=revision)
        there = {sibling.rfilename for sibling in info.siblings or ()}
        kept = "README.md" in there and keep_card is not None and keep_card(_remote_text(api, repo_id, info.sha))
        sent = [file for file in files if not (kept and file.name == "README.md")]
        stale = sorted(name for name in there - {file.name for file in files} if _WEIGHTS.fullmatch(name))
        operations = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=str(file.path)) for file in sent]
        operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
        commit = _commit(api, operations, info.sha, repo_id, revision, message)
    return Push(str(url), commit, commit != info.sha, tuple(stale), kept)


def _api():
    from . import __version__

    return HfApi(library_name="hf_elm", library_version=__version__)


def _remote_text(api, repo_id, sha):
    with open(api.hf_hub_download(repo_id, "README.md", revision=sha), encoding="utf-8", errors="replace") as file:
        return file.read()


def _commit(api, operations, before, repo_id, revision, message) -> str:
    """The sha of the commit; ``before`` is its parent, so that a repetition of one that arrived is refused."""
    for wait in (*COMMIT_WAITS, None):
        try:
            info = api.create_commit(
                repo_id, operations, commit_message=message, revision=revision, parent_commit=before
            )
            return info.oid
        except HTTP_ERROR as error:
            if (landed := _landed(api, repo_id, revision, before, message)) is not None:
                return landed
            if wait is None or not _may_pass(error):
                raise
        time.sleep(wait)
    raise AssertionError("unreachable")


def _landed(api, repo_id, revision, before, message):
    """The sha of the commit that arrived although its answer did not; None where there is none, or nobody answers."""
    with contextlib.suppress(HTTP_ERROR, OSError):
        if api.repo_info(repo_id, revision=revision).sha == before:
            return None
        head = api.list_repo_commits(repo_id, revision=revision)[0]
        if head.title == message:
            return head.commit_id
    return None


def _may_pass(error):
    """Whether repeating the commit may help; huggingface_hub has already repeated all that comes before it."""
    response = getattr(error, "response", None)
    try:
        url = str((error if response is None else response).request.url)
    except (AttributeError, RuntimeError):  # it was never sent
        return False
    if "/commit/" not in url:
        return False
    return response is None or response.status_code in (408, 429, 500, 502, 503, 504)


@contextlib.contextmanager
def clear_errors(repo_id: str) -> Iterator[None]:
    """What huggingface_hub raises becomes a `HubError` of one sentence, which ends with what is true of both sides."""
    try:
        yield
    except HubError:
        raise
    except (HTTP_ERROR, LocalTokenNotFoundError, OfflineModeIsEnabled, RuntimeError, ValueError) as error:
        reason = _reason(error, repo_id)
        if reason is None:
            raise
        raise HubError(
            f"{repo_id}: {reason}. Nothing was lost here, and a commit arrives whole or not at all."
        ) from error


def _reason(error, repo_id) -> str | None:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    if any(isinstance(each, OfflineModeIsEnabled) for each in chain):
        return "HF_HUB_OFFLINE is set, so that the Hub is not asked; unset it to publish"
    if any(isinstance(each, LocalTokenNotFoundError) for each in chain):
        return _MEANING[401]
    answered = next((each for each in chain if getattr(each, "response", None) is not None), None)
    if answered is not None:
        return _meaning(answered, repo_id)
    lost = next((each for each in chain if isinstance(each, HTTP_ERROR)), None)
    if lost is not None:
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        return f"the connection to {endpoint} failed ({type(lost).__name__}: {_first_line(lost)}); run the same command again"
    return f"README.md is not accepted: {_first_line(error)}" if isinstance(error, ValueError) else None


def _meaning(error, repo_id) -> str:
    status = error.response.status_code
    told = getattr(error, "server_message", None)
    said = f" (it says: {_first_line(told)})" if told else ""
    if status in _MEANING:
        return _MEANING[status].format(repo_id=repo_id) + said
    if status >= 500:
        return _SERVER_FAULT.format(status=status) + said
    return f"the Hub refused (HTTP {status}): {_first_line(error)}"


def _first_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
