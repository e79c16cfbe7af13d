"""Perplexity of texts under an energy-based language model, as a module of the `evaluate` library.

A thin layer over `hf_elm.evaluation.evaluate_elm` and `hf_elm.refinement_evaluation.evaluate_refinement`; see ``_DESCRIPTION``.
"""

import math

import datasets
import evaluate


_DESCRIPTION = """
Perplexity exp(NLL), NLL in nats/token, of texts under a MonArc or nanoEBM model. Each text is a row of its own; its first token has
nothing before it and is not counted; longer texts than the model has positions are cut there.
MonArc: log p_ELM = log p_LM - E - log Z, with log Z exact for small vocabularies and otherwise bounded from both sides, so that the
perplexity is an interval. The perplexity of the language model inside stands beside it. nanoEBM: before and after thinking.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of str): the texts.
    model_id (str): folder or Hub id of a MonArc or nanoEBM model.
    batch_size (int): rows per forward pass.
    device (str): torch device; None = cuda where there is one, else cpu.
    options: arguments of `hf_elm.evaluation.evaluate_elm` (method, num_samples, exact_top, seed, ...); for nanoEBM of
        `hf_elm.refinement_evaluation.evaluate_refinement`.
Returns:
    perplexity: of the energy-based model (nanoEBM: after thinking); None where only an interval is known.
    perplexity_lower, perplexity_upper: ends of the interval.
    lm_perplexity: of the language model inside (nanoEBM: before thinking).
    likelihood: the whole record, nats/token with standard errors.
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class ElmPerplexity(evaluate.Metric):
    """exp(NLL) of an energy-based language model."""

    def _info(self):
        return evaluate.MetricInfo(
            module_type="metric",
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions, model_id, batch_size=8, device=None, **options):
        try:
            from hf_elm.evaluation import evaluate_elm
            from hf_elm.refinement_evaluation import evaluate_refinement
            from hf_elm.saved_models import load_checkpoint
        except ImportError as error:
            raise ImportError(
                f'elm_perplexity needs {error.name}; install it with pip install "hf_elm[eval]".'
            ) from error
        model, tokenizer = load_checkpoint(model_id, device)
        rows = _rows(predictions, tokenizer, model)
        if not hasattr(model, "score_candidates"):
            found = evaluate_refinement(model, rows, batch_size=batch_size, tokenizer=tokenizer, **options).to_dict()
            values = {"perplexity": found["s2_nll"], "lm_perplexity": found["s1_nll"]}
            values |= dict.fromkeys(("perplexity_lower", "perplexity_upper"), found["s2_nll"])
        else:
            options = {"progress": False} | options
            found = evaluate_elm(model, rows, batch_size=batch_size, tokenizer=tokenizer, **options).to_dict()
            values = {"perplexity": found["elm_nll"], "lm_perplexity": found["lm_nll"]}
            values |= {f"perplexity_{end}": found[f"elm_nll_{end}"] for end in ("lower", "upper")}
        return {name: nll if nll is None else math.exp(nll) for name, nll in values.items()} | {"likelihood": found}


def _rows(texts, tokenizer, model):
    """One row per text, cut at the model's positions."""
    from hf_elm.token_log_probs import max_positions

    limit = model.max_positions() if hasattr(model, "max_positions") else max_positions(model)
    rows = []
    for number, text in enumerate(texts):
        ids = tokenizer(text, verbose=False)["input_ids"][:limit]
        if len(ids) < 2:
            raise ValueError(
                f"text {number} has {len(ids)} tokens; a likelihood needs at least 2, as the first is not counted."
            )
        rows.append({"input_ids": ids})
    return rows
