"""Trains LoRA adapters in a causal LM and the energy head beside them with PEFT, and loads the adapter again.

python examples/peft_energy_head.py --model HuggingFaceTB/SmolLM2-135M --corpus my_texts/ --output_dir runs/lora
python examples/peft_energy_head.py --smoke --output_dir runs/lora_smoke    # a new small LM, seconds
"""

# /// script
# requires-python = ">=3.11"
# dependencies = ["hf_elm[train]"]
# [tool.uv.sources]
# hf_elm = { path = ".." }
# ///

import argparse

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoTokenizer

from hf_elm import MonArcConfig, MonArcForCausalLM
from hf_elm.run_folder import require_empty
from hf_elm.trainers import ResidualEnergyConfig, ResidualEnergyTrainer, build_tokenizer, load_corpus


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M", help="folder or Hub id of a causal LM")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output_dir", default="runs/lora")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args(arguments)
    require_empty(options.output_dir, "output_dir")
    if options.smoke:
        tokenizer = build_tokenizer("byte")
        model = MonArcForCausalLM(MonArcConfig.preset("tiny", vocab_size=len(tokenizer), hidden_size=64))
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        model = MonArcForCausalLM.from_causal_lm(options.model)
    base = f"{options.output_dir}/base"  # the LM and its energy, still zero: what the adapter is loaded onto
    model.save_pretrained(base)
    corpus = load_corpus(options.corpus, max_bytes=500_000 if options.smoke else None)
    steps = 20 if options.smoke else options.steps
    args = ResidualEnergyConfig(options.output_dir, max_steps=steps, max_length=128, learning_rate=1e-3)
    lora = LoraConfig(r=8, target_modules=["q_proj", "v_proj"])  # the energy head is trained in full beside them
    data = {"train_dataset": corpus.train, "processing_class": tokenizer}
    trainer = ResidualEnergyTrainer(model, args, peft_config=lora, **data)
    trainer.train()
    trainer.save_model()
    trainer.model.print_trainable_parameters()
    loaded = PeftModel.from_pretrained(MonArcForCausalLM.from_pretrained(base), options.output_dir).eval()
    rows = tokenizer("import os\nimport sys\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        ours, theirs = (each.cpu().eval()(rows, labels=rows).energies for each in (trainer.model, loaded))
    print("energies after loading again:", theirs)
    return ours, theirs


if __name__ == "__main__":
    main()
