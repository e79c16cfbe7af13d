"""The sections of a recipe that are ours: their keys, defaults and meanings. No heavy imports, so that help is instant.

The ``model`` section has the fields of the family's config beside `ModelSource`, the ``train`` section the fields of its
TrainingArguments.
"""

from dataclasses import dataclass


@dataclass
class RunSection:
    """Keys without a section.

    Args:
        family: model family.
        objective: what to train for; missing: the family's own, such as predicting tokens. retrieval (m2_bert): embeddings by
            which queries find their documents.
        seed: seeds the corpus split, the packing order, the weights and the training.
        resume: continue the run in output_dir from its last checkpoint (start it where there is none).
    """

    family: str = "monarc"
    objective: str | None = None
    seed: int = 0
    resume: bool = False


@dataclass
class ModelSource:
    """Where the model comes from: at most one of preset, base, checkpoint; none of them: a new model of the given fields.

    Args:
        preset: named size of a new model, e.g. tiny, 163m, 430m.
        base: path or Hub id of an existing causal LM to wrap.
        checkpoint: path or Hub id of a saved model of this family to train further.
        quantization: int8 (torchao), 8bit or 4bit (bitsandbytes): the weights of model.base are stored so while an adapter is
            trained (peft.*) and the energy is in full precision; the base is saved as it was before.
    """

    preset: str | None = None
    base: str | None = None
    checkpoint: str | None = None
    quantization: str | None = None


@dataclass
class TokenizerSection:
    """Which tokenizer; missing with model.base or model.checkpoint: theirs.

    Args:
        kind: byte, char, bpe (the last two are learned from the training text) or pretrained (needs path); missing: pretrained
            where a path is known, else byte.
        path: path or Hub id of a pretrained tokenizer.
        vocab_size: size of a bpe vocabulary.
    """

    kind: str | None = None
    path: str | None = None
    vocab_size: int | None = None


@dataclass
class DataSection:
    """The text and how it becomes rows.

    Args:
        corpus: stdlib (the interpreter's own library sources), a file, a folder, a glob, a Hub dataset id, or a folder that
            `hf-elm prepare` wrote.
        config_name: configuration of a Hub dataset, e.g. sample-10BT.
        split: split of a Hub dataset.
        text_column: column that holds the text.
        streaming: read a Hub dataset as a stream; needs train.max_steps.
        held_out_fraction: share of the documents (by file) kept from training, for the likelihood.
        max_bytes: read at most this much text; missing: all.
        sequence_length: tokens per packed row.
        strategy: how documents are packed into rows: wrapped (fills every row, documents may continue in the next) or greedy
            (documents are cut at sequence_length and never continue).
        reset_position_ids: count positions from each document's start.
    """

    corpus: str = "stdlib"
    config_name: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = True
    held_out_fraction: float = 0.05
    max_bytes: int | None = None
    sequence_length: int = 256
    strategy: str = "wrapped"
    reset_position_ids: bool = False


@dataclass
class PairSection:
    """The pairs of queries and documents to learn from.

    Args:
        corpus: stdlib (documentation and code of the interpreter's own library functions), a jsonl, csv or parquet file with the
            columns query, positive, negatives (or query, document, label), or a folder of BEIR's layout.
        held_out_fraction: share of the queries (stdlib: of the files) kept from training; of a BEIR folder only where it has no
            dev or test split.
        max_pairs: at most so many queries; missing: all.
        sequence_length: tokens of a document; the rest is cut off.
    """

    corpus: str = "stdlib"
    held_out_fraction: float = 0.1
    max_pairs: int | None = None
    sequence_length: int = 256


@dataclass
class PeftSection:
    """Low-rank adapters (PEFT's LoRA) instead of the model's own weights; any key of this section turns them on.

    Args:
        r: rank.
        lora_alpha: the adapters' product is multiplied by lora_alpha / r.
        lora_dropout: dropout of the adapters' input.
        target_modules: all-linear (every linear layer but the output embedding), names of layers, or a regular expression; [] is
            none, so that modules_to_save alone is trained.
        modules_to_save: modules trained in full; missing: the energy head (monarc), the refinement (nano_ebm), none (m2_bert).
    """

    r: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    modules_to_save: list[str] | None = None


@dataclass
class PrepareSection:
    """What ``hf-elm prepare`` writes, and how.

    Args:
        output: folder to write; new, or that of an interrupted preparation.
        family: model family that the rows are for: an encoder's hold one document or a piece of one, the others' are packed.
        seed: seeds the split into train and held-out, and the order of the documents.
        shard_documents: documents per shard.
        num_proc: processes; the rows do not depend on it.
        progress: show a progress bar.
    """

    output: str | None = None
    family: str = "monarc"
    seed: int = 0
    shard_documents: int = 20000
    num_proc: int = 1
    progress: bool = True


@dataclass
class FinalEvaluationSection:
    """The evaluation at the end of a training run; the other keys are those of ``hf_elm.evaluation.evaluate_elm``.

    Args:
        skip: leave it out.
    """

    skip: bool = False


@dataclass
class EvaluateSection:
    """What ``hf-elm evaluate`` does beside ``hf_elm.evaluation.evaluate_elm``.

    Args:
        part: held_out, train or all; missing: held_out where the text is that of the run that wrote the checkpoint, else all.
        equal_compute_lm: path or Hub id of a causal LM over the same vocabulary, scored on the same tokens.
        output: write the result to this JSON file.
    """

    part: str | None = None
    equal_compute_lm: str | None = None
    output: str | None = None


@dataclass
class CheckpointSection:
    """Which saved model to use, and where.

    Args:
        checkpoint: folder that a run or save_pretrained wrote, or a Hub id.
        device: torch device, e.g. cpu or cuda:0; missing: cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; missing: as saved.
        seed: seed of every random choice.
    """

    checkpoint: str | None = None
    device: str | None = None
    dtype: str | None = None
    seed: int = 0


@dataclass
class GenerateSection:
    """How to continue a prompt.

    Args:
        prompt: the text to continue; "-" reads standard input.
        max_new_tokens: at most this many tokens are added.
        do_sample: draw tokens; false takes the likeliest.
        temperature: flattens (> 1) or sharpens (< 1) the LM's distribution.
        top_k: draw from the k likeliest tokens only.
        top_p: draw from the smallest set of tokens with this probability only.
        repetition_penalty: above 1 discourages tokens that have occurred.
        num_return_sequences: how many continuations.
        stream: print tokens as they come.
    """

    prompt: str = ""
    max_new_tokens: int = 128
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    num_return_sequences: int = 1
    stream: bool = True


@dataclass
class CandidateSection:
    """How the energy chooses.

    Args:
        num_candidates: tokens that the LM proposes per position; 1 is the LM itself; missing: as saved with the model.
        candidate_mode: sample (candidates are drawn from the LM) or topk (its likeliest tokens); missing: as saved.
    """

    num_candidates: int | None = None
    candidate_mode: str | None = None


@dataclass
class ThinkingSection:
    """How predictions are refined; what is missing is as saved with the model.

    Args:
        use_thinking: refine every prediction; false is system 1.
        think_steps: refinement steps.
        think_lr: one step size for all steps, instead of the learnt ones.
        think_topk: only the k likeliest tokens of system 1 keep probability; 0 is all.
        think_max_move: furthest that a logit may move; 0 is no limit.
        think_tolerance: stop where a step changes the energy by less, in nats.
        think_samples: refinements with noise per token, of which the one of lowest energy is taken.
        langevin_noise: temperature of that noise.
    """

    use_thinking: bool | None = None
    think_steps: int | None = None
    think_lr: float | None = None
    think_topk: int | None = None
    think_max_move: float | None = None
    think_tolerance: float | None = None
    think_samples: int | None = None
    langevin_noise: float | None = None


@dataclass
class EmbedSection:
    """What ``hf-elm embed`` does beside ``hf_elm.embedding.embed_texts``.

    Args:
        output: file to write, .npy, .parquet or .jsonl; must be new.
        text_column: column of a table that holds the text.
        id_column: column of a table that holds the ids; missing: the numbers of the rows.
        include_text: write the texts beside their vectors (.parquet and .jsonl).
        progress: show a progress bar.
    """

    output: str | None = None
    text_column: str = "text"
    id_column: str | None = None
    include_text: bool = False
    progress: bool = True


@dataclass
class RetrieveSection:
    """What is searched, and how.

    Args:
        task: stdlib (documentation and code of the interpreter's own library functions), needle or passkey (a fact hidden in long
            documents), a folder of BEIR's layout, or a jsonl, csv or parquet file of pairs; missing: the pairs of the run that
            wrote the checkpoint, else stdlib.
        split: of a folder: its qrels (missing: test); else train or held_out (missing).
        held_out_fraction: as in the training run.
        lengths: needle and passkey: tokens of the documents; missing: a quarter, a half and all of the model's positions.
        depths: needle and passkey: where the fact stands, 0 (first) to 1 (last).
        documents: needle and passkey: documents, and questions, of each length and depth.
        pooling: cls (first token) or mean (over the tokens); missing: as saved with the model.
        pool_with_dense: follow the pooling by the model's dense layer and tanh; missing: as saved with the model.
        output: write the scores to this JSON file.
    """

    task: str | None = None
    split: str | None = None
    held_out_fraction: float = 0.1
    lengths: list[int] | None = None
    depths: list[float] | None = None
    documents: int = 50
    pooling: str | None = None
    pool_with_dense: bool | None = None
    output: str | None = None


@dataclass
class ExportSection:
    """What ``hf-elm export`` writes beside the model.

    Args:
        sentence_transformers: for an M2-BERT encoder: the files by which sentence-transformers loads it.
        pooling: with sentence_transformers: cls or mean; missing: as saved with the model.
        pool_with_dense: with sentence_transformers: pool through the model's tanh layer; missing: as saved with the model.
        normalize_embeddings: with sentence_transformers: vectors of unit length; missing: as saved with the model.
    """

    sentence_transformers: bool = False
    pooling: str | None = None
    pool_with_dense: bool | None = None
    normalize_embeddings: bool | None = None


@dataclass
class PublishSection:
    """What ``hf-elm publish`` does.

    Args:
        private: make a new repository private; one that exists and is public is refused.
        revision: branch to publish to, created where it is missing; missing: main.
        message: of the commit; missing: "Publish with hf_elm <version>".
        license: of the weights, for the card, such as apache-2.0; missing: the card names none.
        overwrite_card: replace the repository's README.md even where it was edited there.
        base: of an adapter (PEFT), the Hub id of its base, where its files name a folder.
        merge: of an adapter, publish its base with the adapter in the weights.
        dry_run: check everything and list the files, without the network.
    """

    private: bool = False
    revision: str | None = None
    message: str | None = None
    license: str | None = None
    overwrite_card: bool = False
    base: str | None = None
    merge: bool = False
    dry_run: bool = False


@dataclass
class PlotSection:
    """The file of a picture.

    Args:
        output: new file, .png, .pdf or .svg (animate: .gif; heatmap: .html too); missing: the kind of picture in the current
            folder.
        dpi: pixels per inch; missing: 150, for animate 80.
    """

    output: str | None = None
    dpi: int | None = None


@dataclass
class PlotPromptSection:
    """What is thought about.

    Args:
        prompt: the text after which the model predicts.
    """

    prompt: str = ""


@dataclass
class PlotTokensSection:
    """How many tokens are shown.

    Args:
        num_tokens: the likeliest so many; missing: 5 in trajectory, 10 in tokens, 8 in animate.
    """

    num_tokens: int | None = None


@dataclass
class PlotModeSection:
    """How the landscape is drawn.

    Args:
        mode: 3d (surface), contour, or both side by side.
    """

    mode: str = "both"


@dataclass
class PlotGridSection:
    """The plane on which the free energy is evaluated.

    Args:
        span: half of its width, in lengths of the way from system 1 to system 2.
        grid: points per side.
    """

    span: float = 2.0
    grid: int = 61


@dataclass
class PlotFilmSection:
    """The film.

    Args:
        fps: frames per second.
        frames_per_step: frames from one refinement step to the next.
    """

    fps: int = 12
    frames_per_step: int = 8


@dataclass
class QuickstartSection:
    """What ``hf-elm quickstart`` tells, whatever the model.

    Args:
        model: whose story: monarc (a language model and its energy) or nano-ebm (predictions that are refined).
        output_dir: folder of everything it writes; must be new or empty. With model=nano-ebm runs/quickstart_nano_ebm where it
            is not given.
        corpus: stdlib (the interpreter's own library sources), a file, a folder, a glob, or a Hub dataset id.
        evaluation_tokens: held-out tokens on which everything is compared; with model=nano-ebm 60000 where it is not given.
        prompt: text to continue at the end.
        seed: seed of every random choice.
    """

    model: str = "monarc"
    output_dir: str = "runs/quickstart"
    corpus: str = "stdlib"
    evaluation_tokens: int = 30000
    prompt: str = "def main(argv):"
    seed: int = 0


@dataclass
class MonArcQuickstartSection:
    """What the story of MonArc has beside that.

    Args:
        lm_steps: optimizer steps of the language model, 32 rows of 64 bytes each.
        energy_steps: optimizer steps of the energy, with the language model frozen.
    """

    lm_steps: int = 2500
    energy_steps: int = 1000


@dataclass
class NanoEBMQuickstartSection:
    """What the story of nanoEBM has beside that, and its own defaults.

    Args:
        output_dir: folder of everything it writes; must be new or empty.
        evaluation_tokens: held-out tokens on which everything is compared.
        steps: optimizer steps of the GPT and of the nanoEBM, 16 rows of 64 bytes each.
        think_steps: refinement steps of each prediction in training.
    """

    output_dir: str = "runs/quickstart_nano_ebm"
    evaluation_tokens: int = 60000
    steps: int = 800
    think_steps: int = 2
