"""PEFT adapters of M2-BERT: LoRA on its linear layers, heads trained whole; masked tokens, embeddings, classes."""

import peft
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForTextEncoding

from hf_elm.modeling.m2_bert import M2BertForMaskedLM, M2BertForSequenceClassification
from hf_elm.trainers.masked_lm_trainer import MaskedLMTrainer
from hf_elm.trainers.peft_adapters import with_adapters
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from tests.adapters.adapter_round_trip import (
    MERGED,
    check_resume,
    check_round_trip,
    check_trained,
    lora,
    weights,
    with_base,
)
from tests.modeling.m2_bert.tiny_m2_bert import tiny_model as tiny_head
from tests.modeling.m2_bert.tiny_m2_bert import tokens
from tests.trainers import tiny_masked_lm, tiny_retrieval


pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks for the old name
MIXERS = ["in_proj", "out_proj"]


def masked_lm_trainer(folder, model, config, **arguments):
    return MaskedLMTrainer(
        model,
        tiny_masked_lm.quiet_config(folder, **arguments),
        train_dataset=tiny_masked_lm.ragged_rows(16),
        processing_class=tiny_masked_lm.byte_tokenizer(),
        peft_config=config,
    )


@pytest.mark.parametrize("whole", [None, ["lm_head.dense", "lm_head.norm"]], ids=["mixers", "mixers and head"])
@pytest.mark.parametrize("training", ["plain", "checkpointed"])
def test_masked_lm_round_trip(whole, training, tmp_path):
    model = with_base(tiny_masked_lm.tiny_model(), tmp_path / "base")
    before = weights(model)
    arguments = {"activation_checkpointing": True} if training == "checkpointed" else {}
    trainer = masked_lm_trainer(tmp_path, model, lora(MIXERS, modules_to_save=whole), learning_rate=3e-2, **arguments)
    trainer.train()
    check_trained(trainer, before, lambda name: "lora_" in name or (bool(whole) and name.startswith("lm_head.")))
    assert sum("lora_" in name for name, p in model.named_parameters() if p.requires_grad) == 2 * 2 * 2
    folders = (tmp_path / "base", tmp_path / "adapter")
    check_round_trip(trainer, *folders, torch.randint(97, 123, (2, 20)), ("logits",), (AutoModelForMaskedLM,))


def test_resumed_adapters(tmp_path):
    with_base(tiny_masked_lm.tiny_model(), tmp_path / "base")

    def make_trainer(folder, **arguments):
        model = M2BertForMaskedLM.from_pretrained(tmp_path / "base")
        torch.manual_seed(1)
        return masked_lm_trainer(folder, model, lora(MIXERS, lora_dropout=0.1), **arguments)

    check_resume(make_trainer, tmp_path)


def test_embedding_round_trip(tmp_path):
    model = with_base(tiny_retrieval.tiny_embedder(), tmp_path / "base")
    before = weights(model)
    config = lora(MIXERS, modules_to_save=["pooler"])
    trainer = RetrievalTrainer(
        model,
        tiny_retrieval.quiet_retrieval_config(tmp_path, learning_rate=2e-2),
        train_dataset=tiny_retrieval.ROWS,
        processing_class=tiny_retrieval.tokenizer(),
        peft_config=config,
    )
    trainer.train()
    check_trained(trainer, before, lambda name: "lora_" in name or ".pooler.modules_to_save." in name)
    folders = (tmp_path / "base", tmp_path / "adapter")
    keys = ("sentence_embedding", "last_hidden_state")
    merged = check_round_trip(trainer, *folders, torch.randint(97, 123, (2, 20)), keys, (AutoModelForTextEncoding,))
    assert not merged.m2_bert.pooler.dense.weight.equal(before["m2_bert.pooler.dense.weight"])


def test_classifier_round_trip(tmp_path):
    model = with_base(tiny_head(M2BertForSequenceClassification, num_labels=3), tmp_path / "base")
    adapted = with_adapters(model, lora(MIXERS, task_type="SEQ_CLS")).train()
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.1)
    assert {name.split(".")[-4] for name, p in model.named_parameters() if "modules_to_save" in name} == {"classifier"}
    ids, labels = tokens(3, 17), torch.tensor([0, 2, 1])
    adapted(input_ids=ids, labels=labels).loss.backward()
    assert {name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()} == {
        name for name, p in adapted.named_parameters() if p.requires_grad
    }
    torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1).step()
    adapted.eval().save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        for auto in (peft.AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification):
            loaded = auto.from_pretrained(tmp_path / "adapter", num_labels=3).eval()
            assert torch.equal(loaded(input_ids=ids).logits, expected)
        merged = adapted.merge_and_unload()
        assert_close(merged(input_ids=ids).logits, expected, atol=MERGED, rtol=MERGED)


def test_remembered_spectra_are_not_those_of_an_adapter_switched_off():
    """In evaluation spectra are remembered: an adapter that is switched off and on must not meet stale ones."""
    model = tiny_masked_lm.tiny_model(kernel_cache_bytes=2**20).eval()
    ids = torch.randint(97, 123, (2, 20))
    with torch.no_grad():
        plain = model(ids).logits
        adapted = with_adapters(model, lora([], modules_to_save=["gated_filter"])).eval()
        assert torch.equal(adapted(input_ids=ids).logits, plain)
        for name, p in adapted.named_parameters():
            if "modules_to_save" in name and name.endswith("skip"):
                p.add_(1.0)
        changed = adapted(input_ids=ids).logits
        assert (changed - plain).abs().max() > 1e-3
        with adapted.disable_adapter():
            assert torch.equal(adapted(input_ids=ids).logits, plain)
        assert torch.equal(adapted(input_ids=ids).logits, changed)


def test_block_diagonal_layers_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="BlockDiagonalLinear"):
        masked_lm_trainer(tmp_path, tiny_masked_lm.tiny_model(), lora(["up"]))
