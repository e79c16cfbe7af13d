"""The keys of ``hf-elm automata``, as in `recipe_sections`. No heavy imports, so that help is instant."""

from dataclasses import dataclass


@dataclass
class AutomataSection:
    """What ``hf-elm automata`` does, whatever it does.

    Args:
        checkpoint: score this saved model (folder or Hub id) instead of training any.
        write: write rows of languages to this new folder, as a corpus to train on, instead of training.
        seed: of languages, weights and training.
    """

    checkpoint: str | None = None
    write: str | None = None
    seed: int = 0


@dataclass
class AutomataScoreSection:
    """On what predictions are scored.

    Args:
        languages: test languages, each with one row; with write: as many rows are held out.
        think_steps: numbers of refinement steps at which a nanoEBM is scored.
        output: write the scores to this JSON file.
    """

    languages: int = 100
    think_steps: list[int] | None = None
    output: str | None = None


@dataclass
class AutomataTrainingSection:
    """The small models that are trained.

    Args:
        output_dir: folder of the models; one that was interrupted goes on with the models that are missing.
        models: which: lm, elm, lm_continued (the LM trained on for the CPU time that the energy took), nano_ebm.
        steps: optimizer steps of the LM and of the nanoEBM.
        energy_steps: optimizer steps of the energy, with the LM frozen.
        hidden_size: width of both.
        batch_size: rows per step; every row is a new language.
    """

    output_dir: str = "runs/automata"
    models: list[str] | None = None
    steps: int = 1200
    energy_steps: int = 400
    hidden_size: int = 32
    batch_size: int = 16


@dataclass
class AutomataCorpusSection:
    """The corpus that ``write`` makes.

    Args:
        train_languages: rows to train on, each of another language.
    """

    train_languages: int = 20000


@dataclass
class AutomataDeviceSection:
    """Where a saved model runs.

    Args:
        device: torch device, e.g. cpu or cuda:0; missing: cuda where there is one, else cpu.
        dtype: float32, bfloat16 or float16; missing: as saved.
    """

    device: str | None = None
    dtype: str | None = None
