"""Recipes and overrides: spellings, types, precedence, and errors that name the nearest key and where it was written."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from hf_elm.command_schemas import evaluation_schema, generation_schema, training_schema
from hf_elm.commands.train import resolve_settings
from hf_elm.recipe_keys import Key, Schema, read_fields
from hf_elm.recipes import bundled_recipes, find_recipe, literal_defaults, merge, read_recipe, split_arguments


@pytest.fixture(scope="module")
def schema():
    return training_schema()


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize(
    "spelling",
    [
        ["train.max_steps=100"],
        ["--train.max_steps=100"],
        ["--train.max_steps", "100"],
        ["--train.max-steps", "100"],
        ["train.max-steps=100"],
    ],
)
def test_every_spelling_means_the_same(schema, spelling):
    assert split_arguments(spelling, schema) == ([], {"train.max_steps": 100})


@pytest.mark.parametrize(
    ("argument", "key", "value"),
    [
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        ("train.learning_rate=1", "train.learning_rate", 1),
        ("train.bf16=true", "train.bf16", True),
        ("train.bf16=no", "train.bf16", False),
        ("train.eval_strategy=no", "train.eval_strategy", "no"),
        ("train.eval_steps=null", "train.eval_steps", None),
        ("train.lr_scheduler_kwargs={min_lr: 1e-5}", "train.lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ("train.lr_scheduler_kwargs.min_lr=1e-5", "train.lr_scheduler_kwargs.min_lr", 1e-5),
        ("model.preset=163m", "model.preset", "163m"),
        ("model.text_config.hidden_size=32", "model.text_config.hidden_size", 32),
        ("model.text_config.rope_parameters.rope_theta=1e4", "model.text_config.rope_parameters.rope_theta", 1e4),
        ("model.energy_adapter_targets=[q_proj, v_proj]", "model.energy_adapter_targets", ["q_proj", "v_proj"]),
        ("model.energy_adapter_targets=all-linear", "model.energy_adapter_targets", "all-linear"),
        ("data.corpus=12345", "data.corpus", "12345"),
        ("data.corpus=a=b: [c", "data.corpus", "a=b: [c"),
        ("data.max_bytes=1_000_000", "data.max_bytes", 1_000_000),
        ("tokenizer.path=none", "tokenizer.path", None),
    ],
)
def test_values_are_typed_by_their_key(schema, argument, key, value):
    assert split_arguments([argument], schema)[1] == {key: value}


def test_aliases_lead_to_their_key(schema):
    _, values = split_arguments(
        ["train.compile=true", "output_dir=x", "data.block_size=64", "--train.lr", "1e-4"], schema
    )
    expected = {"train.torch_compile": True, "train.output_dir": "x", "data.sequence_length": 64}
    assert values == expected | {"train.learning_rate": 1e-4}
    for alias, key in schema.aliases.items():
        assert schema.find(alias, "test") == (key, schema.keys[key]), alias


def test_flags_and_positionals(schema):
    positionals, values = split_arguments(["--resume", "tiny.yaml", "--train.bf16", "false", "seed=3"], schema)
    assert positionals == ["tiny.yaml"]
    assert values == {"resume": True, "train.bf16": False, "seed": 3}


def test_text_is_taken_as_it_stands():
    prompts = ["HAMLET:", "${x}", "a: [b", "", "true", "x=1\ny=2", "--not-an-option"]
    for prompt in prompts:
        assert split_arguments([f"prompt={prompt}"], generation_schema())[1] == {"prompt": prompt}
    assert merge({"prompt": "${x}"}) == {"prompt": "${x}"}


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("train.max_step=1", "train.max_steps"),
        ("max_steps=1", "train.max_steps"),
        ("modle.preset=tiny", "model.preset"),
        ("model.energy_heads=linear", "model.energy_head"),
        ("--data.sequence_lenght=3", "data.sequence_length"),
        ("sed=1", "seed"),
        ("train.max_steps.x=1", "train.max_steps"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_its_origin(schema, argument, nearest):
    with pytest.raises(ValueError, match=rf'\(command line\); the nearest valid key is "{nearest}"'):
        split_arguments([argument], schema)


def test_an_unknown_key_in_a_file_names_the_file(schema, recipe):
    path = recipe("train:\n  max_step: 3\n")
    with pytest.raises(ValueError, match=rf'unknown key "train.max_step" \({path}\).*"train.max_steps"'):
        read_recipe(path, schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [1, 2", "not a valid YAML recipe"),
        ("- a\n- b\n", "must hold"),
        ("train:\n  max_steps: many\n", "train.max_steps='many'.*must be of type int"),
        ("train:\n  max_steps: true\n", "must be of type int"),
        ("train:\n  eval_strategy: no\n", "put it in quotes"),
        ("data:\n  corpus: 3\n", "must be of type str"),
        ("train:\n  max_steps: 1\ntrain:\n  max_steps: 2\n", "not a valid YAML recipe"),
    ],
)
def test_a_broken_recipe_is_refused_with_the_reason(schema, recipe, text, message):
    with pytest.raises(ValueError, match=message):
        read_recipe(recipe(text), schema)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max_steps"], "needs a value"),
        (["--train.max_steps", "--resume"], "needs a value"),
        (["train.max_steps=ten"], "must be of type int"),
        (["train.max_steps=1.5"], "must be of type int"),
        (["train.bf16=maybe"], "must be of type bool"),
    ],
)
def test_a_wrong_value_is_refused(schema, arguments, message):
    with pytest.raises(ValueError, match=message):
        split_arguments(arguments, schema)


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(recipe):
    path = recipe(
        "seed: 5\ndata: {sequence_length: 32, max_bytes: 100}\nmodel: {text_config: {hidden_size: 8, n: 1}}\n"
    )
    settings = resolve_settings([path, "data.max_bytes=200", "model.text_config.hidden_size=16"], "train")
    assert (settings["seed"], settings["data"]["sequence_length"], settings["data"]["max_bytes"]) == (5, 32, 200)
    assert settings["model"] == {"text_config": {"hidden_size": 16, "n": 1}}
    assert settings["data"]["corpus"] == "stdlib"  # a default
    assert settings["train"]["output_dir"] == "runs/recipe"
    assert settings["evaluate"]["skip"] is False


def test_interpolations_within_a_recipe_are_resolved(schema, recipe):
    values = read_recipe(recipe("seed: 3\ntrain: {seed: '${seed}', run_name: 'seed${seed}'}\n"), schema)
    assert values == {"seed": 3, "train.seed": 3, "train.run_name": "seed3"}


@pytest.mark.parametrize("name", list(bundled_recipes()))
def test_bundled_recipes_are_valid(name):
    settings = resolve_settings([name], "train")
    assert name.startswith(settings["family"])
    for spelling in (f"{name}.yaml", f"recipes/{name}.yaml", str(bundled_recipes()[name])):
        assert find_recipe(spelling).samefile(bundled_recipes()[name])


@pytest.mark.parametrize("name", list(bundled_recipes()))
def test_bundled_recipes_make_training_arguments_and_a_schedule(name, tmp_path):
    import torch
    from transformers import get_scheduler

    from hf_elm.families import find_family, resolve

    settings = resolve_settings([name], "train")
    values = settings["train"] | {"output_dir": str(tmp_path), "bf16": False}
    arguments = resolve(find_family(settings["family"], settings.get("objective")).training_arguments)(**values)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    steps = arguments.max_steps if arguments.max_steps > 0 else 1000  # else counted in epochs
    warmup = arguments.get_warmup_steps(steps)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, warmup, steps, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs
    )
    factor = schedule.lr_lambdas[0]
    kind = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    floors = {
        "linear": 0.0,
        "warmup_stable_decay": 0.02,
    }  # of the published encoder runs; a tenth of the peak elsewhere
    assert factor(steps) == pytest.approx(1.0 if kind.startswith("constant") else floors.get(kind, 0.1), abs=1e-3)
    assert factor(warmup) == pytest.approx(1.0, abs=1e-3)
    start = 0.02 if kind == "warmup_stable_decay" else 0.1 if "rewarmed" in name else 0.0
    assert factor(0) == pytest.approx(start if warmup else 1.0)


def test_unknown_recipe_lists_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match="monarc_tiny"):
        find_recipe("monarc_tinny")


def test_keys_read_from_source_equal_the_imported_fields(schema):
    import dataclasses

    from hf_elm.modeling.monarc.configuration_monarc import OWN_FIELDS
    from hf_elm.trainers import ResidualEnergyConfig

    train = {name.removeprefix("train.") for name in schema.keys if name.startswith("train.")}
    fields = {field.name for field in dataclasses.fields(ResidualEnergyConfig) if field.init}
    hidden = fields - train
    assert train <= fields
    assert hidden <= {"text_column", "max_length", "packing", "packing_strategy", "reset_position_ids", "metrics_file"} | {
        "resume_from_checkpoint", "do_train", "do_eval", "do_predict",
    }  # fmt: skip
    model = {name.removeprefix("model.") for name in schema.keys if name.startswith("model.")}
    assert model == OWN_FIELDS | {"preset", "base", "checkpoint", "quantization"}


@pytest.mark.parametrize("make", [training_schema, evaluation_schema, generation_schema])
def test_every_key_of_ours_is_documented_and_has_a_default(make):
    for key in make().keys.values():
        assert key.help, f"{key.name} has no meaning"
        if not key.group.startswith("+"):
            assert key.default != "required", key.name


def test_defaults_of_the_sections_are_literals():
    keys = [
        key for key in training_schema().keys.values() if key.name.split(".")[0] in ("data", "tokenizer", "evaluate")
    ]
    for name, value in literal_defaults(keys).items():
        assert ast.literal_eval(repr(value)) == value, name


def test_fields_of_dataclasses_inits_and_functions_are_read(tmp_path, monkeypatch):
    (tmp_path / "sample_fields.py").write_text(
        '''
class A:
    """A.

    Args:
        x: first
            line.
        y, z: both.
    """

    def __init__(self, x: int = 1, y=None, *, z: "str" = "a"):
        pass


def f(a, b: float | None = None):
    """F.

    Args:
        a (`int`, *optional*, defaults to 3):
            meaning.

    Raises:
        b: not an argument.
    """
''',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "sample_package").mkdir()
    (tmp_path / "sample_package" / "__init__.py").write_text("")
    (tmp_path / "sample_fields.py").rename(tmp_path / "sample_package" / "fields.py")
    x, y, z = read_fields("sample_package.fields:A")
    assert (x.name, x.annotation, x.default, x.help) == ("x", "int", "1", "first line.")
    assert (y.annotation, y.help, z.help) == ("Any", "both.", "both.")
    a, b = read_fields("sample_package.fields:f")
    assert (a.default, a.help, b.default, b.help) == ("required", "meaning.", "None", "")


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [1], [1.0, "1", True, None]),
        ("float | None", [1, 1.5, None], ["x", True]),
        ("bool", [True], [1, "true"]),
        ("str | list[str]", ["a", ["a"]], [1, None]),
        ("dict[str, Any] | str | None", [{"a": 1}, "a", None], [3, [1]]),
        ("IntervalStrategy | str", ["no"], [1, False]),
        ("Any", [1, None, "a"], []),
    ],
)
def test_types_are_checked_by_annotation(annotation, good, bad):
    key = Key("k", annotation)
    assert all(key.accepts(value) for value in good)
    assert not any(key.accepts(value) for value in bad)


def test_a_schema_without_keys_near_still_answers():
    with pytest.raises(ValueError, match="nearest valid key"):
        Schema([Key("alpha"), Key("beta")]).find("zzzzz", "test")


def test_help_and_argument_errors_import_neither_torch_nor_transformers():
    code = """
import sys
from hf_elm.command_line import COMMANDS, main
for arguments in ([], ["--version"], *([name, "--help"] for name in COMMANDS), ["train", "--help-all"]):
    assert main(arguments) == 0, arguments
wrong = [["nope"], ["train"], ["train", "monarc_tiny", "train.max_step=1"], ["train", "nope.yaml"], ["adapt"],
         ["train", "monarc_tiny", "train.max_steps=x"], ["evaluate"], ["generate", "x"], ["convert", "monarc"],
         ["export", "a"], ["evaluate", "checkpoint=/nowhere"], ["train", "monarc_tiny", "output_dir=/etc"]]
for arguments in wrong:
    assert main(arguments) == 2, arguments
heavy = {"torch", "transformers", "datasets", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 12  # one line per error
    assert all(line.startswith("hf-elm") and ": error: " in line for line in lines)
    assert "train.per_device_train_batch_size" in result.stdout  # --help-all
