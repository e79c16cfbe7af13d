"""usage: python scripts/demo_screenshots.py CHECKPOINT [--output docs/pictures] [--overwrite]

Pictures of the page of ``hf-elm demo`` for the documentation, one per tab: demo_<tab>.png, at most 200 kB each. The page is
started on the model at CHECKPOINT, used in a headless Chromium with what stands in its fields at first, and stopped.
Needs pip install "hf_elm[demo]" playwright, and chromium.
"""

import argparse
import io
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from hf_elm.families import family_of_checkpoint


WIDTH, HEIGHT = 1200, 760
LIMIT = 200_000  # bytes
PATIENCE = 120_000  # ms
ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Start, use, write, stop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--output", default="docs/pictures", type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace pictures that are there")
    options = parser.parse_args()
    scenes = SCENES[family_of_checkpoint(options.checkpoint)]
    for name in scenes:
        if (path := options.output / f"demo_{name}.png").exists() and not options.overwrite:
            sys.exit(f"{path} exists; pass --overwrite to replace it.")
    options.output.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("chromium-headless-shell")
    with served(options.checkpoint) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, use in scenes.items():
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(PATIENCE)
            page.goto(url)
            if use(page):
                path = options.output / f"demo_{name}.png"
                write_picture(page.screenshot(full_page=True), path)
                sys.stdout.write(f"{path}, {path.stat().st_size // 1000} kB\n")
            page.close()
        browser.close()


@contextmanager
def served(checkpoint: str):
    """The address of the page."""
    command = [sys.executable, "-m", "hf_elm", "demo", f"checkpoint={Path(checkpoint).resolve()}", "port=0"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = server.stdout.readline()
        if " at " not in line:
            sys.exit("the page did not start.")
        yield line.split(" at ")[1].split()[0]
    finally:
        server.terminate()
        server.wait(timeout=30)


def write_picture(png: bytes, path: Path) -> None:
    """Writes the picture, with a palette of 256 colours where it would be larger than `LIMIT` without.

    Raises:
        ValueError: it is larger even so.
    """
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    palette = picture.quantize(
        256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE
    )  # keeps thin coloured lines
    for form in (picture, palette):
        buffer = io.BytesIO()
        form.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LIMIT:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path} would have {buffer.tell():,} bytes, more than {LIMIT:,}; lower WIDTH.")


def _settled(page):
    """Waits for what the last answer still moves."""
    page.wait_for_timeout(1500)
    page.mouse.move(0, 0)
    return True


def _generated(page: Page, name: str, tab: str, chosen: int) -> bool:
    """A finished continuation with one of its tokens chosen."""
    page.get_by_role("tab", name=tab, exact=True).click()
    page.get_by_label("number input for New tokens").fill("60")
    page.get_by_role("button", name="Generate").click()
    page.locator(f"#{name}-flow button[data-step='{chosen}']").wait_for()
    page.locator(f"#{name}-panel").get_by_text("of 60").wait_for()
    page.locator(f"#{name}-flow button[data-step='{chosen}']").click()
    page.locator(f"#{name}-panel").get_by_text(f"{chosen + 1} of 60").wait_for()
    return _settled(page)


def monarc_generate(page: Page) -> bool:
    return _generated(page, "continuation", "Generate", 20)


def monarc_score(page: Page) -> bool:
    page.get_by_role("tab", name="Score").click()
    page.get_by_role("button", name="Score").click()
    page.locator("#heat-map button").first.wait_for()
    return _settled(page)


def nano_ebm_think(page: Page) -> bool:
    page.get_by_role("button", name="Think").click()
    page.locator("#landscape img").wait_for()
    return _settled(page)


def nano_ebm_generate(page: Page) -> bool:
    return _generated(page, "thinking", "Generate with thinking", 20)


def m2_bert_search(page: Page) -> bool:
    page.get_by_role("tab", name="Embed and search").click()
    page.get_by_role("button", name="Search").click()
    page.locator("#ranking tbody tr").first.wait_for()
    return _settled(page)


def m2_bert_masks(page: Page) -> bool:
    """False for a model without a masked-LM head."""
    page.get_by_role("tab").first.wait_for()
    if not page.get_by_role("tab", name="Fill masks").count():
        return False
    page.get_by_role("tab", name="Fill masks").click()
    page.get_by_role("button", name="Fill").click()
    page.locator("#masks tbody tr").first.wait_for()
    return _settled(page)


SCENES = {
    "monarc": {"generate": monarc_generate, "score": monarc_score},
    "nano_ebm": {"think": nano_ebm_think, "generate_with_thinking": nano_ebm_generate},
    "m2_bert": {"search": m2_bert_search, "masks": m2_bert_masks},
}


if __name__ == "__main__":
    main()
