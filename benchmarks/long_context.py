"""Passkey and needle curves of a small M2-BERT retriever, 128 to 8192 tokens and more, with and without `extend_context`.

python benchmarks/long_context.py [--kind passkey] [--seeds 0 1] [--longest 8192] [--documents 50] [--figure docs/assets/long_context.png]

The encoder learns, from random weights, to find the document of 128 tokens that states a fact (four fifths of the pairs of person
and thing, InfoNCE, documents of the batch as negatives). Then it looks for facts about the other pairs in longer documents: as it
is, when it reads the first 128 tokens only, and with room for all tokens by each mode of `extend_context`, without further
training. One record per retriever, length and seed; accuracy is the share of questions whose own document ranks first.
"""

import argparse
import tempfile
import time

import torch
from record import record
from transformers import set_seed

from hf_elm.long_context import extended, hidden_fact_pairs, length_curves
from hf_elm.modeling.m2_bert import M2BertConfig
from hf_elm.modeling.m2_bert.modeling_m2_bert import M2BertForSentenceEmbedding
from hf_elm.plots.length_curves import plot_length_curves
from hf_elm.trainers.retrieval_config import RetrievalConfig
from hf_elm.trainers.retrieval_trainer import RetrievalTrainer
from hf_elm.trainers.tokenization import build_tokenizer


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "filter_order": 32,
    "hidden_dropout_prob": 0.0,
}
MODES = ("prefix", "stretch", "tile")


def main():
    options = _options()
    torch.set_num_threads(1)
    for seed in options.seeds:
        model, tokenizer, facts = train(options, seed)
        lengths = [options.length * 2**n for n in range(20) if options.length * 2**n <= options.longest]
        models = {f"{options.length} tokens read": model.eval()}
        if len(lengths) > 1:
            models |= {f"extended: {mode}": extended(model, lengths[-1], mode).eval() for mode in options.modes}
        documents = {
            length: options.documents if length <= 8192 else max(2, options.documents // 4) for length in lengths
        }
        start = time.process_time()
        curves = length_curves(
            models, tokenizer, options.kind, lengths, options.depths, documents=documents, seed=seed, progress=True
        )
        print(curves)
        facts["evaluation_cpu_seconds"] = round(time.process_time() - start, 1)
        for name in curves.curves:
            for whole in curves.by_length(name):
                cells = {c.depth: c for c in curves.curves[name] if c.length == whole.length}
                record(
                    "long_context", impl=name, task=options.kind, metric="accuracy", unit="share", tokens=whole.length,
                    value=round(whole.accuracy, 4), se=round(whole.standard_error, 4), n=whole.num_questions,
                    by_depth={str(depth): round(cell.accuracy, 4) for depth, cell in cells.items()},
                    questions_per_depth=next(iter(cells.values())).num_questions, documents_cut=whole.num_cut, seed=seed, **facts,
                )  # fmt: skip
        if options.figure and seed == options.seeds[0]:
            plot_length_curves(curves, options.figure, trained_length=options.length)


def train(options, seed):
    """A retriever, its tokenizer, and what its training took."""
    texts = [*hidden_fact_pairs(options.kind, build_tokenizer("byte"), 600, rounds=1, seed=seed).texts()]
    tokenizer = build_tokenizer("bpe", texts, 1024, encoder=True)
    pairs = hidden_fact_pairs(options.kind, tokenizer, options.length, options.depths, options.rounds, seed)
    set_seed(seed)
    config = M2BertConfig(
        **SIZES, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, max_position_embeddings=options.length,
        pooling=options.pooling,
    )  # fmt: skip
    model = M2BertForSentenceEmbedding(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = RetrievalConfig(
            output_dir=folder, retrieval_loss="info_nce", in_batch_negatives=True, negatives_per_query=0, seed=seed,
            max_length=options.length, max_query_length=32, per_device_train_batch_size=options.batch, num_train_epochs=1,
            learning_rate=options.lr, warmup_steps=20, lr_scheduler_type="cosine", logging_steps=20, save_strategy="no",
            report_to="none", use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = RetrievalTrainer(model, arguments, pairs, processing_class=tokenizer)
        start = time.process_time()
        trainer.train()
    seconds = time.process_time() - start
    facts = {"train_tokens": options.length, "pairs": len(pairs), "pooling": options.pooling, "lr": options.lr,
             "train_cpu_seconds": round(seconds, 1), "parameters": model.num_parameters()}  # fmt: skip
    return model, tokenizer, facts


def _options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=("passkey", "needle"), default="passkey")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--length", type=int, default=128, help="tokens of the documents to learn from")
    parser.add_argument("--longest", type=int, default=8192)
    parser.add_argument(
        "--documents", type=int, default=50, help="questions of each length and depth (a quarter above 8192)"
    )
    parser.add_argument("--depths", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--rounds", type=int, default=16, help="documents for each pair of person and thing")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--pooling", default="mean")
    parser.add_argument("--figure", help="PNG of the first seed's curves")
    return parser.parse_args()


if __name__ == "__main__":
    main()
