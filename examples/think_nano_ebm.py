"""Trains a small model that thinks, compares its predictions before and after, and draws the energy it descends.

python examples/think_nano_ebm.py --corpus shakespeare.txt --output_dir runs/thinker
python examples/think_nano_ebm.py --smoke --output_dir runs/thinker_smoke    # a few steps, seconds
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train,plot]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

from hf_elm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.plots.energy_landscape import energy_landscape, plot_energy_landscape
from hf_elm.refinement_evaluation import evaluate_refinement
from hf_elm.run_folder import require_empty
from hf_elm.trainers import RefinementConfig, RefinementTrainer, build_tokenizer, load_corpus, pack_rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--output_dir", default="runs/thinker")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    require_empty(options.output_dir, "output_dir")
    steps, size, length = (20, "tiny", 64) if options.smoke else (options.steps, "small", 128)
    corpus = load_corpus(options.corpus, max_bytes=500_000 if options.smoke else 8_000_000)
    tokenizer = build_tokenizer("char", corpus.train)
    trainer = RefinementTrainer(
        model=NanoEBMForRefinement(NanoEBMConfig.preset(size, vocab_size=len(tokenizer))),
        args=RefinementConfig(
            options.output_dir, max_steps=steps, max_length=length, per_device_train_batch_size=16, learning_rate=2e-3,
            warmup_steps=steps // 10, logging_steps=max(1, steps // 20), save_strategy="no",
        ),
        train_dataset=corpus.train,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    model = trainer.model.eval()
    rows = pack_rows(corpus.held_out, tokenizer, length)
    result = evaluate_refinement(model, rows, tokenizer=tokenizer, max_tokens=1000 if options.smoke else 20_000)
    print(result)
    landscape = energy_landscape(model, tokenizer, "import", think_steps=4, grid=9 if options.smoke else 61)
    plot_energy_landscape(landscape, path=f"{options.output_dir}/landscape.png")
    prompt = tokenizer("import", return_tensors="pt").to(model.device)
    print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=True, think_steps=2)[0]))
    return result


if __name__ == "__main__":
    main()
