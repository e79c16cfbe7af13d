"""Every command and every Python block of the README and the documentation is run, page by page, in the order of the page."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import lru_cache

import pytest
import torch

from hf_elm import retrieval_tasks
from hf_elm.command_line import main
from hf_elm.trainers import corpora, corpus_sources, library_functions
from tests.docs.page_blocks import LM, PAGES, ROOT, blocks, commands, runs_made_by, with_small_sizes


pytestmark = pytest.mark.timeout(1800)  # a page of commands on a busy machine
NARROW = ["model.hidden_size=32", "model.intermediate_size=64"]
RUNS = {  # folder -> the command that makes it, before its sizes
    "runs/first": ["train", "monarc_tiny", *(key.replace("model.", "model.text_config.") for key in NARROW)],
    "runs/thinker": ["train", "nano_ebm_shakespeare", *NARROW],
    "runs/encoder": ["train", "m2_bert_tiny", *NARROW],
    "runs/retriever": ["train", "m2_bert_retrieval", *NARROW],
}
PLACEHOLDERS = {"SRC": str(ROOT / "tests" / "fixtures" / "monarc")}
IN_PYTHON = {'"user/name", revision="<commit sha>"': '"runs/python"'}
NOT_RUN = {"make test": "is what runs this test"}
SLOW = {  # whole stories, exports proven in fresh processes, several trainings: minutes on a busy machine
    "README.md",
    *(
        f"docs/how_to/{name}.md"
        for name in (
            "automata",
            "detect",
            "embed",
            "export",
            "harness",
            "peft",
            "pretrain_encoder",
            "publish",
            "retrieve",
        )
    ),
}
LAUNCHED = re.compile(r"launch(=|\.)")


def page_name(page):
    return str(page.relative_to(ROOT))


def launched(page):
    """Commands of the page that start processes of their own and replace this one: they are run apart."""
    bash = [block for block in blocks(page) if block.language == "bash"]
    return [words for block in bash for words in commands(block) if any(map(LAUNCHED.match, words))]


@pytest.fixture(scope="session", autouse=True)
def library_read_once():
    """The sources of the library are read from the disk once, not by every command."""
    read = lru_cache(corpus_sources.standard_library)
    with pytest.MonkeyPatch.context() as patch:
        for module in (corpora, library_functions, retrieval_tasks):
            patch.setattr(module, "standard_library", lambda: {name: list(values) for name, values in read().items()})
        yield


@pytest.fixture(scope="session")
def made_runs(tmp_path_factory, library_read_once):
    """A folder with the small runs that the pages start from."""
    folder = tmp_path_factory.mktemp("docs_runs")
    before = os.getcwd()
    os.chdir(folder)
    try:
        for out, command in RUNS.items():
            run_command(["hf-elm", *command, f"output_dir={out}", "train.save_strategy=no"])
        save_lm()
    finally:
        os.chdir(before)
    return folder


def save_lm():
    """The language model inside the MonArc run, as an ordinary one: what `hf-elm quickstart` leaves in its folder lm."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained("runs/first").lm.save_pretrained(LM)
    AutoTokenizer.from_pretrained("runs/first").save_pretrained(LM)


@pytest.fixture
def place(made_runs, tmp_path, monkeypatch):
    """A function that fills the current folder with the runs that a page does not make itself, and some texts."""

    def fill(page):
        own = runs_made_by(page)
        for out in (*RUNS, LM):
            if out not in own:
                shutil.copytree(made_runs / out, tmp_path / out)
        (tmp_path / "my_texts").mkdir()
        for name in ("alpha", "beta", "gamma"):
            text = "\n".join(f"The {name} of line {i} is {i * i}." for i in range(60))
            (tmp_path / "my_texts" / f"{name}.txt").write_text(text)
        rows = [
            {"id": f"d{i}", "body": body} for i, body in enumerate(("open a file", "sort a list", "read a socket"))
        ]
        (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.chdir(tmp_path)

    return fill


def run_command(words):
    """Runs one line of a bash block in this process."""
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if words[0] == "make":
        words = ["hf-elm", "quickstart", *" ".join(words[2:]).removeprefix("ARGS=").split()]
    assert words[0] == "hf-elm", f"a bash block may hold hf-elm and make commands only, got {' '.join(words)}"
    arguments = words[1:] if words[1].startswith("-") else with_small_sizes(words[1:])
    torch.manual_seed(0)
    status = main(arguments)
    assert status == 0, f"{' '.join(words)} ended with status {status}"


def run_block(block, namespace, page):
    """Runs a block; of bash, every line but those that are run apart."""
    if block.language == "python":
        text = block.text
        for old, new in IN_PYTHON.items():
            text = text.replace(old, new)
        exec(compile("\n" * block.line + text, str(page), "exec"), namespace)
        return
    for words in commands(block):
        if " ".join(words[:2]) not in NOT_RUN and not any(map(LAUNCHED.match, words)):
            run_command(words)


def pages_with_blocks():
    """The pages as parameters of a test, the slow ones marked."""
    for page in PAGES:
        if blocks(page):
            marks = [pytest.mark.slow] if page_name(page) in SLOW else []
            yield pytest.param(page, marks=marks, id=page_name(page))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for the old name
@pytest.mark.parametrize("page", list(pages_with_blocks()))
def test_a_page_does_what_it_shows(page, place, monkeypatch):
    place(page)
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    threads, namespace = torch.get_num_threads(), {}
    for block in blocks(page):
        run_block(block, namespace, page)
    assert torch.get_num_threads() == threads


@pytest.mark.multiprocess
@pytest.mark.parametrize("words", [words for page in PAGES for words in launched(page)], ids=" ".join)
def test_launched_commands_train_on_their_processes(words, tmp_path):
    arguments = with_small_sizes(words[1:])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "hf_elm", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs/two/model.safetensors").is_file()
    assert json.loads((tmp_path / "runs/two/environment.json").read_text())


def test_every_bash_line_is_a_command_that_is_run():
    assert set(map(page_name, PAGES)) >= SLOW
    for page in PAGES:
        for block in blocks(page):
            for words in commands(block) if block.language == "bash" else ():
                assert words[0] in ("hf-elm", "make"), f"{page_name(page)}:{block.line}: {' '.join(words)}"
