"""Curves of accuracy by length: who is asked about what, what is cut, what extension changes."""

import json
import math

import numpy as np
import pytest
import torch

from hf_elm.command_line import main
from hf_elm.long_context import LengthCurves, LengthScore, extended, hidden_fact_pairs, length_curves
from hf_elm.modeling.m2_bert import M2BertForSentenceEmbedding
from hf_elm.plots.length_curves import plot_length_curves
from hf_elm.retrieval_tasks import NAMES, THINGS, hidden_fact_task
from hf_elm.trainers.tokenization import build_tokenizer
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model


@pytest.fixture(scope="module")
def tokenizer():
    facts = [f"What is the pass key of {name} for the {thing}? Remember it." for name in NAMES for thing in THINGS]
    return build_tokenizer("bpe", facts, 700, encoder=True)


def encoder(tokenizer, positions=64):
    model = tiny_model(M2BertForSentenceEmbedding, spread=0.05, vocab_size=len(tokenizer), pooling="mean",
                       max_position_embeddings=positions)  # fmt: skip
    return model.eval()


def subjects(queries):
    return {query.removeprefix("What is the pass key of ") for query in queries}


def test_train_and_test_ask_about_different_subjects(tokenizer):
    train = subjects(hidden_fact_task("passkey", tokenizer, 64, 0.0, None, part="train").queries)
    test = subjects(hidden_fact_task("passkey", tokenizer, 64, 0.0, None, part="test", seed=1).queries)
    every = subjects(hidden_fact_task("passkey", tokenizer, 64, 0.0, None).queries)
    assert not train & test
    assert train | test == every
    assert (len(train), len(test)) == (416, 104)
    with pytest.raises(ValueError, match="documents must be from 2 to 104, got 105"):
        hidden_fact_task("passkey", tokenizer, 64, 0.0, 105, part="test")
    with pytest.raises(ValueError, match="part must be train, test or None"):
        hidden_fact_task("passkey", tokenizer, 64, 0.0, 5, part="held_out")


def test_pairs_to_train_on_hold_their_facts_at_every_depth(tokenizer):
    pairs = hidden_fact_pairs("passkey", tokenizer, 61, depths=(0.0, 1.0), rounds=2)
    assert len(pairs) == 2 * 416
    places = []
    for row in pairs:
        (document,) = row["positives"]
        subject = row["query"].removeprefix("What is the pass key of ").removesuffix("?")
        assert f"The pass key of {subject} is " in document
        assert len(tokenizer(document)["input_ids"]) <= 61
        places.append(document.index("The pass key") / len(document))
    assert sum(place == 0 for place in places) == len(pairs) // 2
    assert not subjects(pairs.queries) & subjects(
        hidden_fact_task("passkey", tokenizer, 61, 0.0, 104, part="test").queries
    )


def test_what_an_encoder_does_not_read_it_cannot_find_and_extension_reads_all(tokenizer):
    model = encoder(tokenizer)
    longer = extended(model, 256)
    assert model.config.max_position_embeddings == 64
    assert longer.config.max_position_embeddings == 256
    result = length_curves({"short": model, "long": longer}, tokenizer, "passkey", [256, 64], (0.0, 1.0), documents=7)
    assert [(c.length, c.depth) for c in result.curves["short"]] == [(64, 0.0), (64, 1.0), (256, 0.0), (256, 1.0)]
    assert [c.num_cut for c in result.curves["short"]] == [0, 0, 7, 7]
    assert [c.num_cut for c in result.curves["long"]] == [0, 0, 0, 0]
    # prefix extension leaves short rows as they were; float32, other FFT sizes
    assert [c.accuracy for c in result.curves["short"][:2]] == [c.accuracy for c in result.curves["long"][:2]]
    assert all(cell.accuracy == 1.0 for cell in result.curves["BM25"])
    # all that the short one reads of a long document with its fact at the end is the same garbage in every document
    assert result.curves["short"][3].accuracy == pytest.approx(1 / 7)
    text = str(result)
    assert "passkey: own document first (%), chance 14.3" in text
    assert len([line for line in text.splitlines() if "long" in line or "short" in line]) == 4


def test_prefix_extension_keeps_the_vectors_of_short_documents(tokenizer):
    model = encoder(tokenizer).double()
    longer = extended(model, 200)
    ids = torch.randint(5, len(tokenizer), (2, 59), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (
            m(input_ids=ids, attention_mask=torch.ones_like(ids)).sentence_embedding for m in (model, longer)
        )
    torch.testing.assert_close(after, before, atol=1e-10, rtol=0)


def test_errors_are_never_zero_and_depths_are_joined():
    cells = (LengthScore(128, 0.0, 1.0, 0.1, 10), LengthScore(128, 1.0, 0.5, 0.1, 10, 3))
    whole = LengthCurves("needle", {"a": cells}).by_length("a")[0]
    assert (whole.length, whole.accuracy, whole.num_questions, whole.num_cut) == (128, 0.75, 20, 3)
    share = 16 / 22
    assert whole.standard_error == pytest.approx(math.sqrt(share * (1 - share) / 20))
    assert np.isnan(whole.depth)


def test_curves_are_drawn_and_written(tmp_path):
    cells = {
        name: tuple(LengthScore(n, d, 0.5, 0.05, 20) for n in (128, 256, 512) for d in (0.0, 1.0)) for name in "ab"
    }
    figure = plot_length_curves(LengthCurves("passkey", cells), tmp_path / "curves.png", trained_length=128)
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert [ax.get_title() for ax in figure.axes] == ["fact at depth 0", "fact at depth 1", "all depths"]
    assert [len(ax.containers) for ax in figure.axes] == [2, 2, 2]
    with pytest.raises(FileExistsError, match=r"curves\.png"):
        plot_length_curves(LengthCurves("passkey", cells), tmp_path / "curves.png")


def test_retrieve_gives_an_encoder_room_first(tokenizer, tmp_path, capsys):
    encoder(tokenizer).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    command = ["retrieve", f"checkpoint={tmp_path / 'encoder'}", "task=passkey", "documents=3", "depths=[1]"]
    assert main([*command, "lengths=[192]"]) == 2
    assert "go beyond the 64 tokens" in capsys.readouterr().err
    output = tmp_path / "scores.json"
    assert main([*command, "lengths=[192]", "extend_to=192", "extend_mode=stretch", f"output={output}"]) == 0
    scores = json.loads(output.read_text())["scores"]
    assert [(score["length"], score["num_cut_documents"]) for score in scores] == [(192, 0), (192, 0)]
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["max_position_embeddings"] == 64
    assert main([*command, "extend_to=64"]) == 2
    assert "extend_to=64 must be more than the 64 positions" in capsys.readouterr().err
    assert main([*command, "extend_to=128", "extend_mode=wide"]) == 2
    assert "extend_mode must be one of prefix, stretch, tile" in capsys.readouterr().err
