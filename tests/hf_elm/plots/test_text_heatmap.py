"""Heat maps: pieces that join to the text for every tokenizer, values against the model, a page that is safe to open."""

import html
import re
from html.parser import HTMLParser

import pytest
import torch

from hf_elm.plots.heatmap_page import heatmap_page, save_heatmap_page
from hf_elm.plots.heatmap_picture import COLUMNS, MOST_LINES, plot_text_heatmap, text_cells
from hf_elm.plots.text_heatmap import TextHeatmap, TextPiece, text_heatmap, text_pieces
from tests.hf_elm.plots.tiny_energies import TEXT, energy_model, tokenizer_of


KINDS = ("byte", "char", "bpe")


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_the_text_and_hold_every_token_once(kind):
    ids, pieces, cut = text_pieces(tokenizer_of(kind), TEXT, 1000)
    assert "".join(text for text, _ in pieces) == TEXT
    assert [place for _, places in pieces for place in places] == list(range(len(ids)))
    assert all(text for text, _ in pieces)
    assert cut == 0
    if kind == "byte":
        assert [len(places) for text, places in pieces if text == "日"] == [3]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_models(kind):
    """Windows of 32 tokens that overlap by half; each window's own log Z. 1e-9: float64."""
    model, tokenizer = energy_model(kind), tokenizer_of(kind)
    short = TEXT[:20]
    data = text_heatmap(model, tokenizer, short)
    ids = torch.tensor(tokenizer(short)["input_ids"]).unsqueeze(0)
    vocabulary = torch.arange(len(tokenizer)).view(1, -1, 1).expand(1, -1, ids.shape[1])
    scores = model.score_candidates(ids, vocabulary, max_rows=4096)
    log_z = (scores.log_probs - scores.energies).logsumexp(1)[0]
    place = 0
    for piece in data.pieces:
        places = list(range(place, place + len(piece.tokens)))
        place += len(piece.tokens)
        if places[0] == 0:
            assert piece.energy is None
            assert piece.value("gain") is None
            continue
        assert piece.energy == pytest.approx(scores.token_energies[0, places].sum().item(), abs=1e-9)
        assert piece.lm_log_prob == pytest.approx(scores.token_log_probs[0, places].sum().item(), abs=1e-9)
        assert piece.log_z == pytest.approx(log_z[places].sum().item(), abs=1e-9)
        assert piece.value("gain") == pytest.approx(-piece.energy - piece.log_z, abs=1e-9)
        assert piece.value("energy") == piece.energy
        assert piece.log_z_lower == piece.log_z_upper
    assert data.num_tokens == place
    assert data.nll("elm") == pytest.approx(
        -(scores.token_log_probs - scores.token_energies)[0, 1:].mean().item() + log_z[1:].mean().item(), abs=1e-9
    )


def test_longer_than_the_positions_and_cut():
    model, tokenizer = energy_model(), tokenizer_of("byte")  # 32 positions
    whole = text_heatmap(model, tokenizer, "x = 1\n" * 12)
    assert whole.num_scored == whole.num_tokens - 1 == 71
    cut = text_heatmap(model, tokenizer, "x = 1\n" * 12, max_tokens=10)
    assert (cut.num_tokens, cut.cut) == (10, 62)
    for first, second in zip(cut.pieces[1:], whole.pieces[1:], strict=False):
        assert first.energy == pytest.approx(second.energy, abs=1e-9)


def test_a_window_below_the_positions_is_kept_and_told():
    model, tokenizer = energy_model(), tokenizer_of("byte")
    text = "x = 1\n" * 3
    whole, data = (text_heatmap(model, tokenizer, text, window=window) for window in (None, 8))
    last = text_heatmap(model, tokenizer, text[-8:])  # tokens 16 and 17 end a window of 8
    for piece, alone, far in zip(data.pieces[16:], last.pieces[6:], whole.pieces[16:], strict=True):
        assert piece.energy == pytest.approx(alone.energy, abs=1e-9)
        assert abs(piece.energy - far.energy) > 1e-9
    assert "windows of 8 tokens" in data.how
    assert "windows" not in whole.how
    with pytest.raises(ValueError, match="window must be at least 2, got 1"):
        text_heatmap(model, tokenizer, text, window=1)


def test_unknown_characters_have_no_values():
    data = text_heatmap(energy_model("char"), tokenizer_of("char"), "def ÿ(x)")
    assert [piece.text for piece in data.pieces if piece.energy is None] == ["d", "ÿ"]
    assert data.num_scored == 6


def test_the_mean_is_over_the_tokens_of_pieces_with_values():
    """The second byte of é has a prediction and its piece has none, because the first byte lacks one."""
    data = text_heatmap(energy_model(), tokenizer_of("byte"), "é = x")
    assert [piece.text for piece in data.pieces if piece.energy is None] == ["é"]
    assert (data.num_tokens, data.num_scored) == (6, 4)
    for name in ("lm", "elm"):
        values = [getattr(piece, f"{name}_log_prob") for piece in data.pieces[1:]]
        assert data.nll(name) == pytest.approx(-sum(values) / 4, abs=1e-12)


def test_sampled_values_have_ends():
    data = text_heatmap(energy_model(), tokenizer_of("byte"), "def f", method="sampled", exact_top=3, num_samples=8)
    assert not data.is_exact
    assert "3 likeliest tokens exact, 8 samples" in data.how
    scored = [piece for piece in data.pieces if piece.energy is not None]
    assert any(piece.log_z_lower != piece.log_z_upper for piece in scored)
    for piece in scored:
        assert piece.log_z == pytest.approx((piece.log_z_lower + piece.log_z_upper) / 2)
    assert "(in [" in heatmap_page(data)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self.tips, self.depth = [], "", [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.depth += tag == "pre"
        if tag == "span" and "data-tip" in dict(attributes):
            self.tips.append(dict(attributes)["data-tip"])

    def handle_endtag(self, tag):
        self.depth -= tag == "pre"

    def handle_data(self, data):
        self.shown += data if self.depth else ""


def test_the_page_shows_the_text_and_fetches_and_runs_nothing():
    evil = "</pre><script>alert(1)</script>\n<img src=x onerror='y'> & \" ' $"
    data = text_heatmap(energy_model(), tokenizer_of("byte"), evil)
    page = heatmap_page(data, title=evil)
    parsed = Page(page)
    assert parsed.shown.replace("↵", "") == evil
    assert {tag for tag, _ in parsed.tags} <= {
        "html", "head", "meta", "title", "style", "body", "h1", "table", "tr", "td", "div", "span", "pre", "i", "p",
    }  # fmt: skip
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    assert not re.search(r"(?i)https?:|@import|url\(|src=", page.replace(html.escape(evil), "").split("</style>")[0])
    assert not [tag for tag, attributes in parsed.tags if {"src", "href"} & attributes.keys()]
    assert "prefers-color-scheme: dark" in page


def test_the_page_tells_every_pieces_numbers_and_its_scale():
    data = TextHeatmap(
        [
            TextPiece("a", ["a"]),
            TextPiece("é", ["x1", "x2"], -2.0, -1.5, -0.75, 0.25, 0.25, 0.25),
            TextPiece("c", ["c"], -1.0, -2.0, 0.9, 0.1, 0.0, 0.2),
        ],
        num_tokens=4, num_scored=3, how="log Z exact over 9 tokens", is_exact=True,
    )  # fmt: skip
    page = heatmap_page(data)
    first, second, third = Page(page).tips
    assert "no prediction" in first
    assert "2 tokens x1 x2" in second
    for number in ("log p_LM -2.0000", "E -0.7500", "log Z +0.2500", "log p_ELM -1.5000", "gain +0.5000", "(nats)"):
        assert number in second
    assert "log Z +0.1000 (in [+0.0000, +0.2000])" in third
    assert "≥ +1" in page
    assert "1.0000 nats/token" in page  # (2 + 1) / 3
    assert "rgba(0,114,178,0.300)" in page  # half of the strongest blue
    assert "rgba(213,94,0,0.600)" in page
    energies = heatmap_page(data, "energy")
    assert "energy E (nats)" in energies
    assert "rgba(0,114,178,0.500)" in energies  # low energy is blue: 0.6 * 0.75 / 0.9


def test_page_files_are_never_replaced(tmp_path):
    data = TextHeatmap([TextPiece("a", ["a"])])
    path = save_heatmap_page(data, tmp_path / "page.html")
    with pytest.raises(FileExistsError, match="exists"):
        save_heatmap_page(data, path)
    with pytest.raises(ValueError, match=r"must end in \.html"):
        save_heatmap_page(data, tmp_path / "page.htm")


def test_cells_keep_lines_and_the_order_of_the_text():
    pieces = [TextPiece(text, ["t"]) for text in ("ab\n", "\tc", "d" * (COLUMNS + 3), "\n", "e$")]
    cells, lines, cut = text_cells(TextHeatmap(pieces), "gain")
    assert cells[0][:3] == (0, 0, "ab↵")
    assert cells[1][:3] == (0, 1, "    c")
    assert cells[2] == (5, 1, "d" * (COLUMNS - 5), None)
    assert cells[3][:3] == (0, 2, "d" * 8)
    assert cells[4][:3] == (8, 2, "↵")
    assert cells[5][:3] == (0, 3, "e$")
    assert (lines, cut) == (4, 0)
    long = TextHeatmap([TextPiece("x\n", ["t"]) for _ in range(MOST_LINES + 7)])
    cells, lines, cut = text_cells(long, "gain")
    assert (len(cells), lines, cut) == (MOST_LINES, MOST_LINES, 14)


@pytest.mark.parametrize("colour", ["gain", "energy"])
def test_the_picture_draws_every_character_on_its_colour(tmp_path, colour):
    data = text_heatmap(energy_model(), tokenizer_of("byte"), TEXT)
    figure = plot_text_heatmap(data, colour, tmp_path / f"{colour}.png")
    figure.canvas.draw()
    ax, scale = figure.axes
    assert len(ax.texts) == len(data.pieces)
    assert len(ax.collections[0].get_paths()) == sum(piece.energy is not None for piece in data.pieces)
    assert ("energy" in scale.get_title(loc="left")) == (colour == "energy")


def test_refusals():
    model, tokenizer = energy_model(), tokenizer_of("byte")
    with pytest.raises(TypeError, match="MonArcForCausalLM"):
        text_heatmap(torch.nn.Linear(1, 1), tokenizer, "text")
    for text, reason in (("", "text is empty"), ("x", "has 1 token")):
        with pytest.raises(ValueError, match=reason):
            text_heatmap(model, tokenizer, text)
    with pytest.raises(ValueError, match="max_tokens must be at least 2, got 1"):
        text_heatmap(model, tokenizer, "text", max_tokens=1)
    with pytest.raises(ValueError, match="knows after the first"):
        text_heatmap(energy_model("char"), tokenizer_of("char"), "dÿÿ")

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not tell where"):
        text_heatmap(model, Slow(), "text")


def test_the_remarks_stay_on_the_page():
    """The longest that there is: bounds, windows and a cut text."""
    how = "log Z between bounds: 4,096 likeliest tokens exact, 1,024 samples; windows of 1,024 tokens"
    data = TextHeatmap([TextPiece("a", ["a"])], 1, 1, how, is_exact=False, cut=123_456_789)
    figure = plot_text_heatmap(data)
    (remarks,) = figure.texts
    assert "123,456,789 characters more" in " ".join(remarks.get_text().split())
    box, page = remarks.get_window_extent(), figure.bbox
    assert box.x1 <= page.x1
    assert box.y1 <= page.y1
    assert box.y0 >= page.y1 - 0.95 * figure.dpi  # above the text


def test_what_is_left_out_within_a_piece_is_counted():
    data = TextHeatmap([TextPiece("a" * (COLUMNS * MOST_LINES + 7), ["a"]), TextPiece("bc", ["b"])])
    cells, lines, left_out = text_cells(data, "gain")
    assert sum(len(text) for _, _, text, _ in cells) == COLUMNS * MOST_LINES
    assert (lines, left_out) == (MOST_LINES, 9)
