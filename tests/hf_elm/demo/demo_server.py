"""``hf-elm demo`` in a process of its own, and a headless Chromium to look at it; both skip where something is missing."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest


BROWSER = shutil.which("chromium") or shutil.which("chromium-headless-shell")
STARTED = "(Ctrl-C ends it)"
ROOT = Path(__file__).parents[3]
PATIENCE = 60_000  # ms; a loaded machine


def missing() -> str | None:
    """What a browser test lacks, if anything; found without importing it."""
    for package in ("gradio", "playwright", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            return package
    return None if BROWSER else "chromium"


needs_browser = pytest.mark.skipif(missing() is not None, reason=f"{missing()} is not installed")


@contextmanager
def served(checkpoint, *arguments):
    """The address of the page; the server is interrupted at the end and must stop at once, with status 0."""
    command = [sys.executable, "-m", "hf_elm", "demo", f"checkpoint={checkpoint}", "port=0", *arguments]
    server = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_PROXY": "*"},
        preexec_fn=_listen_to_interrupts,
    )  # fmt: skip
    try:
        line = server.stdout.readline()
        if STARTED not in line:
            server.kill()
            raise AssertionError(f"the server did not start: {line}{server.communicate()[1]}")
        yield line.split(" at ")[1].split()[0]
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out.strip()) == (0, "stopped."), err
        assert "Traceback" not in err
    finally:
        if server.poll() is None:
            server.kill()
            server.communicate()


def _listen_to_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs, and what they start, ignore it


@contextmanager
def opened(url):
    """A page that a visitor has open; at the end nothing was logged as an error and no other host was asked for anything."""
    from playwright.sync_api import sync_playwright

    problems, strangers = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(PATIENCE)
            page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("request", lambda request: None if _is_own(request.url, url) else strangers.append(request.url))
            page.goto(url)
            yield page
            assert problems == []
            assert strangers == []
        finally:
            browser.close()


def _is_own(address, url):
    return address.startswith((url, "data:", "blob:"))


def table_rows(page, place) -> list[list[str]]:
    """The cells of a table's body."""
    return [row.locator("td").all_inner_texts() for row in page.locator(f"{place} tbody tr").all()]
