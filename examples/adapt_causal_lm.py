"""Gives an existing causal LM an energy: low-rank weights that act on candidate tokens only, the LM frozen and bit-identical.

python examples/adapt_causal_lm.py --model HuggingFaceTB/SmolLM2-135M --corpus my_texts/ --output_dir runs/adapted
python examples/adapt_causal_lm.py --smoke --output_dir runs/adapted_smoke    # a new small LM, seconds
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hf_elm import MonArcForCausalLM, evaluate_elm
from hf_elm.run_folder import require_empty
from hf_elm.trainers import ResidualEnergyConfig, ResidualEnergyTrainer, build_tokenizer, load_corpus, pack_rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder or Hub id of a causal LM")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output_dir", default="runs/adapted")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    if (options.model is None) != options.smoke:
        parser.error("give --model, or --smoke alone.")
    length = 64 if options.smoke else 256
    require_empty(options.output_dir, "output_dir")
    if options.smoke:
        options.steps, tokenizer = 20, build_tokenizer("byte")
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        lm = AutoModelForCausalLM.from_pretrained(options.model)
    corpus = load_corpus(options.corpus, max_bytes=500_000 if options.smoke else None)
    probe = torch.arange(16).view(1, 16)
    with torch.no_grad():
        before = lm.eval()(probe).logits
    args = ResidualEnergyConfig(options.output_dir, max_steps=options.steps, max_length=length, learning_rate=1e-3)
    model = MonArcForCausalLM.from_causal_lm(lm, energy_adapter_rank=8, freeze_lm=True)
    trainer = ResidualEnergyTrainer(model, args, train_dataset=corpus.train, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    with torch.no_grad():
        print("LM unchanged:", torch.equal(model.cpu().eval()(probe).logits, before))
    rows = pack_rows(corpus.held_out, tokenizer, length)
    print(result := evaluate_elm(model, rows, tokenizer=tokenizer, max_tokens=128 if options.smoke else 8192))
    return result


if __name__ == "__main__":
    main()
