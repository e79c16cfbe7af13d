"""The keys of ``hf-elm eval`` and ``hf-elm compare``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass


@dataclass
class TaskSection:
    """What ``hf-elm eval`` runs, and how.

    Args:
        tasks: names of the harness's tasks, groups or tags, separated by commas; missing: the three that are shipped.
        half: lm (nanoEBM: system 1), elm (system 2) or both.
        batch_size: rows per forward pass; results do not depend on it.
        limit: documents per task, or below 1 their share; missing: all.
        num_fewshot: examples before each question; missing: as the task says.
        gen_kwargs: generation arguments as the harness writes them, e.g. temperature=0.8,do_sample=True; they win over the task's.
        max_gen_toks: new tokens where a task does not say.
        max_length: tokens that the model sees at once; missing: its positions. The length of the rows that it was trained on may
            suit it better.
        think_steps: nanoEBM: refinement steps of system 2; missing: as configured.
        num_candidates: MonArc: candidates per generated token; missing: as saved with the model.
        choose: of generation tasks: sample choose_from generations and choose one: likelihood, energy, vote or consistency, as in
            ``hf-elm generate``; missing: as the task asks, mostly greedy.
        choose_from: generations to choose from.
        answer_pattern: regular expression of an answer, for vote and consistency; missing: the whole generation.
        method: MonArc: how log Z is found: auto, exact, sampled or certified, as in ``hf-elm evaluate``.
        num_samples: MonArc: samples per position.
        exact_top: MonArc: likeliest tokens summed exactly; missing: 64.
        max_rows: MonArc: candidate streams that run at once; memory against speed.
        use_cache: beginning of the names of the harness's cache files; answers found there are not computed again.
        include_path: folder of further task files.
        bootstrap_iters: resamplings for the harness's standard errors; 0 is none.
        output: write the results to this JSON file.
        log_samples: with every document's requests and answers.
    """

    tasks: str = "library_cloze,library_perplexity,library_completion"
    half: str = "both"
    batch_size: int = 8
    limit: int | float | None = None
    num_fewshot: int | None = None
    gen_kwargs: str | None = None
    max_gen_toks: int = 256
    max_length: int | None = None
    think_steps: int | None = None
    num_candidates: int | None = None
    choose: str | None = None
    choose_from: int = 16
    answer_pattern: str | None = None
    method: str = "auto"
    num_samples: int = 64
    exact_top: int | None = None
    max_rows: int = 64
    use_cache: str | None = None
    include_path: str | None = None
    bootstrap_iters: int = 1000
    output: str | None = None
    log_samples: bool = False


@dataclass
class CompareSection:
    """On which documents models are compared, and how.

    Args:
        part: held_out, train or all; missing: held_out where the text is that of the run that wrote the first model, else all.
        documents: so many documents of it, drawn by ``seed``; 0 is all.
        document_bytes: the first so many bytes of each; 0 is all.
        window: tokens that a model sees at once, the same for all; missing: the rows that the models were trained on, the smallest
            (a model whose run left no recipe.yaml beside it counts with its positions).
        baseline: the column that the others are compared with, e.g. b:lm; missing: the first.
        think_steps: nanoEBM: refinement steps of system 2; missing: as configured.
        method: MonArc: how log Z is found: auto, exact, sampled or certified, as in ``hf-elm evaluate``.
        num_samples: MonArc: samples per position.
        exact_top: MonArc: likeliest tokens summed exactly; missing: 64.
        max_rows: MonArc: candidate streams that run at once; memory against speed.
        batch_size: rows per forward pass.
        device: torch device, e.g. cpu or cuda:0; missing: cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; missing: as saved.
        seed: of the choice of documents and of the samples.
        output: write the comparison to this JSON file.
    """

    part: str | None = None
    documents: int = 50
    document_bytes: int = 1024
    window: int | None = None
    baseline: str | None = None
    think_steps: int | None = None
    method: str = "auto"
    num_samples: int = 64
    exact_top: int | None = None
    max_rows: int = 64
    batch_size: int = 8
    device: str | None = None
    dtype: str | None = None
    seed: int = 0
    output: str | None = None
