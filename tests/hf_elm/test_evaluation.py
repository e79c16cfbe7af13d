"""Likelihoods of a real MonArc model on tiny vocabularies, where Z is a short sum and every claim can be recomputed."""

import math
import statistics

import pytest
import torch

from hf_elm import MonArcConfig, MonArcForCausalLM
from hf_elm.evaluation import evaluate_elm
from tests.hf_elm.tiny_evaluation import VOCAB, LetterTokenizer, documents, make_model, make_rows


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def exact(model, rows):
    return evaluate_elm(model, rows, progress=False)


def brute_force(model, rows):
    """Per document, (LM NLL, ELM NLL) of each token: every candidate sequence run from scratch through LM and head."""
    states = []
    hook = model.lm.model.norm.register_forward_pre_hook(lambda module, inputs: states.append(inputs[0]))
    results = []
    with torch.no_grad():
        for ids in documents(rows):
            values = []
            for t in range(1, len(ids)):
                sequences = torch.tensor([[*ids[:t], y] for y in range(VOCAB)])
                states.clear()
                log_probs = torch.log_softmax(model.lm(input_ids=sequences).logits[0, t - 1], -1)
                state = states[-1]
                energies = model.energy_head(state[:, t - 1], state[:, t], log_probs)
                log_z = torch.log(sum(log_probs.exp() * torch.exp(-energies)))
                values.append((-log_probs[ids[t]], -log_probs[ids[t]] + energies[ids[t]] + log_z))
            results.append(torch.tensor(values))
    hook.remove()
    return results


def test_exact_nll_equals_brute_force(model, rows, exact):
    oracle = brute_force(model, rows)
    tokens = torch.cat(oracle)
    assert exact.method == "exact"
    assert (exact.num_tokens, exact.num_documents, exact.num_rows) == (len(tokens), 8, 4)
    assert exact.lm_nll == pytest.approx(tokens[:, 0].mean().item(), abs=1e-10)
    assert exact.elm_nll == pytest.approx(tokens[:, 1].mean().item(), abs=1e-10)
    assert exact.elm_nll_lower == exact.elm_nll_upper == exact.elm_nll
    assert exact.gain == pytest.approx(exact.lm_nll - exact.elm_nll, abs=1e-12)
    assert exact.elm_nll == pytest.approx(exact.lm_nll + exact.mean_energy + exact.mean_log_z, abs=1e-12)
    assert exact.diagnostics["elm_nll_bound"] == pytest.approx(
        exact.lm_nll + exact.mean_energy + exact.mean_z - 1, abs=1e-12
    )
    assert exact.diagnostics["elm_nll_bound"] > exact.elm_nll
    assert exact.diagnostics["claimed_nll"] == pytest.approx(exact.elm_nll - exact.mean_log_z, abs=1e-12)
    assert abs(exact.gain) > 0.01  # the energy is not zero: the test would notice a missing term


def test_standard_errors_by_document_equal_a_hand_computation(model, rows, exact):
    oracle = brute_force(model, rows)
    tokens, count = sum(len(document) for document in oracle), len(oracle)
    for column, estimate, error in ((0, exact.lm_nll, exact.lm_nll_se), (1, exact.elm_nll, exact.elm_nll_se)):
        residuals = [float(d[:, column].sum()) - estimate * len(d) for d in oracle]
        by_hand = math.sqrt(count / (count - 1) * sum(r * r for r in residuals)) / tokens
        assert error == pytest.approx(by_hand, rel=1e-9)
    paired = [float((d[:, 0] - d[:, 1]).sum()) - exact.gain * len(d) for d in oracle]
    assert exact.gain_se == pytest.approx(
        math.sqrt(count / (count - 1) * sum(r * r for r in paired)) / tokens, rel=1e-9
    )


@pytest.mark.parametrize("fields", [{"energy_adapter_rank": 2}, {"energy_head": "linear"}, {"energy_bound": 1.5}])
def test_exact_z_makes_the_elm_a_distribution_whatever_the_energy(fields):
    """sum over y of p_ELM(y) = 1 at one position, with p_ELM read off as exp(-NLL) of rows that end in y."""
    model = make_model(**fields)
    head = make_rows(1)[0]["input_ids"][:5]
    nlls = [
        evaluate_elm(
            model, [{"input_ids": [*head, y], "labels": [-100] * 5 + [y]}], equal_compute_lm=model.lm, progress=False
        )
        for y in range(VOCAB)
    ]
    assert sum(math.exp(-result.elm_nll) for result in nlls) == pytest.approx(1.0, abs=1e-9)
    assert sum(math.exp(-result.lm_nll) for result in nlls) == pytest.approx(1.0, abs=1e-9)
    assert sum(math.exp(-result.equal_compute_lm_nll) for result in nlls) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("exact_top", [0, 3])
@pytest.mark.parametrize("energy_scale", [0.3, 0.5])
def test_the_interval_holds_on_average_at_every_k(rows, energy_scale, exact_top):
    """Means over 8 seeds x 4 copies of every row, allowed 4 standard errors; exp(-E) is heavy-tailed at the larger scale."""
    model = make_model(energy_scale=energy_scale)
    exact = evaluate_elm(model, rows, progress=False)
    options = {"method": "sampled", "exact_top": exact_top, "batch_size": 16, "max_rows": 512, "progress": False}
    widths = []
    for num_samples in (2, 4, 8, 64):
        results = [evaluate_elm(model, rows * 4, num_samples=num_samples, seed=seed, **options) for seed in range(8)]
        values = {name: [getattr(r, name) for r in results] for name in ("elm_nll_lower", "elm_nll_upper", "mean_z")}
        mean = {name: statistics.mean(each) for name, each in values.items()}
        slack = {name: 4 * statistics.stdev(each) / math.sqrt(len(each)) for name, each in values.items()}
        assert mean["elm_nll_lower"] - slack["elm_nll_lower"] <= exact.elm_nll
        assert mean["elm_nll_upper"] + slack["elm_nll_upper"] >= exact.elm_nll
        widths.append(mean["elm_nll_upper"] - mean["elm_nll_lower"])
        if energy_scale < 0.5:  # else rare samples carry the mean, and the spread of 8 values says little about it
            assert mean["mean_z"] == pytest.approx(exact.mean_z, abs=slack["mean_z"])
    if energy_scale < 0.5:  # with a heavy tail the upper bound may first widen
        assert widths == sorted(widths, reverse=True)
    assert widths[-1] < 0.3 * widths[0]


def test_interval_fields_mirror_each_other(model, rows):
    result = evaluate_elm(
        model, rows, method="sampled", num_samples=4, exact_top=2, equal_compute_lm=make_model(lm_scale=1.0).lm, progress=False
    )  # fmt: skip
    assert result.elm_nll is result.gain is result.mean_log_z is None
    assert result.gain_lower == pytest.approx(result.lm_nll - result.elm_nll_upper, abs=1e-12)
    assert result.gain_upper == pytest.approx(result.lm_nll - result.elm_nll_lower, abs=1e-12)
    gain_lower, gain_upper = (
        result.equal_compute_lm_nll - nll for nll in (result.elm_nll_upper, result.elm_nll_lower)
    )
    assert result.gain_over_equal_compute_lower == pytest.approx(gain_lower, abs=1e-12)
    assert result.gain_over_equal_compute_upper == pytest.approx(gain_upper, abs=1e-12)
    assert result.elm_nll_lower < result.elm_nll_upper
    assert 0 < result.ess_fraction <= 1
    assert "elm_nll_jackknife_approximate" in result.diagnostics
    assert not any("jackknife" in name or "claimed" in name for name in vars(result))


@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_zero_energy_is_the_lm_and_the_interval_collapses(rows, method):
    result = evaluate_elm(
        make_model(energy_scale=0.0), rows, method=method, num_samples=3, exact_top=2, progress=False
    )
    for name in ("elm_nll_lower", "elm_nll_upper"):
        assert getattr(result, name) == pytest.approx(result.lm_nll, abs=1e-9)
    assert result.mean_z == pytest.approx(1.0, abs=1e-9)
    assert result.ess_fraction == pytest.approx(1.0, abs=1e-9)
    assert result.gain_lower == pytest.approx(0.0, abs=1e-9)


def test_a_freshly_wrapped_lm_has_no_gain(rows):
    fresh = MonArcForCausalLM.from_causal_lm(make_model().lm)
    result = evaluate_elm(fresh, rows, progress=False)
    assert result.gain == pytest.approx(0.0, abs=1e-9)
    assert result.mean_energy == 0.0


@pytest.mark.parametrize("exact_top", [1, 4, VOCAB - 1])
def test_the_certified_interval_holds_without_sampling(rows, exact_top):
    bounded = make_model(energy_bound=1.0, energy_scale=2.0)
    truth = evaluate_elm(bounded, rows, progress=False)
    result = evaluate_elm(bounded, rows, method="certified", exact_top=exact_top, progress=False)
    assert result.elm_nll_lower <= truth.elm_nll <= result.elm_nll_upper
    assert result.num_samples == 0
    assert result.mean_z is result.ess_fraction is None
    sampled = evaluate_elm(bounded, rows, method="sampled", exact_top=exact_top, num_samples=2, progress=False)
    assert sampled.certified_elm_nll_lower == pytest.approx(result.elm_nll_lower, abs=1e-12)
    assert sampled.certified_elm_nll_upper == pytest.approx(result.elm_nll_upper, abs=1e-12)
    assert sampled.certified_elm_nll_lower <= sampled.elm_nll_lower <= sampled.certified_elm_nll_upper


def test_results_do_not_depend_on_batch_size_or_chunks(model):
    ragged = [dict(row) for row in make_rows(5)]
    for i, row in enumerate(ragged):
        for name in row:
            row[name] = row[name][: 9 - i]
    for method in ("exact", "sampled"):
        options = {"method": method, "num_samples": 5, "exact_top": 3, "equal_compute_lm": model.lm, "progress": False}
        reference = evaluate_elm(model, ragged, batch_size=1, max_rows=1, **options).to_dict()
        for batch_size, max_rows in ((2, 64), (5, 3)):
            other = evaluate_elm(model, ragged, batch_size=batch_size, max_rows=max_rows, **options).to_dict()
            assert other.pop("diagnostics") == pytest.approx(reference["diagnostics"], abs=1e-9)
            assert other == {
                name: pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
                for name, value in reference.items()
                if name != "diagnostics"
            }


def test_chunks_of_the_vocabulary_sum_to_the_whole(model, rows, exact, monkeypatch):
    monkeypatch.setattr("hf_elm.evaluation.SCORES_HELD", 5 * 4 * 9)  # 5 candidates at a time, the last chunk ragged
    chunked = evaluate_elm(model, rows, progress=False)
    assert chunked.elm_nll == pytest.approx(exact.elm_nll, abs=1e-10)
    assert chunked.ess_fraction == pytest.approx(exact.ess_fraction, abs=1e-10)


def test_seeds_differ_and_repeat(model, rows):
    options = {"method": "sampled", "num_samples": 2, "exact_top": 0, "progress": False}
    first, again, other = (evaluate_elm(model, rows, seed=seed, **options).elm_nll_lower for seed in (0, 0, 1))
    assert first == again != other
    alone, twice = (evaluate_elm(model, rows[:1] * n, **options).elm_nll_lower for n in (1, 2))
    assert abs(alone - twice) > 1e-6  # equal rows get draws of their own


def test_packed_and_unpacked_documents_agree(model, rows, exact):
    unpacked = [{"input_ids": ids} for ids in documents(rows)]
    result = evaluate_elm(model, unpacked, progress=False)
    assert result.num_documents == exact.num_documents
    for name in ("lm_nll", "elm_nll", "elm_nll_se", "gain", "ess_fraction"):
        assert getattr(result, name) == pytest.approx(getattr(exact, name), abs=1e-9)


def test_document_ids_join_documents_across_rows(model, rows, exact):
    joined = [{**row, "document_ids": [7] * len(row["input_ids"])} for row in rows[:2]]
    joined += [{**row, "document_ids": [8 + s for s in row["segment_ids"]]} for row in rows[2:]]
    result = evaluate_elm(model, joined, batch_size=1, progress=False)
    assert result.num_documents == 3
    assert result.elm_nll == pytest.approx(exact.elm_nll, abs=1e-10)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("wrapped", [False, True])
def test_equal_compute_row_is_the_other_lm_on_the_same_tokens(model, rows, exact, wrapped, batch_size):
    other = make_model(lm_scale=1.0)
    alone = evaluate_elm(other, rows, progress=False)
    result = evaluate_elm(
        model, rows, equal_compute_lm=other if wrapped else other.lm, batch_size=batch_size, progress=False
    )
    assert result.equal_compute_lm_nll == pytest.approx(alone.lm_nll, abs=1e-9)
    assert result.equal_compute_lm_nll_se == pytest.approx(alone.lm_nll_se, abs=1e-9)
    assert result.gain_over_equal_compute == pytest.approx(alone.lm_nll - exact.elm_nll, abs=1e-9)
    assert result.gain_over_equal_compute_se > 0


def test_a_plain_lm_with_learnt_positions_sees_documents_where_they_were(rows):
    text_config = {
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 16,
    }
    text_config |= {"bos_token_id": None, "eos_token_id": None, "initializer_range": 0.5}
    packed = MonArcForCausalLM(MonArcConfig(text_config=text_config)).double()
    result = evaluate_elm(packed, rows, equal_compute_lm=packed.lm, progress=False)
    assert result.equal_compute_lm_nll == pytest.approx(result.lm_nll, abs=1e-9)


def test_its_own_lm_as_equal_compute_gives_the_gain_itself(rows):
    counting = make_model(mask_segment_starts=False)
    free = [{name: row[name] for name in ("input_ids", "segment_ids")} for row in rows]
    result = evaluate_elm(counting, free, equal_compute_lm=counting.lm, progress=False)
    assert result.num_tokens == 4 * 7  # document starts are counted, the first token of a row is not
    assert result.equal_compute_lm_nll == pytest.approx(result.lm_nll, abs=1e-9)
    assert result.gain_over_equal_compute_se == pytest.approx(result.gain_se, abs=1e-9)


def test_left_padding_counts_the_same_tokens(model, rows):
    plain = [{"input_ids": ids} for ids in documents(rows)]
    left = [
        {"input_ids": [0, 0, *row["input_ids"]], "attention_mask": [0, 0] + [1] * len(row["input_ids"])}
        for row in plain
    ]
    expected = evaluate_elm(model, plain, equal_compute_lm=model.lm, progress=False)
    result = evaluate_elm(model, left, equal_compute_lm=model.lm, progress=False)
    assert result.num_tokens == expected.num_tokens
    for name in ("lm_nll", "elm_nll", "equal_compute_lm_nll"):
        assert getattr(result, name) == pytest.approx(getattr(expected, name), abs=1e-9)


def test_max_tokens_stops_exactly(model, rows):
    seen = []
    result = evaluate_elm(
        model,
        (seen.append(1) or row for row in rows),
        max_tokens=8,
        batch_size=1,
        bytes_per_token=[2] * VOCAB,
        progress=False,
    )
    assert result.num_tokens == 8
    assert result.num_bytes == 16
    assert len(seen) == 2
    cut = [dict(row) for row in rows[:2]]
    counted = [t for t, label in enumerate(cut[1]["labels"]) if label != -100]
    kept = counted[: 8 - sum(label != -100 for label in cut[0]["labels"])]
    cut[1]["labels"] = [label if t in kept else -100 for t, label in enumerate(cut[1]["labels"])]
    assert result.elm_nll == pytest.approx(evaluate_elm(model, cut, progress=False).elm_nll, abs=1e-10)


def test_max_tokens_takes_rows_from_all_over_the_data(model, rows):
    many = [{**rows[0], "document_ids": [number] * len(rows[0]["input_ids"])} for number in range(60)]
    options = {"max_tokens": 40, "progress": False}
    result = evaluate_elm(model, many, seed=1, **options)
    assert result.num_tokens == 40
    numbered = [[(number + place) % VOCAB for place in range(5)] for number in range(60)]
    first, again, other = (
        evaluate_elm(model, [{"input_ids": ids} for ids in numbered], seed=seed, **options) for seed in (1, 1, 2)
    )
    at_start = evaluate_elm(model, [{"input_ids": ids} for ids in numbered[:10]], progress=False)
    assert first.lm_nll == again.lm_nll
    assert len({first.lm_nll, other.lm_nll, at_start.lm_nll}) == 3


@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("can_skip", [False, True])
def test_position_fraction_counts_a_fixed_subset_of_columns(model, rows, method, can_skip, monkeypatch):
    options = {"method": method, "num_samples": 3, "exact_top": 2, "seed": 3, "progress": False}
    chosen = torch.rand(1 << 20, generator=torch.Generator().manual_seed(3))[:9] < 0.5
    labelled = [
        {**row, "labels": [label if chosen[t] else -100 for t, label in enumerate(row["labels"])]} for row in rows
    ]
    expected = evaluate_elm(model, labelled, **options)
    plain = model.score_candidates

    def score_some(*args, positions=None, **inputs):
        assert positions.tolist() == chosen.nonzero().flatten().tolist()
        scores = plain(*args, **inputs)
        scores.energies[..., ~chosen] = 0.0
        return scores

    if can_skip:  # a model that scores some positions only is told which
        monkeypatch.setattr(model, "score_candidates", score_some)
    part = evaluate_elm(model, rows, position_fraction=0.5, **options)
    assert 0 < part.num_tokens == expected.num_tokens < 24
    assert part.elm_nll_upper == pytest.approx(expected.elm_nll_upper, abs=1e-10)


def test_bits_per_byte_divide_by_the_bytes_of_the_counted_tokens(model, rows, exact):
    lengths = [0 if i == 3 else len(text.encode()) for i, text in enumerate(LetterTokenizer.texts)]
    counted = [t for row in rows for t in row["labels"] if t != -100]
    num_bytes = sum(lengths[t] for t in counted)
    for source in ({"tokenizer": LetterTokenizer()}, {"bytes_per_token": lengths}):
        result = evaluate_elm(model, rows, progress=False, **source)
        assert result.num_bytes == num_bytes
        assert result.elm_bits_per_byte == pytest.approx(exact.elm_nll * len(counted) / num_bytes / math.log(2))
        assert result.lm_bits_per_byte == pytest.approx(exact.lm_nll * len(counted) / num_bytes / math.log(2))
        assert result.elm_bits_per_byte_se > 0
    assert exact.lm_bits_per_byte is None


def test_unknown_tokens_are_left_out_and_numbered(model, rows):
    class Tokenizer(LetterTokenizer):
        unk_token_id, eos_token_id = 5, 3

    result = evaluate_elm(model, rows, method="exact", tokenizer=Tokenizer(), progress=False)
    places = [(row["input_ids"], row["labels"]) for row in rows]
    unknown = sum(label == 5 for _, labels in places for label in labels)
    assert result.num_unknown_tokens == unknown > 0
    assert "unknown to the tokenizer" in str(result)
    without = [{**row, "labels": [-100 if label == 5 else label for label in row["labels"]]} for row in rows]
    expected = evaluate_elm(model, without, method="exact", tokenizer=LetterTokenizer(), progress=False)
    assert (result.lm_nll, result.elm_nll, result.num_tokens, result.num_bytes) == (
        expected.lm_nll, expected.elm_nll, expected.num_tokens, expected.num_bytes
    )  # fmt: skip
    assert expected.num_unknown_tokens == 0


def test_byte_level_tokens_that_split_a_character_still_count_every_byte(model):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<eos>": 0} | {symbol: i + 1 for i, symbol in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    ids = [*tokenizer("naïve 日本")["input_ids"], 0]
    result = evaluate_elm(
        make_model(vocab_size=257), [{"input_ids": ids}], method="sampled", exact_top=2, num_samples=2,
        tokenizer=tokenizer, progress=False,
    )  # fmt: skip
    assert result.num_bytes == len("aïve 日本".encode())  # the first token is not counted, <eos> is no text


@pytest.mark.parametrize("strategy", ["wrapped", "greedy"])
def test_rows_of_the_packer_give_true_documents_and_their_bytes(strategy):
    import datasets

    from hf_elm.trainers.packing import pack_rows
    from hf_elm.trainers.tokenization import build_tokenizer

    texts = ["def f(x):\n    return x\n", "é", "a longer text, cut into several rows: " * 2, "ab"]
    rows = pack_rows(
        datasets.Dataset.from_dict({"text": texts}), tokenizer := build_tokenizer("byte"), 24, strategy=strategy
    )
    counting = {"method": "sampled", "exact_top": 2, "num_samples": 2, "progress": False, "batch_size": 3}
    result = evaluate_elm(make_model(vocab_size=258), rows, tokenizer=tokenizer, **counting)
    starts = sum(len(set(row["segment_ids"]) - {-1}) for row in rows)  # each is one byte that nothing predicts
    assert result.num_documents == len(texts)
    assert result.num_tokens == sum(len(text.encode()) + 1 for text in texts) - starts
    assert result.num_bytes == sum(len(text.encode()) for text in texts) - starts


def test_model_modes_are_put_back(rows):
    training = make_model(freeze_lm=True).train()
    evaluate_elm(training, rows, progress=False)
    assert training.training
    assert not training.lm.training


def test_a_datasets_dataset_and_a_generator_are_as_good_as_a_list(model, rows, exact):
    import datasets

    table = datasets.Dataset.from_list(rows)
    for data in (table, table.with_format("torch"), iter(rows)):
        assert evaluate_elm(model, data, progress=False).to_dict() == exact.to_dict()


def test_auto_is_exact_up_to_the_limit_and_sampled_above(model, rows):
    assert evaluate_elm(model, rows[:1], progress=False).method == "exact"
    sampled = evaluate_elm(model, rows[:1], exact_vocab_limit=8, exact_top=4, num_samples=2, progress=False)
    assert (sampled.method, sampled.exact_top, sampled.num_samples) == ("sampled", 4, 2)
    whole = evaluate_elm(model, rows[:1], method="sampled", exact_top=64, progress=False)
    assert whole.method == "exact"  # the head is the whole vocabulary
