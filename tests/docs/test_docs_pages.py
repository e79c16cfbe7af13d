"""The documentation builds without a warning, links lead somewhere, every page is in the navigation, nothing is fetched from elsewhere."""

import json
import logging
import re

import pytest
import yaml

from tests.docs.page_blocks import PAGES, ROOT


DOCS = ROOT / "docs"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
GENERATED = {"api/command_line.md"}
FETCHED = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="?(?:https?:)?//(?!schema)[^">\s]+', re.IGNORECASE)


def without_code(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Anchors of a page's headings, as the site makes them."""
    titles = HEADING.findall(without_code(page.read_text(encoding="utf-8")))
    plain = (re.sub(r"[^\w\s-]", "", re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", title)) for title in titles)
    return {re.sub(r"[-\s]+", "-", title.strip().lower()) for title in plain}


def links(page):
    return [target for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))) if ":" not in target]


def test_the_reader_of_links_finds_a_wrong_one(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A `b` of [c](d.md)\n\n[x](other.md#gone)\n\n```text\n[y](z.md)\n```\n")
    assert links(page) == ["d.md", "other.md#gone"]
    assert anchors(page) == {"a-b-of-c"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_and_anchors_exist(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file.is_relative_to(DOCS) and str(file.relative_to(DOCS)) in GENERATED:
            continue
        assert file.exists(), f"{page.name}: {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def leaves(node):
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [leaf for child in children for leaf in leaves(child)]

    listed = leaves(config["nav"])
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} | GENERATED
    assert sorted(listed) == sorted(pages)


def test_pages_name_no_machine_and_repeat_no_table_by_hand():
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|root|tmp|home)/", text), page.name
        assert "cdn" not in text.lower()


def test_every_command_is_in_the_reference():
    pytest.importorskip("mkdocs")
    pytest.importorskip("latex2mathml")
    from hf_elm.command_line import COMMANDS
    from scripts.docs_site import command_line_page

    page = command_line_page()
    for name in COMMANDS:
        assert f"## hf-elm {name}\n" in page
    assert "train.max_steps" in page or "more keys" in page


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    pytest.importorskip("mkdocs")
    from scripts.docs_site import mathml, on_page_content

    drawn = mathml(r"\frac{a}{b} \le \log Z", display=True)
    assert drawn.startswith("<math")
    assert 'display="block"' in drawn
    assert "<mi>log</mi><mspace" in drawn
    page = on_page_content(r'<span class="arithmatex">\(x &lt; y\)</span>', None, None, None)
    assert page.startswith("<math")
    assert "arithmatex" not in page
    for page in DOCS.rglob("*.md"):  # every formula is read whole: nothing of LaTeX is left over
        for formula in re.findall(r"\$\$(.+?)\$\$", page.read_text(encoding="utf-8"), re.DOTALL):
            assert "\\" not in mathml(formula, True), f"{page.name}: {formula}"


@pytest.mark.timeout(600)
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path, caplog, monkeypatch):
    """As `make docs` does."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    pytest.importorskip("latex2mathml")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    with caplog.at_level(logging.WARNING, logger="mkdocs"):
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True)
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
    assert [record.message for record in caplog.records if record.name.startswith("mkdocs")] == []
    pages = sorted((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not FETCHED.search(text), f"{page.name}: {FETCHED.search(text).group(0)}"
        assert "arithmatex" not in text
        assert "<!-- table:" not in text
    results = (tmp_path / "site" / "results.html").read_text(encoding="utf-8")
    newest = json.loads((ROOT / "benchmarks/results/quickstart.jsonl").read_text().splitlines()[-1])
    assert f"{newest['elm_nll']:.4f}" in results
    models = (tmp_path / "site" / "api" / "models.html").read_text(encoding="utf-8")
    assert "energy_adapter_rank" in models
