"""``hf-elm prepare``: shards that depend on neither processes nor interruptions, and runs that train from them."""

import json
import os
import signal

import numpy as np
import pytest
import yaml

from hf_elm import prepared_shards
from hf_elm.command_line import main
from hf_elm.trainers.corpora import load_corpus
from hf_elm.trainers.packing import RowPacker, row_segments
from hf_elm.trainers.prepared_rows import load_prepared


TEXTS = [f"document {number} " * (1 + number % 7) for number in range(53)]
OPTIONS = ["data.sequence_length=24", "shard_documents=10", "data.held_out_fraction=0.2", "progress=false"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return file


def prepare(corpus, folder, *options):
    return main(["prepare", f"output={folder}", f"data.corpus={corpus}", *OPTIONS, *options])


def shard_bytes(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.glob("*/*.arrow")}


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "whole"
    assert prepare(corpus, folder) == 0
    return folder


def test_rows_hold_every_document_once(corpus, whole):
    prepared, texts = load_prepared(whole), load_corpus(corpus, held_out_fraction=0.2)
    for part in ("train", "held_out"):
        documents = []
        for shard in range(-(-len(getattr(texts, part)) // 10)):
            order = np.random.default_rng([0, part == "held_out"]).permutation(len(getattr(texts, part)))
            packer, rows = RowPacker(24, pad_token_id=257), []
            for place in order[shard * 10 : shard * 10 + 10]:
                rows += packer.push([*getattr(texts, part)[int(place)]["text"].encode(), 256])
            documents += [row["input_ids"].tolist() for row in [*rows, *packer.flush()]]
        assert getattr(prepared, part)["input_ids"] == documents
    assert len({number for row in prepared.held_out["document_ids"] for number in row} - {-1}) == len(texts.held_out)
    assert sum(len(s) for row in prepared.train for s in row_segments(row)) == sum(
        len(text.encode()) + 1 for text in texts.train["text"]
    )


def test_manifest_counts(corpus, whole):
    manifest, texts = json.loads((whole / "manifest.json").read_text()), load_corpus(corpus, held_out_fraction=0.2)
    for part, counts in manifest["parts"].items():
        own = getattr(texts, part)["text"]
        size = sum(len(text.encode()) for text in own)
        assert (counts["documents"], counts["bytes"], counts["tokens"]) == (len(own), size, size + len(own))
        assert counts["rows"] == len(getattr(load_prepared(whole), part)) == sum(s["rows"] for s in counts["shards"])
    assert manifest["settings"]["data"]["sequence_length"] == 24


def test_processes_do_not_matter(corpus, whole, tmp_path):
    assert prepare(corpus, tmp_path / "two", "num_proc=2") == 0
    assert shard_bytes(tmp_path / "two") == shard_bytes(whole)


@pytest.mark.parametrize("kill", [True, False])
def test_an_interrupted_preparation_goes_on(corpus, whole, tmp_path, monkeypatch, capsys, kill):
    """Killed in the middle of the third shard, or stopped by Ctrl-C after it began: two are kept, the others made."""
    folder, made, recorded = tmp_path / "out", [], prepared_shards._recorded

    def interrupted(rows, path):
        for number, row in enumerate(recorded(rows, path)):
            if "00002" in path.name and number == 2:
                os.kill(os.getpid(), signal.SIGKILL if kill else signal.SIGINT)
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(prepared_shards, "_recorded", interrupted)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
            os._exit(prepare(corpus, folder))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == (-signal.SIGKILL if kill else 130)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.arrow")}
    assert len(kept) == 2
    assert (
        main(
            ["train", "monarc_tiny", f"data.corpus={folder}", "data.max_bytes=null", f"output_dir={tmp_path / 'run'}"]
        )
        == 2
    )
    assert "is not finished (no manifest.json)" in capsys.readouterr().err
    write_shard = prepared_shards.write_shard
    monkeypatch.setattr(prepared_shards, "write_shard", lambda job: (made.append(job), write_shard(job)))
    assert prepare(corpus, folder) == 0
    assert len(made) == len(shard_bytes(whole)) - 2
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert shard_bytes(folder) == shard_bytes(whole)
    assert not list(folder.rglob("*.unfinished"))


def test_other_settings_and_texts_are_refused(corpus, whole, tmp_path, capsys):
    folder = tmp_path / "out"
    assert prepare(corpus, whole) == 2
    assert "is finished already" in capsys.readouterr().err
    assert prepare(corpus, folder) == 0
    (folder / "manifest.json").unlink()
    assert prepare(corpus, folder, "data.strategy=greedy") == 2
    assert "data.strategy is 'wrapped' there and 'greedy' here" in capsys.readouterr().err
    text = corpus.read_text()
    corpus.write_text(text + json.dumps({"text": "one more"}) + "\n")
    try:
        assert prepare(corpus, folder) == 2
    finally:
        corpus.write_text(text)
    assert "begun with another text" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("x")
    assert prepare(corpus, tmp_path / "mine") == 2
    assert prepare(corpus, tmp_path / "new", "num_proc=0") == 2
    assert "num_proc must be at least 1" in capsys.readouterr().err


def test_a_run_trains_and_evaluates_from_prepared_rows(whole, tmp_path, capsys):
    run = tmp_path / "run"
    settings = [f"data.corpus={whole}", "data.sequence_length=24", "data.max_bytes=null", f"output_dir={run}"]
    settings += [
        "train.max_steps=2",
        "train.per_device_train_batch_size=2",
        "train.use_cpu=true",
        "evaluate.max_tokens=9",
    ]
    assert main(["train", "monarc_tiny", *settings, "data.strategy=greedy"]) == 2
    assert "data.strategy=greedy, but the rows" in capsys.readouterr().err
    assert main(["train", "monarc_tiny", *settings, "data.sequence_length=25"]) == 2
    assert "data.sequence_length=24" in capsys.readouterr().err
    assert main(["train", "monarc_tiny", *settings]) == 2
    assert "tokenizer.kind=char, but the rows" in capsys.readouterr().err
    settings.append("tokenizer.kind=byte")
    assert main(["train", "monarc_tiny", *settings]) == 0, capsys.readouterr().err
    assert (run / "likelihood.json").is_file()
    assert yaml.safe_load((run / "recipe.yaml").read_text())["data"]["corpus"] == str(whole)
    own = json.loads((run / "likelihood.json").read_text())
    output = tmp_path / "again.json"
    assert main(["evaluate", f"checkpoint={run}", "max_tokens=9", f"output={output}"]) == 0, capsys.readouterr().err
    again = json.loads(output.read_text())
    assert {key: again[key] for key in ("lm_nll", "num_tokens") if key in again} == {
        key: own[key] for key in ("lm_nll", "num_tokens") if key in own
    }


def test_encoders_get_rows_of_one_document(corpus, tmp_path):
    assert prepare(corpus, tmp_path / "rows", "family=m2_bert") == 0
    prepared = load_prepared(tmp_path / "rows")
    assert prepared.train.column_names == ["input_ids"]
    assert {len(ids) <= 24 and ids[0] == prepared.train[0]["input_ids"][0] for ids in prepared.train["input_ids"]} == {
        True
    }


def test_a_damaged_shard_is_named(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    shard = tmp_path / "out" / "train" / "00001-of-00005.arrow"
    assert shard.is_file()
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00001-of-00005\.arrow has .* bytes instead of"):
        load_prepared(tmp_path / "out")
