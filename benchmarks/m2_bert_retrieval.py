"""Retrieval fine-tuning of a small M2-BERT on documentation <-> code of the standard library: nDCG@10 before and after, beside BM25.

python benchmarks/m2_bert_retrieval.py [--checkpoint runs/m2_bert_tiny] [--loss info_nce] --in-batch [--epochs 4] [--hidden-fact passkey]

Without --checkpoint the encoder starts from random weights. Files are split into train and held-out; the ranking is of held-out
functions by held-out documentation. With --hidden-fact the trained encoder also looks for facts hidden in documents that are
as long as its rows.
"""

import argparse
import tempfile
import time

import torch
from record import record

from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from hf_elm.retrieval_evaluation import evaluate_retrieval
from hf_elm.retrieval_run import load_model_to_embed
from hf_elm.retrieval_tasks import hidden_fact_task, task_of_pairs
from hf_elm.trainers.pair_corpora import load_pairs
from hf_elm.trainers.retrieval_config import RetrievalConfig
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from hf_elm.trainers.tokenization import build_tokenizer


SMALL = {
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "filter_order": 32,
    "hidden_dropout_prob": 0.0,
}


def main():
    options = _options()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)  # of new weights: all, or the pooler's
    corpus = load_pairs("stdlib", seed=options.seed)
    model, tokenizer = _start(options, corpus)
    task = task_of_pairs(corpus.held_out, "stdlib, held out")
    before = evaluate_retrieval(model, tokenizer, task, name="start", max_length=options.length)
    with tempfile.TemporaryDirectory() as folder:
        trainer = RetrievalTrainer(model, _arguments(options, folder), corpus.train, processing_class=tokenizer)
        started = time.process_time()
        trainer.train()
        seconds = time.process_time() - started
    after = evaluate_retrieval(model, tokenizer, task, name="trained", max_length=options.length)
    settings = {
        key: getattr(options, key)
        for key in ("loss", "in_batch", "batch", "negatives", "epochs", "lr", "length", "pooling", "seed")
    }
    scores = [before.scores[0], *after.scores]
    for score in scores:
        _record(score, settings, options, train_cpu_seconds=round(seconds, 1), parameters=model.num_parameters())
    if options.hidden_fact:
        limit = model.config.max_position_embeddings
        lengths = sorted({max(64, limit // 2), limit})
        tasks = [hidden_fact_task(options.hidden_fact, tokenizer, l, d, 50) for l in lengths for d in (0.0, 0.5, 1.0)]
        for score in evaluate_retrieval(model, tokenizer, tasks, name="trained").scores:
            _record(score, settings, options)


def _record(score, settings, options, **fields):
    where = {} if score.length is None else {"tokens": score.length, "fact_at": score.depth}
    record(
        "m2_bert_retrieval", impl=score.retriever, task=score.task, metric="ndcg@10", unit="share", **where,
        value=round(score.means["ndcg@10"], 4), se=round(score.standard_errors["ndcg@10"], 4),
        recall_at_10=round(score.means["recall@10"], 4), mrr=round(score.means["mrr"], 4), n=score.num_queries,
        documents=score.num_documents, start="masked_lm" if options.checkpoint else "random", **settings, **fields,
    )  # fmt: skip


def _start(options, corpus):
    if options.checkpoint:
        model = load_model_to_embed(options.checkpoint, hidden_dropout_prob=0.0, pooling=options.pooling)
        return model, build_tokenizer(options.checkpoint, encoder=True)
    tokenizer = build_tokenizer("bpe", corpus.train.texts(), 2048, encoder=True)
    sizes = SMALL | {
        "max_position_embeddings": options.length,
        "vocab_size": len(tokenizer),
        "pooling": options.pooling,
    }
    return M2BertForSentenceEmbedding(M2BertConfig(pad_token_id=tokenizer.pad_token_id, **sizes)), tokenizer


def _arguments(options, folder):
    return RetrievalConfig(
        output_dir=folder, retrieval_loss=options.loss, in_batch_negatives=options.in_batch, seed=options.seed,
        negatives_per_query=options.negatives, max_length=options.length, per_device_train_batch_size=options.batch,
        num_train_epochs=options.epochs, learning_rate=options.lr, warmup_steps=20, lr_scheduler_type="cosine",
        logging_steps=40, save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip


def _options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", help="a masked language model of m2_bert to start from")
    parser.add_argument("--loss", default="orthogonal_projection")
    parser.add_argument("--in-batch", action="store_true", help="documents of other queries are negatives")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--negatives", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--length", type=int, default=64, help="tokens of a text; the rest is cut")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--hidden-fact", choices=("needle", "passkey"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
