"""Recipes of any shape and command lines of any key: one line that names what is wrong, or a run of one tiny step."""

import functools
import importlib
import shutil

import pytest
import yaml
from hypothesis import strategies as st

from hf_elm.command_line import COMMANDS
from tests.fuzz.exploration import amounts, explore
from tests.fuzz.oracle import case_folder, run_command
from tests.fuzz.saved_runs import FAMILIES
from tests.fuzz.values import ANY_OR_HUGE, HUGE, TEXT, deep


WORK = {  # keys that say how much is to be done: a large number of those is a wish, no mistake
    "train.max_steps",
    "train.num_train_epochs",
    "evaluate.num_samples",
    "num_samples",
    "model.think_steps",
    "think_steps",
    "max_rows",
    "train.gradient_accumulation_steps",
    "documents",
    "max_new_tokens",
    "num_proc",
    "model.contrastive_k",
    "contrastive_k",
    "train.dataloader_num_workers",
    "think_samples",
    "grid",
    "frames_per_step",
    "bootstrap_iters",
    "num_candidates",
    "num_fewshot",
    "evaluate.max_rows",
    "num_return_sequences",
    "train.per_device_train_batch_size",
    "train.per_device_eval_batch_size",
    "data.sequence_length",
    "batch_size",
    "tokens_per_batch",
    "train.eval_batch_size",
    "max_length",
    "train.dataloader_prefetch_factor",
}
OUTSIDE = {  # keys that reach beyond this process: compilers, other processes, services, the network
    "train.torch_compile",
    "train.torch_compile_backend",
    "train.torch_compile_mode",
    "train.deepspeed",
    "train.fsdp",
    "train.fsdp_config",
    "train.push_to_hub",
    "train.report_to",
    "train.hub_token",
    "train.tpu_num_cores",
    "train.debug",
    "train.local_rank",
    "train.ddp_backend",
    "train.use_liger_kernel",
    "train.liger_kernel_config",
    "launch",
    "device",
    "train.log_level",
    "train.log_level_replica",
    "train.accelerator_config",
    "train.parallelism_config",
    "train.disable_tqdm",
}
WITHOUT_INPUT = {
    "train",
    "adapt",
    "automata",
    "quickstart",
    "demo",
    "detect",
    "env",
}  # they begin their long work at once
QUIET = [
    "train.disable_tqdm=true",
    "train.report_to=none",
    "evaluate.skip=true",
    "train.max_steps=1",
    "train.save_strategy=no",
    "train.per_device_train_batch_size=1",
    "data.corpus=text.txt",
    "output_dir=out7",
]
POOLED = ["pooling=mean", "pool_with_dense=false"]  # the masked language model has no pooler
BASE = {  # what makes each command cheap; the changed keys stand before it
    "train": ["family=monarc", *FAMILIES["monarc"][1:-2], "data.sequence_length=16"],
    "evaluate": ["checkpoint=run7", "max_tokens=40", "progress=false", "data.corpus=text.txt"],
    "generate": ["checkpoint=run7", "prompt=ab", "max_new_tokens=2"],
    "compare": ["run7", "documents=2", "document_bytes=32", "data.corpus=text.txt"],
    "plot": ["training", "checkpoint=run7", "output=picture.svg"],
    "prepare": ["output=rows7", "progress=false", "data.corpus=text.txt", "num_proc=1", "data.sequence_length=16"],
    "embed": ["text.txt", "checkpoint=encoder7", "output=vectors.npy", "progress=false", *POOLED],
    "retrieve": ["checkpoint=encoder7", "task=pairs.jsonl", *POOLED],
}
PAIRS = (
    '{"query": "ab", "positive": "abc"}\n{"query": "cd", "positive": "cde"}\n{"query": "ef", "positive": "efg"}\n' * 3
)


@functools.cache
def keys_of(command):
    """Name -> kinds of value, of the keys that a command takes."""
    schema = importlib.import_module(f"hf_elm.commands.{command}").schema()
    found = {name: key.kinds for name, key in schema.keys.items()}
    found |= {alias: found[name] for alias, name in schema.aliases.items() if name in found}
    return {name: kinds for name, kinds in found.items() if name not in OUTSIDE}


@functools.cache
def train_keys():
    from hf_elm.command_schemas import training_schema

    schemas = [training_schema(family) for family in FAMILIES]
    return {name: key.kinds for schema in schemas for name, key in schema.keys.items() if name not in OUTSIDE}


FITTING = {  # kind of value -> texts after the sign of equality that are of it
    "int": ("-1", "0", "1", "2", "3", "7", "16", "64"),
    "float": ("-1", "0", "0.5", "1", "1.5", "1e-9", "nan", "inf", "-inf", "1e300"),
    "bool": ("true", "false", "yes", "0"),
    "str": ("cpu", "float16", "bfloat16", "float64", "eager", "mean", "cls", "sample", "topk", "exact", "byte", "char", "bpe", "wrapped",
            "greedy", "held_out", "train", "all", "linear", "cosine", "no", "steps", "epoch", "sgd", "text7", "text.txt", "tiny", "llama", "id"),
    "list": ("[1, 2]", "[]", "[a]", "[0.5]", "[[1]]", "[-1]"),
    "dict": ("{a: 1}", "{}", "{text: {a: 1}}"),
    "None": ("null",),
}  # fmt: skip
ODD_WORDS = (
    "'",
    '"',
    "&a [*a]",
    "!!python/object:os.system x",
    "0x7",
    "1_000",
    "{",
    "a: b: c",
    "a.b",
    "model.safetensors",
)


def value_of(key, kinds):
    """Text after ``key=``: mostly of a fitting kind, so that it is not refused at once."""
    fitting = st.sampled_from([text for kind in sorted(kinds & set(FITTING)) for text in FITTING[kind]] or ["x"])
    wide = st.sampled_from([str(number) for number in HUGE]) if key not in WORK and "int" in kinds else fitting
    return st.one_of(*[fitting] * 6, wide, TEXT, st.sampled_from(ODD_WORDS))


@st.composite
def assignments(draw, keys):
    """``key=value``, ``--key=value``, ``--key value`` of a known key; seldom of one that is misspelt or made up."""
    names = sorted(keys)
    misspelt = st.sampled_from(names).map(lambda name: name[1:] + "x")
    key = draw(st.one_of(*[st.sampled_from(names)] * 16, TEXT, misspelt))
    value = draw(value_of(key, keys.get(key, {"str"}))).replace("/", "|")
    spellings = ([f"{key}={value}"], [f"--{key}={value}"], [f"--{key}", value]) * 4
    return draw(st.sampled_from((*spellings, [f"--{key}"], [value])))


def copy_inputs(runs, folder):
    shutil.copy(runs["text"], folder / "text.txt")
    (folder / "pairs.jsonl").write_text(PAIRS)


def shell_words(lists):
    """What a shell can hand over: no NUL, and bytes that are no UTF-8 as Python shows them (U+DC80 to U+DCFF)."""
    return [word.replace("\x00", "").replace("\ud800", "\udcff") for each in lists for word in each]


def check_line(runs, command, changed):
    with case_folder() as folder:
        copy_inputs(runs, folder)
        for name, run in (("run7", "monarc"), ("encoder7", "m2_bert")):
            if any(f"{name}" in word for word in BASE[command]):
                shutil.copytree(runs[run], folder / name)
        last = QUIET if command == "train" else []
        status = run_command(folder, [command, *shell_words(changed), *BASE[command], *last])
        assert changed or status == 0, "the command itself, unchanged"


@pytest.mark.parametrize("command", BASE)
@amounts(few=3, many=30)
def test_a_command_line_is_refused_in_one_line_or_does_its_work(runs, command, amount):
    keys = train_keys() if command == "train" else keys_of(command)
    changed = st.lists(assignments(keys), min_size=1, max_size=2)
    check = lambda changed: check_line(runs, command, changed)  # noqa: E731
    explore("command lines", check, amount, examples=({"changed": []},), changed=changed)


@amounts(few=15, many=100)
def test_any_command_with_any_words(amount):
    words = st.lists(
        st.one_of(TEXT, st.sampled_from(("--help", "-h", "--", "-", "=", "--=", "a=", "=b", "checkpoint=", "--seed"))),
        max_size=3,
    )
    command = st.sampled_from([name for name in COMMANDS if name not in WITHOUT_INPUT]) | TEXT

    def check(command, words):
        with case_folder() as folder:
            run_command(folder, shell_words([[command], [word.replace("/", "|") for word in words]]))

    explore("command lines", check, amount, command=command, words=words)


# ---------------------------------------------------------------------------------------------------------- recipes


SECTIONS = ("run", "model", "tokenizer", "data", "train", "evaluate", "peft", "banana")


@st.composite
def nested_recipes(draw):
    """Sections with known and unknown keys and any values; sometimes a value where a section is meant, or the other way round."""
    content = {}
    for name in draw(st.lists(st.sampled_from([*train_keys()]), max_size=4)):
        value = draw(ANY_OR_HUGE)
        if name in WORK and isinstance(value, (int, float)):
            value = draw(st.sampled_from((-1, 0, 1, 2, 0.5)))
        *parents, leaf = name.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node.setdefault(parent, {}), dict) else {}
        node[leaf] = value
    if draw(st.booleans()):
        content[draw(st.sampled_from(SECTIONS) | TEXT)] = draw(ANY_OR_HUGE)
    return yaml.safe_dump(_without_surrogates(content), allow_unicode=draw(st.booleans()), sort_keys=False)


def _without_surrogates(value):
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(each) for key, each in value.items()}
    return [_without_surrogates(each) for each in value] if isinstance(value, list) else value


ODD_RECIPES = st.sampled_from(
    [
        "",
        "\n",
        "---\n---\n",
        "5",
        "[]",
        "null",
        "seed: 1\nseed: 2\n",
        "train: {seed: 1}\nseed: ${train.seed}\n",
        "seed: ${seed}\n",
        "seed: ${a}\na: ${seed}\n",
        "seed: ${oc.env:HOME}\n",
        "seed: ${oc.env:NO_SUCH_VARIABLE}\n",
        "seed: ${\n",
        "seed: '???'\n",
        "a: &a [*a]\n",
        "a: &a {b: *a}\n",
        "a: &a [1]\nseed: *a\n",
        "seed: *missing\n",
        "\tseed: 1\n",
        "train:\n  - max_steps: 1\n",
        "train: 7\n",
        "data: text\n",
        "model: []\n",
        "seed:\n  x: 1\n",
        "1: 2\n",
        "true: 1\n",
        "? [a]\n: 1\n",
        "null: 1\n",
        "1.5: {2: 3}\n",
        "family: banana\n",
        "family: [monarc]\n",
        "family: 7\n",
        "objective: retrieval\n",
        "objective: {}\n",
        "!!python/object/apply:os.system ['true']\n",
        "seed: !!binary aGVsbG8=\n",
        "seed: 2001-01-01\n",
        "seed: !!set {a, b}\n",
        "model: {text_config: {hidden_size: {a: 1}}}\n",
        "größe: 1\n",
        "seed: 1" + "0" * 5000 + "\n",
        "x" * 200_000,
        "a: 1\n" * 20_000,
        "a: " + "[" * 5000 + "\n",
        "a: " + "[" * 5000 + "]" * 5000 + "\n",
        "{" * 3000 + "}" * 3000,
        "seed: 1\x00\n",
        "\ufeffseed: 1\n",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c]\n"
        "e: &e [*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e]\n",
        "%YAML 9.9\n---\nseed: 1\n",
        "- seed=1\n",
        str(deep(200)),
    ]
)
RECIPES = st.one_of(
    nested_recipes().map(str.encode),
    nested_recipes().map(str.encode),
    ODD_RECIPES.map(str.encode),
    st.binary(max_size=60),
    nested_recipes().map(lambda recipe: recipe.encode("utf-16")),
    nested_recipes().map(lambda recipe: recipe.encode()[: len(recipe) // 2]),
)


FOUND = (  # each ended in a traceback, or ended the process
    b"family: .nan\n", b"family: [monarc]\n", b"objective: {}\n", b"a: " + b"[" * 100_000, b"a: [\xff]\n", b"train: {data_seed: 18446744073709551616}\n",
)  # fmt: skip


def check_recipe(runs, recipe, name):
    with case_folder() as folder:
        copy_inputs(runs, folder)
        (folder / name).write_bytes(recipe)
        run_command(folder, ["train", name, *BASE["train"][1:], *QUIET])


@amounts(few=8, many=300)
def test_a_recipe_is_refused_in_one_line_or_trains(runs, amount):
    name = st.sampled_from(("mine.yaml", "a b.yaml", "größe.yaml", "no_suffix"))
    known = [{"recipe": recipe, "name": "mine.yaml"} for recipe in FOUND]
    check = lambda recipe, name: check_recipe(runs, recipe, name)  # noqa: E731
    explore("recipes", check, amount, examples=tuple(known), recipe=RECIPES, name=name)
