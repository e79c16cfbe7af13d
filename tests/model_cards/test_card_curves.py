"""The picture of the training on the card: the trainer's own, shipped with the model; never the user's file of that name."""

import shutil

import pytest

from hf_elm.card_files import carry_over
from hf_elm.model_cards.card_facts import has_curves, read_facts
from hf_elm.model_cards.card_text import is_own_card, model_card
from hf_elm.trainers.curves_picture import PICTURE_FILE, write_curves_picture
from tests.model_cards.card_records import LOGS, write_records


PICTURE = f"![Metrics of the training by optimizer step]({PICTURE_FILE})"


@pytest.fixture
def run(tmp_path):
    write_records("monarc_adapted", tmp_path / "run")
    return tmp_path / "run"


def exported(run, tmp_path):
    """A folder as `hf-elm export` fills it: the model's files, then what is carried over."""
    folder = tmp_path / "exported"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(run / name, folder / name)
    carry_over(run, folder, repo_id="user/adapted")
    return folder


def test_the_trainers_picture_goes_with_the_model_and_stands_on_its_card(run, tmp_path):
    assert write_curves_picture(LOGS, run) is not None
    card = model_card(read_facts(run))
    assert PICTURE in card
    assert card.index("## Training") < card.index(PICTURE) < card.index("## Limits")
    folder = exported(run, tmp_path)
    assert (folder / PICTURE_FILE).read_bytes() == (run / PICTURE_FILE).read_bytes()
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert PICTURE in text
    assert is_own_card(text)


def test_a_run_without_a_picture_or_with_the_users_own_shows_none(run, tmp_path):
    assert PICTURE_FILE not in model_card(read_facts(run))
    (run / PICTURE_FILE).write_bytes(b"\x89PNG a secret")
    assert not has_curves(run)
    assert PICTURE_FILE not in model_card(read_facts(run))
    folder = exported(run, tmp_path)
    assert not (folder / PICTURE_FILE).exists()
    assert PICTURE_FILE not in (folder / "README.md").read_text(encoding="utf-8")
