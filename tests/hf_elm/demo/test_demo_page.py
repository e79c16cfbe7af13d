"""``hf-elm demo`` in a browser: what a visitor types, presses and sees, against the library's own numbers."""

import re

import pytest
import torch

from hf_elm.demo.candidate_steps import candidate_steps
from hf_elm.demo.document_search import embed_documents, rank_documents
from hf_elm.demo.shared_model import SharedModel
from hf_elm.demo.thinking import think_about, thinking_tokens
from hf_elm.demo.token_scores import score_text
from hf_elm.embedding_models import load_embedder
from hf_elm.saved_models import load_checkpoint
from tests.hf_elm.demo.demo_server import needs_browser, opened, served, table_rows
from tests.hf_elm.tiny_embedder import save_embedder
from tests.hf_elm.tiny_harness import letters, monarc, nano_ebm, saved


pytestmark = [needs_browser, pytest.mark.timeout(400)]
PROMPT = "joy is"


@pytest.fixture(scope="module")
def monarc_folder(tmp_path_factory):
    tokenizer = letters()
    model = monarc(tokenizer, dtype=torch.float32)
    model.generation_config.num_candidates = 6
    return saved(model, tokenizer, tmp_path_factory.mktemp("demo") / "monarc")


def test_monarc_page(monarc_folder):
    """Generate, choose a token by mouse and by keyboard, score a text, get refused."""
    shared = SharedModel(*load_checkpoint(monarc_folder, "cpu"))
    steps = list(candidate_steps(shared, PROMPT, 6, 1.0, 12, seed=3))
    assert len(steps) > 5
    with served(monarc_folder, "device=cpu") as url, opened(url) as page:
        page.get_by_label("Prompt").fill(PROMPT)
        page.get_by_label("number input for New tokens").fill("12")
        page.get_by_label("Seed").fill("3")
        page.get_by_role("button", name="Generate").click()
        page.locator(f"#continuation-flow button[data-step='{len(steps) - 1}']").wait_for()
        page.get_by_text(f"Step {len(steps)} of {len(steps)}").wait_for()
        shown = page.locator("#continuation-flow .elm-flow").inner_text()
        assert shown.replace("↵\n", "\n") == PROMPT + "".join(_drawn(step.label) for step in steps)
        _check_candidates(page, steps, len(steps) - 1)

        page.locator("#continuation-flow button[data-step='2']").click()
        page.get_by_text(f"Step 3 of {len(steps)}").wait_for()
        _check_candidates(page, steps, 2)
        page.keyboard.press("Tab")  # to the next token
        page.keyboard.press("Enter")
        page.get_by_text(f"Step 4 of {len(steps)}").wait_for()
        _check_candidates(page, steps, 3)

        page.get_by_role("tab", name="Score").click()
        _check_scores(page, shared, "joy or not, ill or fit")
        page.get_by_label("Text (").fill("é")
        page.get_by_role("button", name="Score").click()
        page.get_by_text("characters that the model's vocabulary lacks: 'é'").wait_for()


def _drawn(label):
    return {"'\\n'": "\n", "'<|endoftext|>'": "<|endoftext|>"}.get(label, label[1:-1])


def _check_candidates(page, steps, index):
    """The rows are the candidates of the step; their probabilities sum to 1 up to the rounding of what is shown."""
    rows, step = table_rows(page, "#continuation-panel"), steps[index]
    assert [row[0] for row in rows] == step.labels
    assert [int(row[1]) for row in rows] == step.draws
    assert [float(row[2]) for row in rows] == pytest.approx(step.log_probs, abs=6e-4)  # three decimals are shown
    assert [float(row[3]) for row in rows] == pytest.approx(step.energies, abs=6e-4)
    shares = [float(re.match(r"[\d.]+", row[4]).group()) for row in rows]
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(rows) + 1e-6)
    assert [row[4].endswith("✓ taken") for row in rows] == [i == step.taken for i in range(len(rows))]
    assert f"log Z = {step.log_z_lower:+.4f} nats" in page.locator("#continuation-panel").inner_text()


def _check_scores(page, shared, text):
    scores = score_text(shared, text)
    page.get_by_label("Text (").fill(text)
    page.get_by_role("button", name="Score").click()
    page.get_by_text(f"{len(text) - 1} tokens scored").wait_for()
    rows = table_rows(page, "#totals")
    assert [float(row[1]) for row in rows] == pytest.approx([scores.nll("lm"), scores.nll("elm_lower")], abs=6e-5)
    assert page.locator("#heat-map .elm-flow").inner_text() == text
    titles = [button.get_attribute("title") for button in page.locator("#heat-map button").all()]
    energies = [float(re.search(r"E ([+-][\d.]+)", title).group(1)) for title in titles[1:]]
    assert energies == pytest.approx(scores.energies[1:].tolist(), abs=6e-4)
    page.get_by_label("energy E").check()
    page.get_by_text("E above 0").last.wait_for()


@pytest.mark.slow
def test_nano_ebm_page(tmp_path):
    """Think about one token, look at the pictures, generate with thinking and without."""
    tokenizer = letters()
    folder = saved(nano_ebm(tokenizer, torch.float32), tokenizer, tmp_path / "thinker")
    shared = SharedModel(*load_checkpoint(folder, "cpu"))
    trajectory, _ = think_about(shared, PROMPT, 3)
    with served(folder, "device=cpu") as url, opened(url) as page:
        page.get_by_label("Prompt").first.fill(PROMPT)
        page.get_by_label("number input for Thinking steps").first.fill("3")
        page.get_by_role("button", name="Think").click()
        for name in ("descent", "landscape"):
            page.locator(f"#{name} img").wait_for()
            assert page.locator(f"#{name} img").evaluate("image => image.naturalWidth") > 300
        rows = table_rows(page, "#predictions")
        assert [row[0] for row in rows] == trajectory.labels
        for column, step in ((1, 0), (2, -1)):
            shares = [float(row[column].rstrip("%")) / 100 for row in rows]
            assert shares == pytest.approx(trajectory.probs[step].tolist(), abs=6e-5)
        falls = ", ".join(f"{fall:+.4g}" for fall in (trajectory.energies[1:] - trajectory.energies[0]).tolist())
        assert falls.split(",")[0] in page.locator("#predictions").inner_text()

        page.get_by_role("tab", name="Generate with thinking").click()
        page.get_by_label("Prompt").last.fill(PROMPT)
        page.get_by_label("number input for New tokens").fill("9")
        page.get_by_role("button", name="Generate").click()
        steps = shared.model.config.think_steps
        tokens = list(thinking_tokens(shared, PROMPT, steps, max_new_tokens=9))
        plain = list(thinking_tokens(shared, PROMPT, steps, max_new_tokens=9, use_thinking=False))
        page.get_by_text(f"Token {len(tokens)} of {len(tokens)}").wait_for()
        page.locator(f"#without-thinking button[data-step='{len(plain) - 1}']").wait_for()
        for place, found in (("#thinking-flow", tokens), ("#without-thinking", plain)):
            shown = page.locator(f"{place} .elm-flow").inner_text().replace("↵\n", "\n")
            assert shown == PROMPT + "".join(_drawn(token.label) for token in found)


@pytest.mark.slow
def test_m2_bert_page(tmp_path):
    """Search twice among documents that stay; the ranking is the library's."""
    folder = tmp_path / "embedder"
    save_embedder(folder)
    shared = SharedModel(*load_embedder(str(folder), "cpu"))
    source = "the energy of a token\nfilters reach far\nlower where text is likely\n"
    with served(folder, "device=cpu") as url, opened(url) as page:
        page.get_by_label("Documents").fill(source)
        for query in ("energy", "filters reach"):
            page.get_by_label("Query").fill(query)
            page.get_by_label("Query").press("Enter")
            ranking = rank_documents(shared, embed_documents(shared, source), query)
            best = f"{ranking[0].similarity:.4f}"
            page.locator("#ranking tbody tr").first.get_by_text(best).wait_for()
            rows = table_rows(page, "#ranking")
            assert [row[2] for row in rows] == [each.text for each in ranking]
            assert [float(row[3]) for row in rows] == pytest.approx([each.similarity for each in ranking], abs=2e-4)
        page.get_by_label("Documents").fill(" ")
        page.get_by_role("button", name="Search").click()
        page.get_by_text("documents is empty").wait_for()
