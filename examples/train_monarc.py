"""Trains a MonArc model from scratch, measures its exact likelihood on held-out text, and continues a prompt.

    python examples/train_monarc.py --corpus my_texts/ --output_dir runs/monarc
    python examples/train_monarc.py --smoke --output_dir runs/monarc_smoke    # a few steps, seconds

The text is the Python interpreter's own library unless --corpus names a file, a folder, a glob or a Hub dataset.
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

from hf_elm import MonArcConfig, MonArcForCausalLM, evaluate_elm
from hf_elm.run_folder import require_empty
from hf_elm.trainers import ResidualEnergyConfig, ResidualEnergyTrainer, build_tokenizer, load_corpus, pack_rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output_dir", default="runs/monarc")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    require_empty(options.output_dir, "output_dir")
    steps, size = (20, {"hidden_size": 64, "intermediate_size": 128}) if options.smoke else (options.steps, {})
    corpus = load_corpus(options.corpus, max_bytes=500_000 if options.smoke else 8_000_000)
    tokenizer = build_tokenizer("byte")
    trainer = ResidualEnergyTrainer(
        model=MonArcForCausalLM(MonArcConfig.preset("tiny", vocab_size=len(tokenizer), **size)),
        args=ResidualEnergyConfig(
            options.output_dir, max_steps=steps, max_length=128, per_device_train_batch_size=8, learning_rate=2e-3,
            warmup_steps=steps // 20, logging_steps=max(1, steps // 20), save_strategy="no",
        ),
        train_dataset=corpus.train,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    model = trainer.model.eval()
    rows = pack_rows(corpus.held_out, tokenizer, 128)
    result = evaluate_elm(model, rows, tokenizer=tokenizer, max_tokens=64 if options.smoke else 4096)
    print(result)
    prompt = tokenizer("import os", return_tensors="pt").to(model.device)
    text = model.generate(**prompt, max_new_tokens=64, do_sample=True, num_candidates=8)[0]
    print(tokenizer.decode(text))
    return result


if __name__ == "__main__":
    main()
