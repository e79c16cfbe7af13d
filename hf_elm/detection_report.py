"""What the machine-text detector reached on test documents, beside the scores that need no training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .detection_features import TextFeatures
from .detection_head import AttentionWeightedHead
from .detection_scores import Auroc, aurocs_by_document, baseline_scores, labels_of, oriented
from .detection_training import text_logits


if TYPE_CHECKING:
    from rich.table import Table


HEAD = "head"


@dataclass
class HumanAndMachineTexts:
    """Features of human texts and, after them, of machine texts, as many of each.

    Attributes:
        features: of all texts.
        labels: 0 = human, 1 = machine.
        documents: the source document of each.
    """

    features: list[TextFeatures]
    labels: np.ndarray
    documents: list[str]

    @classmethod
    def of(
        cls, human: list[TextFeatures], machine: list[TextFeatures | None], documents: list[str]
    ) -> HumanAndMachineTexts:
        """Pairs of the same prompts; one whose machine text could not be drawn is left out whole."""
        kept = [i for i, features in enumerate(machine) if features is not None]
        names = [documents[i] for i in kept]
        features = [human[i] for i in kept] + [machine[i] for i in kept]
        return cls(features, labels_of(len(kept), len(kept)).numpy(), names + names)

    @classmethod
    def joined(cls, parts: list[HumanAndMachineTexts]) -> HumanAndMachineTexts:
        """The texts of several generators; a human text counts once for each, so that both kinds weigh alike."""
        features = [text for part in parts for text in part.features]
        documents = [name for part in parts for name in part.documents]
        return cls(features, np.concatenate([part.labels for part in parts]), documents)


@dataclass
class GeneratorTest:
    """AUROCs against one generator's texts.

    Attributes:
        generator: whose machine texts, see `Sampling.name`.
        texts, documents: how many test texts (half of them human), from how many source documents.
        aurocs: name of the score -> its AUROC; the head first.
    """

    generator: str
    texts: int
    documents: int
    aurocs: dict[str, Auroc]

    def strongest_baseline(self) -> str | None:
        """The name of the best score that is not the head."""
        others = {name: found.value for name, found in self.aurocs.items() if name != HEAD}
        return max(others, key=lambda name: others[name]) if others else None


@dataclass
class DetectionReport:
    """What a head learnt from and what it reached.

    Attributes:
        trained_on: the generators that it learnt from.
        document_tokens: tokens of each text.
        train_texts, validation_texts: how many texts of both kinds, a human text once for each generator.
        tests: one per generator tried.
        best_epoch: whose weights were kept, from 0.
    """

    trained_on: list[str]
    document_tokens: int
    train_texts: int
    validation_texts: int
    tests: list[GeneratorTest] = field(default_factory=list)
    best_epoch: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        found = asdict(self)
        for test, own in zip(found["tests"], self.tests, strict=True):
            test["aurocs"] = {name: each._asdict() for name, each in own.aurocs.items()}
            test["strongest_baseline"] = own.strongest_baseline()
        return found

    def table(self, test: GeneratorTest) -> Table:
        """One test as a `rich.table.Table`."""
        from rich.table import Table
        from rich.text import Text

        title = f"texts of {self.document_tokens} tokens: {test.texts // 2:,} human, {test.texts // 2:,} by "
        title += f"{test.generator}, from {test.documents} test documents; trained on {', '.join(self.trained_on)}"
        table = Table(title=Text(title), title_justify="left", caption_justify="left")
        table.caption = Text("intervals: 95%, source documents resampled")
        for name in ("score", "AUROC", "interval", "head - score", "interval"):
            table.add_column(name, justify="left" if name == "score" else "right")
        for name, each in test.aurocs.items():
            difference = "" if each.difference is None else f"{each.difference:+.3f}"
            ends = "" if each.difference_interval is None else _ends(each.difference_interval, "+.3f")
            table.add_row(name, f"{each.value:.3f}", _ends(each.interval, ".3f"), difference, ends)
        return table


def measure_head(
    head: AttentionWeightedHead,
    generator: str,
    test: HumanAndMachineTexts,
    *,
    resamples: int = 1000,
    seed: int = 0,
    others: dict[str, np.ndarray] | None = None,
) -> GeneratorTest:
    """AUROCs on ``test`` of the head and of every baseline.

    A baseline has no direction of its own: a small model's text at temperature 1 is less likely than human text, its
    text at 0.8 is likelier. Each has the sign that is better for it on these very texts, which favours the baselines.

    Args:
        generator: whose texts ``test`` has.
        others: further scores of the test texts, higher for machine texts.
    """
    scores = {HEAD: text_logits(head, test.features).double().numpy(), **(others or {})}
    found = baseline_scores(test.features, head.config.columns)
    scores |= {name: oriented(each, test.labels) * each for name, each in found.items()}
    aurocs = aurocs_by_document(scores, test.labels, test.documents, resamples=resamples, seed=seed)
    return GeneratorTest(generator, len(test.labels), len(set(test.documents)), aurocs)


def _ends(interval, form):
    return f"[{interval[0]:{form}}, {interval[1]:{form}}]"
