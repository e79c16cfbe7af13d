"""The keys of ``hf-elm score`` and ``hf-elm select``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass

from .recipe_keys import Schema, section


@dataclass
class ScoreSection:
    """Which documents are scored, how, and what is written.

    Args:
        output: file to write, .parquet or .jsonl; must be new. What was found in all is written beside it, to <output>.json.
        tokens: write lists with an entry per token as well: ids, texts, log-likelihoods, energies.
        include_text: write the texts beside their scores; hf-elm select needs them, there or in the source.
        text_column: column of a table or a Hub dataset that holds the text.
        id_column: column of a table that holds the ids; missing: the numbers of the rows.
        keep: further columns of tables to write beside the scores, e.g. [domain].
        part: of data.corpus: all, or train or held_out as the run that wrote the checkpoint split it.
        documents: so many documents, drawn by ``seed``; 0 is all.
        document_bytes: score the first so many bytes of each; 0 is all.
        window: tokens that the model sees at once; missing: the rows that it was trained on, else all of its positions.
        think_steps: nanoEBM: refinement steps of s2; missing: as configured.
        method: MonArc: how log Z is found: auto, exact, sampled or certified, as in ``hf-elm evaluate``; none: the LM and the energies
            alone, which is much faster.
        num_samples: MonArc: samples per position.
        exact_top: MonArc: likeliest tokens summed exactly; missing: 64.
        max_rows: MonArc: candidate streams that run at once; memory against speed.
        batch_size: windows per forward pass.
        progress: show a progress bar.
    """

    output: str | None = None
    tokens: bool = False
    include_text: bool = True
    text_column: str = "text"
    id_column: str | None = None
    keep: list[str] | None = None
    part: str = "all"
    documents: int = 0
    document_bytes: int = 0
    window: int | None = None
    think_steps: int | None = None
    method: str = "auto"
    num_samples: int = 64
    exact_top: int | None = None
    max_rows: int = 64
    batch_size: int = 8
    progress: bool = True


@dataclass
class SelectSection:
    """Which rows of a scored table are taken.

    Args:
        output: file to write, .jsonl or .parquet; must be new. The settings and what was taken are written beside it, to <output>.json.
        count: take so many documents.
        fraction: take this share of the documents, above 0 and below 1.
        max_tokens: take documents, in the order of the draw, until the next one would exceed so many tokens.
        max_bytes: likewise with bytes.
        column: the score; any column of numbers. Rows where it is missing are never taken.
        prefer: low or high values of the column; missing: low for bits_per_byte, nats_per_token and energies, high for others.
        temperature: 0 takes the best, 1 draws by softmax(standardised score), .inf draws uniformly.
        standardize: divide the score by its standard deviation over all rows, so that a temperature means the same for any column.
        strata: column whose values are drawn from in proportion to their share of the whole; missing: none.
        seed: of the draw; the same seed and settings take the same rows.
        texts: files or a folder that hf-elm score has read, where the scores were written without texts; joined by id.
        text_column: column of those files that holds the text.
        id_column: column of those files that holds the ids; missing: as hf-elm score makes them.
    """

    output: str | None = None
    count: int | None = None
    fraction: float | None = None
    max_tokens: int | None = None
    max_bytes: int | None = None
    column: str = "elm_bits_per_byte"
    prefer: str | None = None
    temperature: float = 1.0
    standardize: bool = True
    strata: str | None = None
    seed: int = 0
    texts: str | list[str] | None = None
    text_column: str = "text"
    id_column: str | None = None


def score_schema() -> Schema:
    """Keys of ``score``."""
    heading = "data (in the place of files)"
    names = {"corpus", "config_name", "split", "streaming", "held_out_fraction", "max_bytes"}
    data = section("hf_elm.recipe_sections:DataSection", "data.", heading)
    data = [key for key in data if key.name.split(".")[1] in names]
    for i, key in enumerate(data):
        if key.name == "data.corpus":
            data[i] = type(key)(key.name, "str | None", "None", key.help, heading)
    keys = [
        *section("hf_elm.recipe_sections:CheckpointSection", "", "model"),
        *section("hf_elm.score_sections:ScoreSection", "", "documents and scores"),
        *data,
    ]
    return Schema(keys, {"corpus": "data.corpus", "data.text_column": "text_column"})


def select_schema() -> Schema:
    """Keys of ``select``."""
    return Schema(section("hf_elm.score_sections:SelectSection", "", "selection"), {"tau": "temperature"})
