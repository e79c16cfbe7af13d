"""Every file of a saved model, damaged: the commands that read it refuse it by name, or do not need it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

from hf_elm.card_files import new_card
from tests.fuzz.damage import BYTES, WEIGHTS, copied, json_damage
from tests.fuzz.exploration import amounts, explore
from tests.fuzz.oracle import case_folder, refused, run_command


JSON_FILES = {  # file -> keys that are worth more tries
    "config.json": ("auto_map", "architectures", "model_type", "text_config", "vocab_size", "dtype", "energy_head"),
    "generation_config.json": ("eos_token_id", "pad_token_id", "max_length", "num_candidates", "transformers_version"),
    "tokenizer_config.json": ("tokenizer_class", "auto_map", "eos_token", "added_tokens_decoder", "model_max_length"),
    "tokenizer.json": ("model", "added_tokens", "pre_tokenizer", "decoder", "version"),
    "recipe.yaml": ("data", "seed", "family", "train", "objective", "model"),
    "metrics.jsonl": ("loss", "step", "tokens_seen", "train_runtime"),
    "likelihood.json": ("lm_nll", "elm_nll", "num_tokens"),
    "environment.json": ("torch", "packages"),
    "quickstart.json": ("sequence_length",),
    "trainer_state.json": ("global_step", "log_history", "total_flos"),
}
EVALUATE = ["evaluate", "checkpoint=run7"]
GENERATE = ["generate", "checkpoint=run7", "prompt=ab", "max_new_tokens=2", "stream=false"]
COMPARE = ["compare", "run7", "documents=2", "document_bytes=32"]
PLOT = ["plot", "training", "checkpoint=run7", "output=picture.svg"]
EMBED = [
    "embed",
    "text.txt",
    "checkpoint=run7",
    "output=vectors.npy",
    "progress=false",
    "pooling=mean",
    "pool_with_dense=false",
]
PUBLISH = ["publish", "run7", "user/name", "--dry-run"]
EXPORT = ["export", "run7", "exported"]
COMMANDS = {
    "monarc": [[*EVALUATE, "max_tokens=40", "progress=false"], GENERATE, COMPARE, PLOT],
    "nano_ebm": [
        [*EVALUATE, "max_tokens=40"],
        GENERATE,
        COMPARE,
        PLOT,
        ["plot", "landscape", "checkpoint=run7", "prompt=a", "grid=3"],
    ],
    "m2_bert": [EVALUATE, EMBED, PLOT],
    "adapter": [[*EVALUATE, "max_tokens=40", "progress=false"], GENERATE],
    "sharded": [GENERATE],
}


def files(names) -> st.SearchStrategy:
    """(name, damage) of one of the JSON files of a model, or of its weights."""
    each = [
        st.tuples(st.just(name), json_damage(*JSON_FILES.get(name, ())))
        for name in names
        if name.endswith(("json", "yaml", "jsonl"))
    ]
    each += [st.tuples(st.just(name), WEIGHTS) for name in names if name.endswith(".safetensors")]
    return st.one_of(*each)


def check(runs, run, command, file):
    name, damage = file
    with case_folder() as folder:
        target = copied(runs[run], folder / "run7")
        shutil.copy(runs["text"], folder / "text.txt")
        damage(target / name)
        run_command(folder, command, ["run7", name, *known_names(runs)])


def known_names(runs):
    return [str(Path(path).name) for path in runs.values()]


@pytest.mark.parametrize("run", ["monarc", "nano_ebm", "m2_bert"])
@amounts(few=4, many=60)
def test_a_model_with_a_damaged_file_is_refused_by_name_or_read(runs, run, amount):
    file = files([*JSON_FILES, "model.safetensors"])
    check_case = lambda command, file: check(runs, run, command, file)  # noqa: E731
    explore("checkpoints", check_case, amount, command=st.sampled_from(COMMANDS[run]), file=file)


@pytest.mark.parametrize(
    ("run", "names"),
    [
        ("adapter", ["adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"]),
        ("sharded", ["model.safetensors.index.json"]),
    ],
)
@amounts(few=3, many=25)
def test_a_damaged_adapter_or_index_is_refused_by_name(runs, run, names, amount):
    check_case = lambda command, file: check(runs, run, command, file)  # noqa: E731
    explore("checkpoints", check_case, amount, command=st.sampled_from(COMMANDS[run]), file=files(names))


def check_resume(runs, run, checkpoint, file):
    """A run goes on, from this checkpoint or the one before, or says why not; a refusal leaves every byte as it was."""
    name, damage = file
    with case_folder() as folder:
        target = copied(runs[run], folder / "run7")
        (target / "notes.txt").write_text("of the user")
        place = target / checkpoint if (target / checkpoint / name).exists() else target / "checkpoint-2"
        damage(place / name)
        settings = [str(argument) for argument in resume_arguments(runs, run)]
        status = run_command(folder, settings, ["run7", name, checkpoint], goes_on=True)
        assert (target / "notes.txt").read_text() == "of the user"
        assert status == 2 or (target / "model.safetensors").is_file()


def resume_arguments(runs, run):
    from tests.fuzz.saved_runs import FAMILIES, SMALL

    return ["train", *FAMILIES[run], *SMALL, f"data.corpus={runs['text']}", "output_dir=run7", "resume=true"]


@pytest.mark.parametrize("run", ["monarc", "nano_ebm", "m2_bert"])
@amounts(few=1, many=15)
def test_a_run_resumes_past_damage_or_refuses(runs, run, amount):
    names = ["trainer_state.json", "files.json", "config.json", "model.safetensors"]
    file = st.one_of(
        files(names), st.tuples(st.sampled_from(("optimizer.pt", "scheduler.pt", "rng_state.pth")), BYTES)
    )
    check_case = lambda checkpoint, file: check_resume(runs, run, checkpoint, file)  # noqa: E731
    explore(
        "resumed runs",
        check_case,
        amount,
        checkpoint=st.sampled_from(("checkpoint-1", "checkpoint-2", ".")),
        file=file,
    )


def check_prepared(runs, file):
    name, damage = file
    with case_folder() as folder:
        copied(runs["prepared"], folder / "rows7")
        damage(folder / "rows7" / name)
        arguments = [
            "evaluate",
            f"checkpoint={runs['monarc']}",
            "data.corpus=rows7",
            "max_tokens=40",
            "progress=false",
        ]
        run_command(folder, arguments, ["rows7", name, "manifest.json"])


@amounts(few=4, many=40)
def test_damaged_prepared_rows_are_refused_by_name(runs, amount):
    file = st.one_of(
        st.tuples(st.just("manifest.json"), json_damage("parts", "settings", "corpus")),
        st.tuples(st.just("settings.json"), json_damage("data", "family", "seed")),
        st.tuples(st.just("tokenizer/tokenizer.json"), json_damage("model", "added_tokens")),
        st.tuples(st.sampled_from(("train/00000-of-00001.arrow", "held_out/00000-of-00001.arrow")), BYTES),
    )
    explore("prepared rows", lambda file: check_prepared(runs, file), amount, file=file)


def check_hub_folder(runs, run, command, file):
    name, damage = file
    with case_folder() as folder:
        target = copied(runs[run], folder / "run7")
        shutil.rmtree(target / "checkpoint-1", ignore_errors=True)
        damage(target / name)
        run_command(folder, command, ["run7", name, "exported", *known_names(runs)])


def check_card(runs, run, file):
    name, damage = file
    with case_folder() as folder:
        target = copied(runs[run], folder / "run7")
        damage(target / name)
        folder.remember()
        refused(lambda: new_card(target, repo_id="user/name"), [name, "run7"], file)
        folder.assert_kept(also_nothing_new=True)


@pytest.mark.parametrize("run", ["monarc", "nano_ebm", "m2_bert"])
@amounts(few=3, many=50)
def test_a_card_is_written_of_damaged_records_or_refused_by_name(runs, run, amount):
    names = ["recipe.yaml", "likelihood.json", "environment.json", "metrics.jsonl", "config.json", "model.safetensors"]
    explore("cards", lambda file: check_card(runs, run, file), amount, file=files(names))


MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]


def check_modules(runs, file):
    """The files by which sentence-transformers knows an encoder."""
    name, damage = file
    with case_folder() as folder:
        target = copied(runs["m2_bert"], folder / "run7")
        for module in MODULES[1:]:
            (target / module["path"]).mkdir()
        (target / "modules.json").write_text(json.dumps(MODULES))
        (target / "1_Pooling/config.json").write_text('{"pooling_mode": "mean"}')
        (target / "2_Dense/config.json").write_text('{"in_features": 16, "out_features": 16}')
        dense = {"linear.weight": torch.eye(16), "linear.bias": torch.zeros(16)}
        save_file(dense, target / "2_Dense/model.safetensors")
        damage(target / name)
        shutil.copy(runs["text"], folder / "text.txt")
        run_command(folder, ["embed", "text.txt", "checkpoint=run7", "output=v.npy", "progress=false"], ["run7"])


@amounts(few=3, many=40)
def test_damaged_modules_of_an_encoder_are_refused_by_name(runs, amount):
    names = ["modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    explore("modules", lambda file: check_modules(runs, file), amount, file=files(names))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("run", ["monarc", "m2_bert", "sharded"])
def test_a_damaged_folder_is_not_exported_or_published(runs, run):
    """Each case that is not refused at once costs a fresh interpreter: slow only."""
    names = ["config.json", "tokenizer_config.json", "generation_config.json"]
    names += ["model.safetensors.index.json"] if run == "sharded" else ["model.safetensors"]
    check_case = lambda command, file: check_hub_folder(runs, run, command, file)  # noqa: E731
    explore("hub folders", check_case, 6, command=st.sampled_from((EXPORT, PUBLISH)), file=files(names))
