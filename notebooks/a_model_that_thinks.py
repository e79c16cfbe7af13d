# %% [markdown]
# # A model that thinks
#
# A nanoEBM makes a prediction (system 1) and refines it by descending a free energy (system 2). Every step provably lowers
# that energy. This notebook trains one, and shows what thinking changes. It needs `pip install "hf_elm[train,plot]"`, no
# network, and about a minute of a laptop's CPU.

# %%
import torch
import transformers
from IPython.display import display
from matplotlib_inline.backend_inline import set_matplotlib_formats

from hf_elm import NanoEBMConfig, NanoEBMForRefinement
from hf_elm.plots.energy_landscape import energy_landscape, plot_energy_landscape
from hf_elm.refinement_evaluation import evaluate_refinement
from hf_elm.trainers import RefinementConfig, RefinementTrainer, build_tokenizer, load_corpus, pack_rows


set_matplotlib_formats("png")
transformers.set_seed(0)
corpus = load_corpus("stdlib", max_bytes=2_000_000)  # the interpreter's own library; or a file, a folder, a Hub id
tokenizer = build_tokenizer("char", corpus.train)
trainer = RefinementTrainer(
    model=NanoEBMForRefinement(NanoEBMConfig.preset("tiny", vocab_size=len(tokenizer))),
    args=RefinementConfig(
        "run", max_steps=400, max_length=64, per_device_train_batch_size=16, learning_rate=3e-3, warmup_steps=40,
        logging_steps=20, save_strategy="no", disable_tqdm=True, use_cpu=True, report_to=[],
    ),
    train_dataset=corpus.train,
    processing_class=tokenizer,
)  # fmt: skip
trainer.remove_callback(transformers.PrinterCallback)
trainer.train()
model = trainer.model.eval()
for record in trainer.state.log_history[:-1:3]:
    print(f"step {record['step']:3}: system 1 {record['nll_s1']:.3f}, system 2 {record['nll_s2']:.3f} nats/character")
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

# %% [markdown]
# ## Before and after
#
# The same held-out characters for every row. More steps than were trained do no harm and
# bring nothing.

# %%
rows = pack_rows(corpus.held_out, tokenizer, 64)
print(evaluate_refinement(model, rows, tokenizer=tokenizer, max_tokens=4000))

# %% [markdown]
# ## The energy falls with every step
#
# The change of the free energy of the predictions after each character of a prompt, by steps: the mean, and the largest of all
# positions. In double precision, because the changes soon become smaller than the rounding of single precision.

# %%
assert model.config.descent_guaranteed
inputs = tokenizer("    def __init__(self", return_tensors="pt")
with torch.no_grad():
    output = model.double()(**inputs, think_steps=6, output_energies=True)
change = output.energies[1:] - output.energies[:-1]  # (steps, batch, seq), nats
for step, each in enumerate(change, 1):
    print(f"step {step}: mean {each.mean():+.1e}, largest {each.max():+.1e} nats")
assert change.max() < 1e-10
model = model.float()

# %% [markdown]
# The likeliest next characters, before and after thinking:

# %%
systems = {"system 1": output.s1_logits, "system 2": output.logits}
for name, logits in systems.items():
    probabilities, tokens = logits[0, -1].softmax(-1).topk(5)
    shown = (f"{tokenizer.decode([token])!r} {value:.3f}" for token, value in zip(tokens, probabilities, strict=True))
    print(f"{name}: {', '.join(shown)}")

# %% [markdown]
# ## The landscape
#
# The free energy over a plane through the start and the end of the refinement, with the path at its true height.

# %%
landscape = energy_landscape(model, tokenizer, "    def __init__(self", think_steps=4, grid=41)
figure = plot_energy_landscape(landscape, mode="both")
figure.set_dpi(70)
display(figure)

# %% [markdown]
# ## Generating with and without thinking

# %%
for thinking in (False, True):
    transformers.set_seed(1)
    output = model.generate(**inputs, max_new_tokens=40, do_sample=True, use_thinking=thinking)
    print(f"--- thinking: {thinking}\n{tokenizer.decode(output[0])}")
