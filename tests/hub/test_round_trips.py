"""Every family to the hub and back: pushed by model, trainer and command, loaded by id where hf_elm cannot be imported."""

import ast
import json
import re
import sys

import pytest

from tests.hub.hub_process import run_script
from tests.hub.local_hub import LocalHub


FAMILIES = ("monarc", "nano_ebm", "m2_bert")
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
pytestmark = pytest.mark.timeout(900)  # interpreters that import torch: minutes on a busy machine
SOME = ("monarc:checkpoint", "nano_ebm:every_save", "m2_bert:end")
TOLERANCE = 1e-5  # sums in another order
MERGED = 1e-4  # logits of tens; the merged weights are rounded


class RoundTrip:
    """The hub after publisher_run.py, and differences of what clean processes loaded."""

    def __init__(self, hub, scratch, runs):
        self.hub, self.scratch, self.runs = hub, scratch, runs
        self.results = run_script("publisher_run.py", scratch, *runs, **hub.environment(scratch / "home"))
        loads = ["published=user/published", "published-adapter=user/published-adapter", "merged=user/merged"]
        for family in FAMILIES:
            sha = self.results["revisions"][family]
            loads += [
                f"{family}-v2=user/{family}",
                *(f"{family}-v1=user/{family}@{each}" for each in ("v1", "old", sha)),
            ]
        loads += [f"{family}-adapter=user/{family}-adapter" for family in FAMILIES]
        names = [run.replace(":", "-") for run in runs]
        loads += [f"trained-{name}=user/{name}" for name in names]
        self.loaded = run_script("clean_load_run.py", scratch, *loads, **hub.environment(scratch / "clean"))

    def again(self):
        arguments = [f"{family}-v2=user/{family}" for family in FAMILIES]
        environment = self.hub.environment(self.scratch / "again")
        return run_script("clean_load_run.py", self.scratch, "--again", *arguments, **environment)


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    with LocalHub() as hub:
        yield RoundTrip(hub, tmp_path_factory.mktemp("trip"), SOME)


def test_models_adapters_and_revisions_come_back_equal(trip):
    assert len(trip.loaded) == 3 + (4 + 1) * len(FAMILIES) + len(SOME)
    for name, difference in trip.loaded.items():
        assert difference <= (MERGED if name == "merged" else TOLERANCE), name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_push_holds_all_code_and_the_full_auto_map(trip, family):
    files = trip.hub.files(f"user/{family}")
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert {"AutoConfig", "AutoModel"} <= auto_map.keys()
    assert len(auto_map) == (7 if family == "m2_bert" else 3)
    waiting, seen = [f"{value.split('.')[0]}.py" for value in auto_map.values()], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(files[name])):
            if isinstance(node, ast.ImportFrom) and node.level:
                waiting.append(f"{node.module}.py")
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                for module in modules:
                    assert module.split(".")[0] in {"torch", "transformers", *sys.stdlib_module_names}, (name, module)
    assert seen == {name for name in files if name.endswith(".py")}
    assert "model.safetensors" in files
    assert "tokenizer.json" in files


def test_a_second_push_is_a_commit_of_its_own_and_sends_only_what_changed(trip):
    assert len(trip.hub.titles("user/monarc")) == 4  # made, model, tokenizer, model again
    first = trip.hub.files("user/monarc", "v1")
    second = trip.hub.files("user/monarc")
    assert {name for name in second if second[name] != first.get(name)} == {"model.safetensors"}


def test_publish_sends_one_commit_of_the_model_alone(trip):
    result, files = trip.results["publish"], trip.hub.files("user/published")
    assert result["status"] == 0, result
    assert trip.hub.titles("user/published") == ["initial commit", "first"]
    assert trip.hub.repos["user/published"].private
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "likelihood.json",
    }
    assert wanted <= files.keys()
    assert not [name for name in files if name.endswith((".bin", ".pt", ".yaml", ".jsonl")) or "/" in name]
    for name in files:
        if name != ".gitattributes":
            assert re.search(rf"^  {re.escape(name)} +[\d.]+ [KM]?i?B$", result["printed"], re.MULTILINE), name
    assert f"/commit/{trip.hub.repos['user/published'].branches['main']}" in result["printed"]
    card = files["README.md"].decode()
    for part in ("license: apache-2.0", "user/corpus", "elm_nll", "custom_code", 'model_info("user/published").sha'):
        assert part in card, part


def test_publish_sends_an_adapter_without_its_base_and_names_where_that_is(trip):
    result, files = trip.results["adapter"], trip.hub.files("user/published-adapter")
    assert result["status"] == [0, 0], result
    assert result["difference"] <= MERGED  # our commands merge it
    assert result["tokens"] == [97, 98, 99]
    assert {name for name in files if not name.endswith(".json")} == {
        ".gitattributes",
        "README.md",
        "adapter_model.safetensors",
    }
    assert "config.json" not in files
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "user/monarc"
    card = files["README.md"].decode()
    for part in (
        "library_name: peft",
        "base_model: user/monarc",
        "license: mit",
        "rank 8",
        "PeftModel.from_pretrained(base,",
    ):
        assert part in card, part
    assert str(trip.scratch) not in "".join(data.decode(errors="replace") for data in files.values())
    assert "adapter_config.json" not in trip.hub.files("user/merged")


@pytest.mark.parametrize("run", SOME)
def test_a_trainer_pushes_model_code_and_card(trip, run):
    check_trainer_push(trip.hub, run)


def check_trainer_push(hub, run):
    name, strategy = run.replace(":", "-"), run.split(":")[1]
    files = hub.files(f"user/{name}")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert f"modeling_{run.split(':')[0]}.py" in files
    card = files["README.md"].decode()
    for part in ("license: mit", "- mine", "- custom_code", f'model_info("user/{name}").sha', "optimizer steps"):
        assert part in card, part
    folders = {path.split("/")[0] for path in files if "/" in path}
    assert (
        folders
        == {
            "end": set(),
            "every_save": set(),
            "checkpoint": {"last-checkpoint"},
            "all_checkpoints": {"checkpoint-1", "checkpoint-2"},
        }[strategy]
    )
    steps = [title for title in hub.titles(f"user/{name}") if title.startswith("Training in progress")]
    assert bool(steps) == (strategy != "end")


def test_a_model_loaded_by_id_and_pushed_elsewhere_needs_its_first_repository_no_more(trip):
    for name, difference in trip.again().items():
        assert difference <= TOLERANCE, name
    assert not {"user/monarc", "user/nano_ebm", "user/m2_bert"} & trip.hub.repos.keys()


@pytest.mark.slow
def test_every_trainer_pushes_with_every_strategy(tmp_path):
    runs = [
        f"{family}:{strategy}" for family in FAMILIES for strategy in STRATEGIES if f"{family}:{strategy}" not in SOME
    ]
    with LocalHub() as hub:
        found = RoundTrip(hub, tmp_path, runs)
        for name, difference in found.loaded.items():
            assert difference <= TOLERANCE, name
        for run in runs:
            check_trainer_push(hub, run)
