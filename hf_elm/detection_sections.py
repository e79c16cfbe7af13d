"""The keys of ``hf-elm detect``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass

from .recipe_keys import Schema, section


_HERE = "hf_elm.detection_sections"
_DATA = {"corpus", "config_name", "split", "text_column", "streaming", "held_out_fraction", "max_bytes"}


@dataclass
class DetectSection:
    """Which texts are judged by which detector.

    Args:
        detector: folder that ``hf-elm detect train`` wrote.
        checkpoint: where the model is that the detector was trained for; missing: where it was then.
        output: write one JSON line per text to this file; missing: print them.
        text_column: column of a table that holds the text.
        id_column: column that holds the id; missing: the number of the row, or the name of the file.
        token_weights: with the weight of every token.
        batch_size: texts per forward pass; missing: as in the training.
        device: torch device, e.g. cpu or cuda:0; missing: cuda where there is one, else cpu.
    """

    detector: str | None = None
    checkpoint: str | None = None
    output: str | None = None
    text_column: str = "text"
    id_column: str | None = None
    token_weights: bool = False
    batch_size: int | None = None
    device: str | None = None


@dataclass
class DetectTrainSection:
    """What a detector learns from, and how.

    Args:
        checkpoint: folder or Hub id of the model: it writes the machine texts and reads all texts.
        output: folder to write; must be new.
        part: documents for the human texts: held_out, train or all. Of a text that the model was trained on, held_out
            alone is honest.
        documents: so many documents, drawn by seed; 0 is all.
        passages: at most so many passages of one document.
        document_tokens: tokens of each text, human or machine.
        prompt_tokens: tokens before it, which the machine text continues; the detector does not see them.
        generator: whose machine texts to learn from: lm (nanoEBM: system 1) or elm (system 2), several separated by
            commas, each with a temperature or a top_p of its own if wanted: lm,elm,lm@0.8,lm@1/0.9.
        also_test: further generators to be tested on, written likewise; empty: none; missing: the first one's other
            half.
        temperature: flattens (> 1) or sharpens (< 1) the distribution that machine texts are drawn from.
        top_p: draw from the smallest set of tokens with this probability only.
        top_k: draw from the k likeliest tokens only.
        num_candidates: MonArc: candidates per token of the generator elm.
        hidden_states: let the weights of the tokens depend on the model's hidden states too.
        num_heads: sets of weights; 0: all tokens weigh alike.
        hidden_size: width of the head's hidden layers.
        epochs: passes over the training texts, at most.
        method: MonArc: how log Z is found: auto, exact, sampled or certified, as in ``hf-elm evaluate``.
        num_samples: MonArc: samples per position.
        exact_top: MonArc: likeliest tokens summed exactly.
        max_rows: MonArc: candidate streams that run at once; memory against speed.
        think_steps: nanoEBM: refinement steps of system 2 where it reads texts (it draws them as configured); missing: as
            configured.
        batch_size: texts per forward pass.
        resamples: resamplings of the test documents for the intervals.
        cache: folder of machine texts and features, which an interrupted run continues from; missing: OUTPUT.cache.
        device: torch device, e.g. cpu or cuda:0; missing: cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; missing: as saved.
        seed: of the cuts, the split, the machine texts and the head.
    """

    checkpoint: str | None = None
    output: str | None = None
    part: str = "held_out"
    documents: int = 0
    passages: int = 24
    document_tokens: int = 100
    prompt_tokens: int = 64
    generator: str = "lm"
    also_test: str | None = None
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    num_candidates: int = 8
    hidden_states: bool = False
    num_heads: int = 2
    hidden_size: int = 32
    epochs: int = 100
    method: str = "sampled"
    num_samples: int = 16
    exact_top: int = 16
    max_rows: int = 64
    think_steps: int | None = None
    batch_size: int = 16
    resamples: int = 1000
    cache: str | None = None
    device: str | None = None
    dtype: str | None = None
    seed: int = 0


def detection_schema() -> Schema:
    """Keys of ``detect``."""
    return Schema(section(f"{_HERE}:DetectSection", "", "detect"))


def detection_training_schema() -> Schema:
    """Keys of ``detect train``."""
    heading = "data (missing: as in the run that wrote the model)"
    data = section("hf_elm.recipe_sections:DataSection", "data.", heading)
    own = section(f"{_HERE}:DetectTrainSection", "", "detect train")
    return Schema([*own, *(key for key in data if key.name.split(".")[1] in _DATA)], {"corpus": "data.corpus"})


def detection_help_schema() -> Schema:
    """Keys of both, for the help; those of the same name have the same meaning in both but for what is missing."""
    judge, train = detection_schema(), detection_training_schema()
    return Schema([*judge.keys.values(), *(key for name, key in train.keys.items() if name not in judge.keys)])
