"""The README's code runs, and its commands exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_elm.command_line import COMMANDS
from hf_elm.command_schemas import evaluation_schema, generation_schema, training_schema
from hf_elm.recipes import find_recipe, split_arguments


ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCHEMAS = {
    "train": training_schema,
    "adapt": training_schema,
    "evaluate": evaluation_schema,
    "generate": generation_schema,
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    ten_lines, training, loading = blocks("python")
    assert len([line for line in ten_lines.splitlines() if line.strip()]) <= 11
    namespace = {}
    exec(ten_lines, namespace)
    lm_loss, bound = namespace["output"].lm_loss, namespace["output"].elm_nll_bound
    torch.testing.assert_close(lm_loss.detach(), bound)  # a fresh energy is zero: the ELM is its LM
    assert "torch.Size([2, 32])" in capsys.readouterr().out
    exec(training, namespace)
    assert (tmp_path / "runs/python/modeling_monarc.py").is_file()
    exec(loading.replace('"user/name", revision="<commit sha>"', '"runs/python"'), namespace)
    assert type(namespace["model"]).__name__ == "MonArcForCausalLM"
    assert namespace["tokenizer"].decode(namespace["tokenizer"]("é = 1")["input_ids"]) == "é = 1"


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert {"quickstart", "test"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("line", re.findall(r"^hf-elm .*$", "\n".join(blocks("bash")), re.MULTILINE))
def test_commands_parse(line):
    _, command, *arguments = shlex.split(line, comments=True)
    assert command in COMMANDS
    if command in SCHEMAS:
        positionals, values = split_arguments(arguments, SCHEMAS[command]())
        assert values
        for recipe in positionals:
            assert find_recipe(recipe).is_file()


def test_tables_are_those_of_the_newest_records():
    folder = ROOT / "benchmarks"
    done = subprocess.run([sys.executable, str(folder / "readme_tables.py"), "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme_tables.py"


def test_links_point_at_files():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
