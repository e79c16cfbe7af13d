"""Pushes a small folder to a hub that fails to order; prints what happened as JSON. Run by test_push_faults.py, alone in a process."""

import json
import os
import sys
import time
from pathlib import Path

from tests.hub.local_hub import READ, WRITE, LocalHub


SCRATCH = Path(sys.argv[1])
RESULTS = {}
HUB = LocalHub().__enter__()
os.environ.update(HUB.environment(SCRATCH / "home"))
time.sleep = lambda seconds: WAITS.append(seconds)
WAITS: list[float] = []

from hf_elm.hub_contents import hub_files  # noqa: E402
from hf_elm.hub_push import HubError, push_files, require_login  # noqa: E402
from hf_elm.model_cards.card_text import is_own_card  # noqa: E402


def folder(name="first", weights=b"w" * 5000, **more):
    path = SCRATCH / name
    path.mkdir(exist_ok=True)
    content = {"config.json": b"{}", "model.safetensors": weights, "README.md": b"# card\n", **more}
    for file, data in content.items():
        (path / file.replace("__", ".")).write_bytes(data)
    return hub_files(path)


def push(case, repo_id, files, action=push_files, **options):
    """Run and record: the error or the result, and what the hub holds and saw."""
    HUB.log.clear()
    WAITS.clear()
    try:
        done = action(files, repo_id, message=f"push {case}", **options)
        outcome = {
            "commit": done.commit,
            "changed": done.changed,
            "deleted": done.deleted,
            "kept_card": done.kept_card,
        }
    except HubError as error:
        outcome = {"error": str(error)}
    repo = HUB.repos.get(repo_id)
    outcome |= {"titles": HUB.titles(repo_id) if repo else None, "log": list(HUB.log), "waits": list(WAITS)}
    outcome["files"] = sorted(HUB.files(repo_id)) if repo else None
    HUB.faults.clear()
    RESULTS[case] = outcome
    return outcome


def log_in(files, repo_id, message):
    require_login(repo_id)
    return push_files(files, repo_id, message=message)


PASSING = {  # a fault that passes
    "upload_500": ("PUT", "/lfs/", 500, 2),
    "upload_dropped": ("PUT", "/lfs/", "drop", 2),
    "upload_cut": ("PUT", "/lfs/", "half", 1),
    "preupload_503": ("POST", "/preupload/", 503, 2),
    "batch_429": ("POST", "/objects/batch", 429, 1),
    "commit_500": ("POST", "/commit/", 500, 1),
    "commit_dropped": ("POST", "/commit/", "drop", 1),
    "commit_answer_lost": ("POST", "/commit/", "lost", 1),
}
LASTING = {
    "always_500_upload": ("PUT", "/lfs/", 500),
    "always_500_commit": ("POST", "/commit/", 502),
    "always_429": ("POST", "/preupload/", 429),
    "always_dropped": ("POST", "/commit/", "drop"),
    "refused_403": ("POST", "/commit/", 403),
    "gone_404": ("POST", "/preupload/", 404),
    "changed_412": ("POST", "/commit/", 412),
    "strange_418": ("POST", "/commit/", 418),
}

files = folder()
for case, (method, path, action, times) in PASSING.items():
    HUB.fail(method, path, action, times, **({"Retry_After": "3"} if action == 429 else {}))
    push(case, f"user/{case}", folder(case, case.encode() * 500))
for case, (method, path, action) in LASTING.items():
    push(f"{case} before", f"user/{case}", files)
    newer = folder(case, case.encode() * 500)
    HUB.fail(method, path, action, 99)
    push(case, f"user/{case}", newer)
    push(f"{case} after", f"user/{case}", newer)

push("nowhere", "elsewhere/name", files)
push("unchanged", "user/plain", files)
push("unchanged again", "user/plain", files)
index = json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode()
sharded = {"model-00001-of-00001.safetensors": b"s" * 2000, "model.safetensors.index.json": index}
push("sharded", "user/stale", [file for file in folder("sharded", **sharded) if file.name != "model.safetensors"])
push("one file again", "user/stale", files)
push("on a branch", "user/plain", folder("second", b"2" * 500), revision="try/one")
RESULTS["branches"] = {name: sorted(HUB.files("user/plain", name)) for name in HUB.repos["user/plain"].branches}
push("private", "user/secret", files, private=True)
RESULTS["is private"] = HUB.repos["user/secret"].private
push("private over public", "user/plain", files, private=True)
push("own card", "user/card", files)
edited = folder("edited", README__md=b"# another card\n")
push("edited card", "user/card", edited, keep_card=lambda text: not is_own_card(text))
RESULTS["card there"] = HUB.files("user/card")["README.md"].decode()

for case, token in {"bad token": "hf_unknown", "read token": READ}.items():
    os.environ["HF_TOKEN"] = token
    push(case, "user/token", files, log_in)
del os.environ["HF_TOKEN"]
push("no token", "user/token", files, log_in)
os.environ["HF_TOKEN"] = WRITE
HUB.__exit__()
push("no server", "user/token", files, log_in)
print(json.dumps(RESULTS))  # noqa: T201
