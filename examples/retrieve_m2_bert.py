"""Trains an M2-BERT retriever on pairs of queries and documents, and measures it on held-out pairs, BM25 beside it.

    python examples/retrieve_m2_bert.py --pairs pairs.jsonl --output_dir runs/retriever
    python examples/retrieve_m2_bert.py --smoke --output_dir runs/retriever_smoke    # a few steps, seconds

Pairs: a table with the columns query and positive, a folder of BEIR's layout, or documentation and code of the Python library.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train,retrieval]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

from hf_elm import M2BertConfig, M2BertForSentenceEmbedding, embed_texts
from hf_elm.retrieval_evaluation import evaluate_retrieval
from hf_elm.retrieval_tasks import task_of_pairs
from hf_elm.run_folder import require_empty
from hf_elm.trainers import RetrievalConfig, RetrievalTrainer, build_tokenizer, load_pairs


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", default="stdlib")
    parser.add_argument("--output_dir", default="runs/retriever")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    require_empty(options.output_dir, "output_dir")
    pairs = load_pairs(options.pairs, max_pairs=64 if options.smoke else None)
    tokenizer = build_tokenizer("bpe", pairs.train.documents, 1024, encoder=True)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 64 if options.smoke else 128}
    config = M2BertConfig.preset(
        "tiny", pooling="mean", pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0, **sizes
    )
    trainer = RetrievalTrainer(
        model=M2BertForSentenceEmbedding(config),
        args=RetrievalConfig(
            options.output_dir, max_steps=10 if options.smoke else -1, num_train_epochs=4, max_length=64,
            per_device_train_batch_size=32, retrieval_loss="info_nce", in_batch_negatives=True, negatives_per_query=0,
            learning_rate=2e-3, warmup_steps=2 if options.smoke else 20, logging_steps=5, save_strategy="no",
        ),
        train_dataset=pairs.train,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    task = task_of_pairs(pairs.held_out, "held-out pairs")
    result = evaluate_retrieval(trainer.model, tokenizer, task, max_length=64)
    print(result)
    vectors = embed_texts(trainer.model, tokenizer, ["open a file", "read a file"])
    print(f"cosine {float(vectors[0] @ vectors[1]):.3f}")
    return result


if __name__ == "__main__":
    main()
