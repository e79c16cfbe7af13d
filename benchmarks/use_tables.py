"""Tables of what people do with an energy, from the newest records; `readme_tables` writes them into the pages."""

from readme_tables import every, table


def detection() -> str:
    """AUROC of the head and of single numbers, trained on texts of the LM."""
    found = {r["tested_on"]: r for r in every("detection", setting="head", trained_on=["lm"])}
    names = ["head", "mean perplexity", "curvature", "mean energy", "mean log p_ELM/p_LM"]
    heads = {
        "lm": "the LM (learnt from)",
        "elm": "the ELM",
        "lm@0.8": "the LM, temperature 0.8",
        "lm@1/0.9": "the LM, top-p 0.9",
    }

    def cell(name, tested):
        found_one = found[tested]["auroc"][name]
        low, high = found_one["interval"]
        return f"{found_one['value']:.3f} ({low:.3f} to {high:.3f})"

    rows = [(f"**{name}**" if name == "head" else name, *(cell(name, tested) for tested in heads)) for name in names]
    rows += [
        (f"head − {name}", *(_difference(found[tested]["auroc"][name]) for tested in heads)) for name in names[1:]
    ]
    return table(("texts of", *heads.values()), *rows)


def _difference(found):
    low, high = found["difference_interval"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"


def sample_choice() -> str:
    """Accuracy of the rules by where the samples come from."""
    found = {(r["samples_from"], r["rule"]): r for r in every("sample_choice", metric="accuracy")}
    sources = list(dict.fromkeys(source for source, _ in found))
    rules = list(dict.fromkeys(rule for _, rule in found))

    def cell(source, rule):
        r = found.get((source, rule))
        return f"{r['value']:.3f} ± {r['standard_error']:.3f}" if r else ""

    return table(("rule", *(f"samples of the {source}" for source in sources)), *((rule, *(cell(s, rule) for s in sources)) for rule in rules))  # fmt: skip


def selection() -> str:
    """Held-out NLL of LMs trained on what was chosen."""
    found = {r["choice"]: r for r in every("selection")}
    seeds = next(iter(found.values()))["seeds"]
    rows = [
        (name, *(f"{value:.4f}" for value in r["values"]), f"{r['mean']:.4f}", f"{r['mean_elm_bits_per_byte']:.2f}")
        for name, r in found.items()
    ]
    return table(("nats/byte", *(f"seed {seed}" for seed in seeds), "mean", "bits/byte of what was chosen"), *rows)


def automata() -> str:
    """Distance from the true automata of every predictor, by seed of training."""
    found = every("in_context_languages")
    names, seeds = dict.fromkeys(r["impl"] for r in found), sorted({r["seed"] for r in found})
    rows = []
    for name in names:
        own = {r["seed"]: r for r in found if r["impl"] == name}
        cells = [" / ".join(f"{100 * own[seed]['legal']:.1f}" for seed in seeds)]
        cells += [" / ".join(f"{own[seed]['tv']:.3f}" for seed in seeds)]
        cells += [" / ".join(f"{own[seed]['kl']:.3f}" for seed in seeds)]
        paired = [own[seed] for seed in seeds if own[seed].get("kl_minus_lm") is not None]
        cells += [" / ".join(f"{r['kl_minus_lm']:+.3f} ± {r['kl_minus_lm_se']:.3f}" for r in paired)]
        cells += [
            " / ".join(f"{own[seed]['train_cpu_seconds']:.0f}" for seed in seeds if "train_cpu_seconds" in own[seed])
        ]
        rows.append((name, *cells))
    return table(
        ("seed " + " / ".join(map(str, seeds)), "legal, %", "TV", "KL, nats", "KL minus the LM's", "CPU-s"), *rows
    )


def passkey() -> str:
    """Accuracy of finding the passkey document by length."""
    found = every("long_context", task="passkey")
    models, lengths = dict.fromkeys(r["impl"] for r in found), sorted({r["tokens"] for r in found})
    seeds = sorted({r["seed"] for r in found})

    def cell(name, tokens):
        own = {r["seed"]: r for r in found if (r["impl"], r["tokens"]) == (name, tokens)}
        return " / ".join(
            f"{100 * own[seed]['value']:.0f} ± {100 * own[seed]['se']:.0f}" for seed in seeds if seed in own
        )

    return table(
        ("tokens", *models), *((f"{tokens:,}", *(cell(name, tokens) for name in models)) for tokens in lengths)
    )


def rope_scaling() -> str:
    """NLL of an LM at four times the length of its rows, by the factor of linear scaling."""
    found = {(r["impl"], r["tuned_steps"]): r for r in every("rope_scaling")}
    tunings, places = sorted({tuned for _, tuned in found}), list(next(iter(found.values()))["by_place"])
    head = [
        f"{'at once' if not tuned else f'after {tuned} steps'}, {place}"
        for tuned in tunings
        for place in ("all", *places)
    ]

    def cells(impl):
        for tuned in tunings:
            r = found[impl, tuned]
            yield f"{r['value']:.3f} ± {r['se']:.3f}"
            yield from (f"{r['by_place'][place][0]:.3f}" for place in places)

    return table(
        ("nats/byte, by place in the row", *head),
        *((impl, *cells(impl)) for impl in dict.fromkeys(impl for impl, _ in found)),
    )


def rerank() -> str:
    """Accuracy of the first places by order."""
    found = {r["order"]: r for r in every("rerank")}

    def difference(r):
        return (
            ""
            if r["minus_first_pass"] is None
            else f"{r['minus_first_pass']:+.3f} ± {r['minus_first_pass_standard_error']:.3f}"
        )

    rows = [(name, f"{r['value']:.3f} ± {r['standard_error']:.3f}", difference(r)) for name, r in found.items()]
    return table(
        (f"order of {next(iter(found.values()))['n']} lists", "accuracy", "difference from the first pass"), *rows
    )


TABLES = (rerank, detection, sample_choice, selection, automata, passkey, rope_scaling)
