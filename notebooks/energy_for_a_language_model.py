# %% [markdown]
# # An energy for a language model
#
# A language model gives the next token a probability; a residual energy corrects it:
# p(x) = p_LM(x) · exp(−E(x)) / Z. This notebook trains a small LM and then its energy, measures what the energy brings with an exact Z,
# and looks at it. It needs `pip install "hf_elm[train,plot]"`, no network, and a few minutes of a laptop's CPU.

# %%
import torch
import transformers
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib_inline.backend_inline import set_matplotlib_formats
from transformers import DataCollatorForLanguageModeling, LlamaConfig, LlamaForCausalLM, PrinterCallback

from hf_elm import MonArcForCausalLM, evaluate_elm
from hf_elm.trainers import ResidualEnergyConfig, ResidualEnergyTrainer, build_tokenizer, load_corpus, pack_rows


set_matplotlib_formats("png")
transformers.set_seed(0)
corpus = load_corpus("stdlib", max_bytes=2_000_000)  # the interpreter's own library; or a file, a folder, a Hub id
tokenizer = build_tokenizer("byte")
train_rows, held_out_rows = (pack_rows(part, tokenizer, 64) for part in (corpus.train, corpus.held_out))
print(f"{len(corpus.train)} files to learn from, {len(corpus.held_out)} held out")

# %% [markdown]
# ## A language model
#
# Any causal LM with full softmax attention will do; here a new and very small Llama, trained as usual.

# %%
options = {
    "output_dir": "run", "max_steps": 500, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 25,
    "logging_steps": 25, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "report_to": [],
}  # fmt: skip
sizes = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 2}
lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes))
trainer = transformers.Trainer(
    lm, transformers.TrainingArguments(**options), DataCollatorForLanguageModeling(tokenizer, mlm=False),
    train_rows.select_columns("input_ids"),
)  # fmt: skip
trainer.remove_callback(PrinterCallback)
trainer.train()
print(
    f"cross-entropy {trainer.state.log_history[0]['loss']:.3f} -> {trainer.state.log_history[-2]['loss']:.3f} nats/byte"
)

# %% [markdown]
# ## Its energy
#
# The LM is frozen; low-rank weights that act on candidate tokens only, and an energy head, are trained. Per position the LM draws
# one negative; the loss is E(data) + exp(−E(negative)) − 1, which with the LM's cross-entropy bounds the energy-based model's negative
# log-likelihood from above. At the start E = 0: the model *is* the LM.

# %%
model = MonArcForCausalLM.from_causal_lm(lm, energy_adapter_rank=8, freeze_lm=True)
arguments = ResidualEnergyConfig(**options | {"max_steps": 400}, max_length=64)
trainer = ResidualEnergyTrainer(model, arguments, train_dataset=train_rows, processing_class=tokenizer)
trainer.remove_callback(PrinterCallback)
trainer.train()
for record in trainer.state.log_history[:-1:3]:
    shown = ", ".join(f"{name} {record[name]:.3f}" for name in ("lm_loss", "elm_nll_bound", "z_hat"))
    print(f"step {record['step']:3}: {shown}")

# %% [markdown]
# ## What did the energy bring?
#
# With 258 tokens Z is summed exactly. The comparison is paired: the language model and the energy-based model on the same
# held-out bytes. (This LM is far from saturated; the same time spent on training it further would serve it better.)

# %%
measured = {"tokenizer": tokenizer, "max_tokens": 1000, "position_fraction": 0.25, "progress": False}
exact = evaluate_elm(model.eval(), held_out_rows, **measured)
print(exact)

# %% [markdown]
# Where the vocabulary is too large to sum, Z is bounded from samples. Both ends are valid at every number of samples, and the
# interval closes as they grow (a single estimate may still lie a little to one side):

# %%
for samples in (4, 16, 64):
    found = evaluate_elm(model, held_out_rows, method="sampled", exact_top=4, num_samples=samples, **measured)
    interval = f"{found.elm_nll_lower:.4f} to {found.elm_nll_upper:.4f}"
    print(f"K = {samples:3}: {interval}   exact: {exact.elm_nll:.4f} nats/byte")

# %% [markdown]
# ## Looking at energies
#
# The energy of each byte of a line that Python would accept, and of the same line with two bytes exchanged: lower is likelier.

# %%
texts = ["    return self.name\n", "    retrun self.name\n"]
figure = Figure(figsize=(8, 3.2), dpi=80, layout="constrained")
for axes, text in zip(figure.subplots(2, 1, sharey=True), texts, strict=True):
    input_ids = tokenizer(text, return_tensors="pt")["input_ids"][:, : len(text)]
    with torch.no_grad():
        output = model(input_ids, labels=input_ids)
    axes.bar(range(len(text)), output.energies[0], color="#4053b5")
    axes.axhline(0, color="grey", linewidth=0.5)
    axes.set_xticks(range(len(text)), [repr(character)[1:-1] for character in text])
    axes.set_ylabel("E, nats")
display(figure)

# %% [markdown]
# ## Generating
#
# Per token the LM proposes K candidates and the energy chooses among them, in one forward pass. K = 1 is the LM alone.

# %%
prompt = tokenizer("import os\n\ndef ", return_tensors="pt")
for candidates in (1, 8):
    transformers.set_seed(1)
    output = model.generate(**prompt, max_new_tokens=60, do_sample=True, num_candidates=candidates)
    print(f"--- K = {candidates}\n{tokenizer.decode(output[0])}")
