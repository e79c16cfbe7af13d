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


TABLES = (detection, sample_choice, selection)
