"""How well machine texts of 100 tokens are told from human ones: the head beside perplexity, energy and curvature.

Human texts and machine texts continue the same prompts, cut from documents that the model was not trained on; the
prompt belongs to neither. Machine texts come from the language model (temperature 1, 0.8, and top_p 0.9) and from the
energy-based model (8 candidates). Heads are trained on one generator, or on all, and tested on each; documents are
split three times, and the whole is repeated for each split with another seed of the head.

* ``head``: weights of the tokens learnt, all features;
* ``uniform``: the same head, all tokens weigh alike;
* ``lm_features``: learnt weights, without energy and log Z;
* ``hidden_states``: the weights see the model's last hidden states too;
* the baselines of `hf_elm.detection_scores`, each in the direction that is better for it on the very test texts.

One record per setting, generator trained on and generator tested on: AUROCs of the first split with 95% intervals
(test documents resampled) and, for the head, those of all splits.

    OMP_NUM_THREADS=1 python benchmarks/detection.py runs/quickstart/elm --held-out 0.1 [--passages 24 --splits 3]
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import record
import torch

from hf_elm.checkpoint_likelihood import corpus_part
from hf_elm.detection import DetectionModel, DetectionTexts
from hf_elm.detection_data import Sampling, cut_passages, split_documents
from hf_elm.detection_features import TextFeatures
from hf_elm.detection_head import HeadConfig
from hf_elm.detection_report import HumanAndMachineTexts, measure_head
from hf_elm.detection_training import fit_head
from hf_elm.trainers.corpora import load_corpus


GENERATORS = ("lm", "elm", "lm@0.8", "lm@1/0.9")
LM_COLUMNS = ("log_prob", "log_rank", "entropy", "log_prob_std")


class Texts:
    """Features of all texts of all generators, and any split of them."""

    def __init__(self, model: DetectionModel, passages, document_tokens: int):
        self.columns, self.passages = model.extractor.columns, passages
        data = DetectionTexts(model, passages, {"all": list(range(len(passages)))}, document_tokens)
        self.by_generator = {name: data.side("all", Sampling.parse(name)) for name in GENERATORS}

    def side(self, places: list[int], generators, columns, states: bool) -> HumanAndMachineTexts:
        """The texts of those passages by those generators, in one."""
        wanted = {self.passages[i].document for i in places}
        chosen = [self.columns.index(name) for name in columns]
        parts = []
        for name in generators:
            found = self.by_generator[name]
            kept = [i for i, document in enumerate(found.documents) if document in wanted]
            features = [found.features[i] for i in kept]
            features = [TextFeatures(each.values[:, chosen], each.states if states else None) for each in features]
            parts.append(HumanAndMachineTexts(features, found.labels[kept], [found.documents[i] for i in kept]))
        return HumanAndMachineTexts.joined(parts)


def measure(texts: Texts, trained_on, tested_on, splits: int, columns=None, states=False, **fields) -> dict[str, dict]:
    """AUROCs by generator tested on, and the head's for every split."""
    columns = columns or texts.columns
    found: dict[str, dict] = {name: {"head_by_split": []} for name in tested_on}
    start = time.process_time()
    for seed in range(splits):
        sides = split_documents(texts.passages, seed=seed)
        train, validation = (texts.side(sides[name], trained_on, columns, states) for name in ("train", "validation"))
        config = HeadConfig(tuple(columns), train.features[0].states.shape[1] if states else 0, **fields)
        labels = [torch.from_numpy(side.labels) for side in (train, validation)]
        head, _ = fit_head(
            train.features, labels[0], validation.features, labels[1], config, seed=seed, progress=False
        )
        for name in tested_on:
            test = texts.side(sides["test"], [name], columns, states)
            result = measure_head(head, name, test, resamples=1000 if seed == 0 else 100, seed=seed)
            found[name]["head_by_split"].append(round(result.aurocs["head"].value, 4))
            if seed == 0:
                found[name] |= {"train_texts": len(train.labels), "test_texts": result.texts}
                found[name] |= {"test_documents": result.documents, "strongest_baseline": result.strongest_baseline()}
                found[name]["auroc"] = {key: rounded(each) for key, each in result.aurocs.items()}
    seconds = time.process_time() - start
    for each in found.values():
        each["head_mean"] = round(float(np.mean(each["head_by_split"])), 4)
        each["head_cpu_seconds"] = round(seconds / splits, 1)
    return found


def rounded(auroc) -> dict:
    """The fields that there are, with four digits."""
    fields = {name: value for name, value in auroc._asdict().items() if value is not None}
    return {
        name: [round(end, 4) for end in value] if isinstance(value, tuple) else round(value, 4)
        for name, value in fields.items()
    }


def show(tested: str, found: dict) -> None:
    for name, each in found["auroc"].items():
        ends = "[{:.3f}, {:.3f}]".format(*each["interval"])
        more = ""
        if "difference" in each:
            more = "{:+.3f} [{:+.3f}, {:+.3f}]".format(each["difference"], *each["difference_interval"])
        print(f"  {tested:10} {name:28} {each['value']:.3f} {ends:18} {more}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--corpus", default="stdlib")
    parser.add_argument("--held-out", type=float, default=0.05, help="held-out share of the run that wrote the model")
    parser.add_argument("--corpus-seed", type=int, default=0)
    parser.add_argument("--passages", type=int, default=24)
    parser.add_argument("--document-tokens", type=int, default=100)
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--cache", help="folder of texts and features; missing: a temporary one")
    parser.add_argument("--results", help="another folder for the records")
    options = parser.parse_args()
    if options.results:
        record.RESULTS = Path(options.results)
    torch.set_num_threads(1)
    corpus = load_corpus(options.corpus, held_out_fraction=options.held_out, seed=options.corpus_seed)
    documents = [row["text"] for row in corpus_part(corpus, "held_out")]
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = DetectionModel(options.checkpoint, cache=options.cache or folder, hidden_states=True)
        shape = {"document_tokens": options.document_tokens, "passages": options.passages}
        passages = cut_passages(documents, model.codec, **shape)
        texts = Texts(model, passages, options.document_tokens)
    seconds = time.process_time() - start
    lm_columns = [name for name in texts.columns if name.startswith(LM_COLUMNS)]
    settings = (
        ("head", ["lm"], GENERATORS, {}),
        ("head", ["elm"], GENERATORS, {}),
        ("head", list(GENERATORS), GENERATORS, {}),
        ("uniform", ["lm"], ["lm"], {"num_heads": 0}),
        ("lm_features", ["lm"], ["lm"], {"columns": lm_columns}),
        ("hidden_states", ["lm"], ["lm"], {"states": True}),
    )
    shape |= {"pairs": len(passages), "documents": len({each.document for each in passages}), "splits": options.splits}
    shape |= {"corpus": corpus.name, "reading_cpu_seconds": round(seconds, 1), "features": model.extractor.describe()}
    for name, trained_on, tested_on, fields in settings:
        print(f"{name}, trained on {', '.join(trained_on)}")
        for tested, found in measure(texts, trained_on, tested_on, options.splits, **fields).items():
            show(tested, found)
            line = {"setting": name, "trained_on": trained_on, "tested_on": tested, **found, **shape}
            record.record("detection", checkpoint=Path(options.checkpoint).name, **line)


if __name__ == "__main__":
    main()
