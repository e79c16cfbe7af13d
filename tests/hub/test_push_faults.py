"""`hf_elm.hub_push` against a hub that fails: what passes is retried, what lasts is one clear sentence, commits are atomic."""

import subprocess

import pytest

from tests.hub.hub_process import run_script, script
from tests.hub.local_hub import LocalHub


FILES = [".gitattributes", "README.md", "config.json", "model.safetensors"]
PASSING = {  # fault that passes -> seconds that were waited
    "upload_500": [1, 2],
    "upload_dropped": [1, 2],
    "upload_cut": [1],
    "preupload_503": [1, 2],
    "batch_429": [4.0],  # Retry-After: 3, and one against rounding
    "commit_500": [2.0],
    "commit_dropped": [2.0],
    "commit_answer_lost": [],
}
LASTING = {  # fault that lasts -> what the sentence says, and how often the commit was tried
    "always_500_upload": ("HTTP 500", 0),
    "always_500_commit": ("HTTP 502", 3),
    "always_429": ("HTTP 429", 0),
    "always_dropped": ("connection to http://127.0.0.1", 3),
    "refused_403": ("HTTP 403", 1),
    "gone_404": ("HTTP 404", 0),
    "changed_412": ("HTTP 412", 1),
    "strange_418": ("HTTP 418", 1),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_script("push_faults_run.py", tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("case", PASSING)
def test_a_fault_that_passes_is_waited_for_and_one_commit_arrives(results, case):
    found = results[case]
    assert found["titles"] == ["initial commit", f"push {case}"]
    assert found["files"] == FILES
    assert found["waits"] == PASSING[case]


@pytest.mark.parametrize("case", LASTING)
def test_a_fault_that_lasts_changes_nothing_and_says_what_to_do(results, case):
    part, commits = LASTING[case]
    found, after = results[case], results[f"{case} after"]
    assert part in found["error"]
    assert "\n" not in found["error"]
    assert f"user/{case}" in found["error"]
    assert found["titles"] == ["initial commit", f"push {case} before"]
    assert sum("/commit/" in line for line in found["log"]) == commits
    assert after["titles"] == [*found["titles"], f"push {case} after"]  # the same command again


def test_what_was_uploaded_before_a_fault_is_not_sent_again(results):
    sent = [line for line in results["always_500_commit"]["log"] if line.startswith("PUT /lfs/")]
    again = [line for line in results["always_500_commit after"]["log"] if line.startswith("PUT /lfs/")]
    assert (len(sent), again) == (1, [])


def test_everything_arrives_in_one_commit_and_nothing_is_committed_twice(results):
    assert sum("/commit/" in line for line in results["unchanged"]["log"]) == 1
    assert results["unchanged again"]["changed"] is False
    assert results["unchanged again"]["titles"] == ["initial commit", "push unchanged"]


def test_weights_of_an_earlier_model_do_not_stay_beside_the_new_ones(results):
    stale = ["model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    assert set(stale) <= set(results["sharded"]["files"])
    assert results["one file again"]["deleted"] == stale
    assert results["one file again"]["files"] == FILES
    assert len(results["one file again"]["titles"]) == 3  # in the same commit


def test_a_branch_is_made_and_main_stays(results):
    assert set(results["branches"]) == {"main", "try/one"}
    assert results["on a branch"]["titles"][-1] == "push on a branch"


def test_private_repositories_are_private_or_refused(results):
    assert results["is private"] is True
    assert "exists and is public" in results["private over public"]["error"]


def test_a_card_edited_on_the_hub_is_kept(results):
    assert results["edited card"]["kept_card"] is True
    assert results["card there"] == "# card\n"


@pytest.mark.parametrize(
    ("case", "part"),
    [
        ("bad token", "HTTP 401"),
        ("read token", "HTTP 403"),
        ("no token", "hf auth login"),
        ("nowhere", "HTTP 403"),
        ("no server", "connection to http://127.0.0.1"),
    ],
)
def test_who_may_not_write_is_told_so(results, case, part):
    assert part in results[case]["error"]
    assert results[case]["titles"] is None


@pytest.mark.parametrize("where", ["/lfs/", "/commit/"])
def test_a_killed_push_leaves_the_hub_as_it_was_and_can_be_repeated(tmp_path, where):
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 3000)
    with LocalHub() as hub:
        hub.fail("PUT" if where == "/lfs/" else "POST", where, "hold")
        command, environment = script("push_once_run.py", folder, "user/killed", **hub.environment(tmp_path / "home"))
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert hub.held.wait(timeout=60)
        finally:
            process.kill()
            process.communicate()
        assert hub.titles("user/killed") == ["initial commit"]
        assert list(hub.files("user/killed")) == [".gitattributes"]
        assert len(list(folder.iterdir())) == 2
        hub.log.clear()
        run_script("push_once_run.py", folder, "user/killed", **hub.environment(tmp_path / "home"))
        assert hub.titles("user/killed") == ["initial commit", "whole"]
        assert len(hub.files("user/killed")) == 3
        if where == "/commit/":
            assert not [line for line in hub.log if line.startswith("PUT /lfs/")]
