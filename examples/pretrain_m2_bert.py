"""Pretrains an M2-BERT encoder on masked tokens and fills in a blank.

python examples/pretrain_m2_bert.py --corpus my_texts/ --output_dir runs/encoder
python examples/pretrain_m2_bert.py --smoke --output_dir runs/encoder_smoke    # a few steps, seconds
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

from transformers import pipeline

from hf_elm import M2BertConfig, M2BertForMaskedLM
from hf_elm.run_folder import require_empty
from hf_elm.trainers import MaskedLMConfig, MaskedLMTrainer, build_tokenizer, load_corpus


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output_dir", default="runs/encoder")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    require_empty(options.output_dir, "output_dir")
    steps, size = (30, 64) if options.smoke else (options.steps, 128)
    corpus = load_corpus(options.corpus, max_bytes=300_000 if options.smoke else 8_000_000)
    tokenizer = build_tokenizer("bpe", corpus.train, 512 if options.smoke else 2048, encoder=True)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": size, "intermediate_size": 4 * size}
    trainer = MaskedLMTrainer(
        model=M2BertForMaskedLM(
            M2BertConfig.preset("tiny", pad_token_id=tokenizer.pad_token_id, hidden_dropout_prob=0.0, **sizes)
        ),
        args=MaskedLMConfig(
            options.output_dir, max_steps=steps, max_length=128, per_device_train_batch_size=16, learning_rate=3e-3,
            warmup_steps=60 if steps >= 600 else steps // 10, logging_steps=max(1, steps // 20), save_strategy="no",
        ),
        train_dataset=corpus.train,
        eval_dataset=corpus.held_out.select(range(min(20, len(corpus.held_out)))),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    metrics = trainer.evaluate()
    print(
        f"loss {metrics['eval_loss']:.3f}, without context {metrics['eval_unigram_entropy']:.3f} nats per masked token"
    )
    fill = pipeline("fill-mask", model=trainer.model, tokenizer=tokenizer)
    for guess in fill(f"import {tokenizer.mask_token}")[:3]:
        print(f"{guess['score']:.3f}  {guess['sequence']}")
    return metrics


if __name__ == "__main__":
    main()
