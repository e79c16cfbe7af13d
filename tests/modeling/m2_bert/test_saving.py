"""A saved folder stands alone: a fresh interpreter without hf_elm loads it by every Auto class and gets the same numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast, pipeline

from hf_elm.modeling.m2_bert import (
    M2BertForMaskedLM,
    M2BertForQuestionAnswering,
    M2BertForSentenceEmbedding,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)
from hf_elm.modeling.m2_bert.convert_m2_bert import convert_reference_checkpoint
from tests.modeling.m2_bert.test_convert_m2_bert import composer_file, synthetic_state
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model, tokens


FRESH_INTERPRETER = """
import os, sys

class Block:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_elm":
            raise ImportError("exported code imports hf_elm")

sys.meta_path.insert(0, Block())
import torch
import transformers

torch.set_num_threads(1)
root = sys.argv[1]
inputs = torch.load(os.path.join(root, "inputs.pt"))
jobs = torch.load(os.path.join(root, "jobs.pt"))
results = {}
for folder, autos in jobs.items():
    for auto in autos:
        load = getattr(transformers, auto).from_pretrained
        model, info = load(os.path.join(root, folder), trust_remote_code=True, output_loading_info=True)
        with torch.no_grad():
            out = model.eval()(**inputs)
        again = os.path.join(root, f"{folder}_{auto}")
        model.save_pretrained(again)
        reloaded = load(again, trust_remote_code=True).eval()
        with torch.no_grad():
            assert torch.equal(reloaded(**inputs)[0], out[0]), auto
        results[folder, auto] = (out[0], sorted(info["missing_keys"]), type(model).__name__)
torch.save(results, os.path.join(root, "results.pt"))
assert not [name for name in sys.modules if name.split(".")[0] == "hf_elm"]
"""
CLASSES = {
    "AutoModel": M2BertModel,
    "AutoModelForMaskedLM": M2BertForMaskedLM,
    "AutoModelForSequenceClassification": M2BertForSequenceClassification,
    "AutoModelForTokenClassification": M2BertForTokenClassification,
    "AutoModelForQuestionAnswering": M2BertForQuestionAnswering,
    "AutoModelForTextEncoding": M2BertForSentenceEmbedding,
}


@pytest.fixture(scope="module")
def round_trip(tmp_path_factory):
    """(numbers here, numbers in the fresh interpreter) by folder and Auto class; one interpreter for all of them."""
    root = tmp_path_factory.mktemp("saved")
    ids = tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    jobs, expected = {}, {}
    for auto, cls in CLASSES.items():
        model = tiny_model(cls, filter_decay="stored" if cls is M2BertModel else "computed")
        model.save_pretrained(root / auto)
        jobs[auto] = [auto]
        with torch.no_grad():
            expected[auto, auto] = model(**inputs)[0]
    state = synthetic_state("keys_80m.json", layers=1) | synthetic_state("keys_80m.json", "seq_cls", layers=1)
    composer_file(root / "m2-bert.pt", state)
    convert_reference_checkpoint(root / "m2-bert.pt", root / "converted")
    jobs["converted"] = ["AutoModel", "AutoModelForMaskedLM", "AutoModelForSequenceClassification"]
    for auto in jobs["converted"]:
        with torch.no_grad():
            expected["converted", auto] = CLASSES[auto].from_pretrained(root / "converted").eval()(**inputs)[0]
    torch.save(inputs, root / "inputs.pt")
    torch.save(jobs, root / "jobs.pt")
    env = os.environ | {"HF_MODULES_CACHE": str(root.parent / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-c", FRESH_INTERPRETER, str(root)]
    result = subprocess.run(command, cwd=root.parent, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return root, expected, torch.load(root / "results.pt")


def test_a_fresh_interpreter_gives_the_same_numbers(round_trip):
    _, expected, found = round_trip
    assert found.keys() == expected.keys()
    for job, value in expected.items():
        output, missing, name = found[job]
        # products depend on the weights' alignment in memory, and the filters' sines magnify the last bit
        assert_close(output, value, atol=5e-5, rtol=0)
        assert missing == []
        assert name == CLASSES[job[1]].__name__


def test_the_saved_folder_has_the_full_map_and_all_of_its_code(round_trip):
    root, _, _ = round_trip
    for folder in (*CLASSES, "converted"):
        auto_map = json.loads((root / folder / "config.json").read_text())["auto_map"]
        assert {name for name in auto_map if name != "AutoConfig"} == set(CLASSES)
        files = {path.name for path in (root / folder).iterdir()}
        assert {f"{value.split('.')[0]}.py" for value in auto_map.values()} <= files
        assert not [name for name in files if name.startswith("convert_")]


def test_any_head_loads_from_any_folder(round_trip):
    root, _, _ = round_trip
    for folder in CLASSES:
        for cls in CLASSES.values():
            model, info = cls.from_pretrained(root / folder, output_loading_info=True)
            assert all(parameter.isfinite().all() for parameter in model.parameters())
            assert not [key for key in info["missing_keys"] if ".encoder." in key or ".embeddings." in key]
            assert not info["unexpected_keys"]


@torch.no_grad()
def test_missing_filters_start_as_new_ones_do(tmp_path):
    """Weights that a folder lacks are initialised, buffers included, and not left as memory was."""
    model = tiny_model(filter_decay="stored", spread=0.0)
    state = {key: value for key, value in model.state_dict().items() if "_filter." not in key}
    model.save_pretrained(tmp_path, state_dict=state)
    again = M2BertModel.from_pretrained(tmp_path)
    ours, theirs = (m.encoder.layers[0].mixer.gated_filter for m in (model, again))
    for name in ("time", "rates", "positions", "frequency"):
        assert_close(getattr(theirs, name), getattr(ours, name))
    assert 0.01 < theirs.weight_mid.std() < 0.03


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "energy", "of", "a", "token"]


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


@pytest.mark.parametrize("padding_mode", ["mask", "reference"])
def test_pipelines(tokenizer, padding_mode):
    fields = {"padding_mode": padding_mode, "vocab_size": len(WORDS), "max_position_embeddings": 32}
    fill = pipeline("fill-mask", model=tiny_model(M2BertForMaskedLM, **fields), tokenizer=tokenizer)
    assert len(fill("the [MASK] of a token")) == 5
    features = pipeline("feature-extraction", model=tiny_model(**fields), tokenizer=tokenizer)
    texts = ["the energy", "the energy of a token"]
    batched, single = features(texts, batch_size=2, padding=True), [features(text) for text in texts]
    assert_close(torch.tensor(batched[0][0][:2]), torch.tensor(single[0][0]), atol=1e-4, rtol=0)
    classify = pipeline(
        "text-classification", model=tiny_model(M2BertForSequenceClassification, **fields), tokenizer=tokenizer
    )
    together, alone = classify(texts, batch_size=2), [classify(text)[0] for text in texts]
    assert [one["score"] for one in together] == pytest.approx([one["score"] for one in alone], abs=1e-4)
