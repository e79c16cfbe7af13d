"""Exported encoders: SentenceTransformer gives the model's own vectors, trains it, and every head and pipeline still loads."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_elm import hub_folder
from hf_elm.command_line import main
from hf_elm.embedding import embed_texts
from hf_elm.embedding_models import load_embedder, read_modules
from hf_elm.modeling.m2_bert import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from hf_elm.saved_models import load_model
from tests.hf_elm.tiny_embedder import WORDS, save_embedder, texts, tiny_tokenizer


pytest.importorskip("sentence_transformers")
TEXTS = texts(23)
VARIANTS = {  # config fields of the exported models
    "published": {"padding_mode": "reference"},
    "left": {"pooling": "cls", "pad_token_id": 0},
    "mean": {"pooling": "mean", "pool_with_dense": False, "normalize_embeddings": False},
    "short": {"truncate_dim": 7, "pooling": "mean"},
    "short_plain": {"truncate_dim": 7, "pool_with_dense": False},
}
FRESH_INTERPRETER = """
import json, os
import numpy as np
from sentence_transformers import SentenceTransformer
from transformers import pipeline

root, results = sys.argv[1], {}
texts = json.load(open(os.path.join(root, "texts.json")))
for name in json.load(open(os.path.join(root, "variants.json"))):
    model = SentenceTransformer(os.path.join(root, name), trust_remote_code=True, device="cpu")
    for batch_size in (1, 5, 64):
        results[f"{name}/{batch_size}"] = model.encode(texts, batch_size=batch_size)
options = {"model": os.path.join(root, "heads"), "trust_remote_code": True, "device": "cpu"}
sentence = "the [MASK] of a token"
results["fill"] = [row["score"] for row in pipeline("fill-mask", **options)(sentence)]
results["features"] = pipeline("feature-extraction", **options)(texts[3])[0]
results["classes"] = [row["score"] for row in pipeline("text-classification", top_k=None, **options)([sentence])[0]]
model = transformers.AutoModelForTextEncoding.from_pretrained(os.path.join(root, "published"), trust_remote_code=True)
results["class"] = type(model).__name__
np.savez(os.path.join(root, "results.npz"), **results)
assert not [name for name in sys.modules if name.split(".")[0] == "hf_elm"]
"""


def save_both_heads(folder):
    """A folder as the converter writes it: a masked LM's, with a pooler and a classifier among the weights."""
    model = save_embedder(folder, M2BertForMaskedLM)
    torch.manual_seed(1)
    weights = load_file(folder / "model.safetensors")
    for name, shape in (("m2_bert.pooler.dense", 32), ("classifier", 2)):
        weights |= {f"{name}.weight": torch.randn(shape, 32), f"{name}.bias": torch.randn(shape)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Exports of every variant and of a folder with both heads, and what one fresh interpreter made of them."""
    pytest.importorskip("sentence_transformers")
    root = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:  # each check starts an interpreter; one export below makes them all
        patch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
        patch.setattr(hub_folder, "check_modules", lambda *_: None)
        for name, fields in VARIANTS.items():
            tokenizer = tiny_tokenizer(padding_side="left") if name == "left" else None
            save_embedder(root / f"{name}_saved", tokenizer=tokenizer, **fields)
            hub_folder.export_checkpoint(str(root / f"{name}_saved"), root / name, sentence_transformers=True)
        save_both_heads(root / "heads_saved")
        hub_folder.export_checkpoint(str(root / "heads_saved"), root / "heads")
    (root / "texts.json").write_text(json.dumps(TEXTS))
    (root / "variants.json").write_text(json.dumps(list(VARIANTS)))
    hub_folder.run_without_hf_elm(FRESH_INTERPRETER, root)
    return root


@pytest.fixture(scope="module")
def results(root):
    return dict(np.load(root / "results.npz"))


@pytest.mark.parametrize("name", VARIANTS)
def test_sentence_transformer_gives_the_models_own_vectors_whatever_the_batch(root, results, name):
    model, tokenizer = load_embedder(str(root / f"{name}_saved"), "cpu")
    expected = embed_texts(model, tokenizer, TEXTS)
    for batch_size in (1, 5, 64):
        np.testing.assert_allclose(results[f"{name}/{batch_size}"], expected, atol=1e-5, rtol=0)
    again, tokenizer = load_embedder(str(root / name), "cpu")  # read back from the modules
    np.testing.assert_allclose(embed_texts(again, tokenizer, TEXTS), expected, atol=1e-5, rtol=0)


def test_the_exported_folder_says_what_it_holds(root, results):
    kinds = {
        name: [module["path"] for module in json.loads((root / name / "modules.json").read_text())]
        for name in VARIANTS
    }
    whole = ["", "1_Pooling", "2_Dense", "3_Normalize"]
    assert kinds == {name: ["", "1_Pooling"] if name == "mean" else whole for name in VARIANTS}
    config = json.loads((root / "published" / "config.json").read_text())
    assert config["architectures"] == ["M2BertForSentenceEmbedding"]
    assert config["auto_map"]["AutoModel"] == "modeling_m2_bert.M2BertModel"
    assert results["class"] == "M2BertForSentenceEmbedding"


def test_export_keeps_every_head(root):
    saved, exported = (load_file(root / name / "model.safetensors") for name in ("heads_saved", "heads"))
    assert saved.keys() == exported.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())
    for cls in (M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification):
        _, info = cls.from_pretrained(root / "heads", output_loading_info=True)
        assert not info["missing_keys"]


def test_export_keeps_heads_beside_an_encoder_saved_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
    save_both_heads(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"architectures": ["M2BertModel"]}))
    hub_folder.export_checkpoint(str(tmp_path / "saved"), tmp_path / "out")
    saved, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("saved", "out"))
    assert saved.keys() == exported.keys()
    for cls in (M2BertModel, M2BertForMaskedLM, M2BertForSequenceClassification):
        model, info = cls.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        assert torch.equal(model.base_model.embeddings.norm.weight, saved["m2_bert.embeddings.norm.weight"])


@pytest.mark.parametrize("cls", [M2BertModel, M2BertForSequenceClassification])
def test_a_checkpoint_is_exported_as_the_class_that_was_saved(tmp_path, monkeypatch, cls):
    monkeypatch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
    save_embedder(tmp_path / "saved", cls)
    hub_folder.export_checkpoint(str(tmp_path / "saved"), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [cls.__name__]
    assert type(load_model(str(tmp_path / "out"), as_saved=True)) is cls


def test_an_encoder_without_pooler_is_exported_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
    save_embedder(tmp_path / "saved", M2BertModel)
    path = tmp_path / "saved" / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("pooler.")}
    save_file(weights, path, metadata={"format": "pt"})
    hub_folder.export_checkpoint(str(tmp_path / "saved"), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == weights.keys()


@torch.no_grad()
def test_pipelines_of_an_exported_folder_in_a_fresh_interpreter(root, results):
    tokenizer = tiny_tokenizer()
    batch = tokenizer("the [MASK] of a token", return_tensors="pt")
    folder = root / "heads"
    logits = M2BertForMaskedLM.from_pretrained(folder).eval()(**batch).logits[0, 2]
    np.testing.assert_allclose(results["fill"], logits.softmax(-1).topk(5).values, atol=1e-5)
    states = M2BertModel.from_pretrained(folder).eval()(**tokenizer(TEXTS[3], return_tensors="pt")).last_hidden_state
    np.testing.assert_allclose(results["features"], states[0], atol=5e-5)
    classes = M2BertForSequenceClassification.from_pretrained(folder).eval()(**batch).logits[0].softmax(-1)
    np.testing.assert_allclose(sorted(results["classes"]), classes.sort().values, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- command


def fails(capsys, *arguments):
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == 2
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("hf-elm export: error"))


def test_the_command_proves_what_it_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub_folder, "check_hub_folder", lambda *_: None)  # an interpreter less
    save_embedder(tmp_path / "saved", M2BertForMaskedLM)
    arguments = [str(tmp_path / "saved"), str(tmp_path / "out"), "--sentence-transformers", "pooling=mean"]
    assert "no weights for the pooler" in fails(capsys, *arguments)
    assert main(["export", *arguments, "pool_with_dense=false"]) == 0
    assert "the same vectors by SentenceTransformer" in capsys.readouterr().out
    assert read_modules(str(tmp_path / "out")).config_fields["pooling"] == "mean"
    assert "lm_head.dense.weight" in load_file(tmp_path / "out" / "model.safetensors")  # the other head is kept


@pytest.mark.slow
def test_a_folder_that_gives_other_vectors_is_not_exported(tmp_path, capsys, monkeypatch):
    from hf_elm import sentence_transformers_folder

    def write_wrongly(folder, model):
        sentence_transformers_folder.write_modules(folder, model)
        config = json.loads((folder / "1_Pooling" / "config.json").read_text())
        config |= {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))

    save_embedder(tmp_path / "saved")
    monkeypatch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
    monkeypatch.setattr(hub_folder, "write_modules", write_wrongly)
    error = fails(capsys, tmp_path / "saved", tmp_path / "out", "--sentence-transformers")
    assert "SentenceTransformer's vectors differ by" in error
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_wrong_exports_are_one_clear_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "monarc").mkdir()
    (tmp_path / "monarc" / "config.json").write_text('{"model_type": "monarc"}')
    save_embedder(tmp_path / "saved", tokenizer=tiny_tokenizer(pad_token=None))
    out, flag = tmp_path / "out", "sentence_transformers=true"
    assert "needs an m2_bert encoder" in fails(capsys, tmp_path / "monarc", out, flag)
    assert "pooling says how to embed" in fails(capsys, tmp_path / "saved", out, "pooling=mean")
    assert "pooling must be one of" in fails(capsys, tmp_path / "saved", out, flag, "pooling=max")
    assert "no padding token" in fails(capsys, tmp_path / "saved", out, flag)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert 'pip install "hf_elm[retrieval]"' in fails(capsys, tmp_path / "saved", out, flag)


def test_modules_that_the_model_cannot_express_are_refused(root, tmp_path):
    def changed(file, **fields):
        folder = tmp_path / "changed"
        shutil.copytree(root / "published", folder, dirs_exist_ok=True)
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | fields if isinstance(config, dict) else config[1:]))
        return str(folder)

    with pytest.raises(ValueError, match="Pooling > Dense > Normalize; an M2-BERT embedder is Transformer > Pooling"):
        load_embedder(changed("modules.json"), "cpu")
    with pytest.raises(ValueError, match="must pool by cls or mean alone"):
        load_embedder(changed("1_Pooling/config.json", pooling_mode_max_tokens=True), "cpu")
    shutil.rmtree(tmp_path / "changed")
    with pytest.raises(ValueError, match="is not the model's pooler, a tanh layer with bias"):
        load_embedder(changed("2_Dense/config.json", activation_function="torch.nn.modules.activation.GELU"), "cpu")


# --------------------------------------------------------------------------------------------------------------- training


def test_training_by_sentence_transformers(root, tmp_path):
    """Three steps on eight pairs, full batches: the Matryoshka loss falls, every weight but the unused pooler moves, and what
    is saved is read by SentenceTransformer, by this package and by another export to the same vectors."""
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    import sentence_transformers as st
    from sentence_transformers.sentence_transformer import losses

    model = st.SentenceTransformer(str(root / "left"), trust_remote_code=True, device="cpu")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    pairs = [(f"the {word} of a token", f"{word} is at once lower") for word in WORDS[-8:]]
    rows = datasets.Dataset.from_dict({"anchor": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
    ranking = losses.MultipleNegativesRankingLoss(model)
    loss = losses.MatryoshkaLoss(model, ranking, matryoshka_dims=[32, 8])
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path / "run"), max_steps=3, per_device_train_batch_size=8, learning_rate=3e-3, logging_steps=1,
        lr_scheduler_type="constant", report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no", seed=0,
    )  # fmt: skip
    trainer = st.SentenceTransformerTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    assert logged[2] < logged[0] - 0.05
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    still = before.keys() - moved
    assert all(".pooler." in name for name in still), still  # the Dense module stands in its place
    assert any(name.startswith("2.") for name in moved)
    model.save_pretrained(str(tmp_path / "trained"), create_model_card=False)
    trained = model.encode(TEXTS)
    reloaded = st.SentenceTransformer(str(tmp_path / "trained"), trust_remote_code=True, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(reloaded, trained, atol=1e-6)
    own, tokenizer = load_embedder(str(tmp_path / "trained"), "cpu")
    np.testing.assert_allclose(embed_texts(own, tokenizer, TEXTS), trained, atol=1e-5)
    assert np.abs(trained - embed_texts(*load_embedder(str(root / "left"), "cpu"), TEXTS)).max() > 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_folder, "check_hub_folder", lambda *_: None)
        hub_folder.export_checkpoint(str(tmp_path / "trained"), tmp_path / "exported")  # an ordinary folder again
    own, tokenizer = load_embedder(str(tmp_path / "exported"), "cpu")
    np.testing.assert_allclose(embed_texts(own, tokenizer, TEXTS), trained, atol=1e-5)
