"""The console at work, as a person has it: a document is given, asked while it is read, a quotation followed.

    python -m bench.pictures.console                    # docs/console.png, console-dark.png, console-quotation.png
    python -m bench.pictures.console --document book.txt --question "Who keeps the key?"

Needs Chromium (Debian: apt-get install chromium; or name one in CHROMIUM) and the development packages. Without a
document one is made: the log book of a harbour, 40,000 tokens. The first picture is taken while the model reads it, so
that progress, answers and the growing archive are seen together; nothing in it is staged but the text.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from bench.peers.servers import Child

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 300_000
NUM_COLOURS = 128
SIZE = {"width": 1440, "height": 940}
NUM_ENTRIES = 1000
SHIPS = "Aurora Meridian Halcyon Osprey Corisande Tern Lodestar Vesper Albatross Marigold".split()
CARGO = "copper timber glass salt wool tallow coal slate hemp linen".split()
PORTS = "Aldermouth Brackness Corvik Dunmore Ebbing Fairhaven Grimsholm Harrow".split()
NAMES = "Okafor Lindqvist Moreau Tanaka Ferreira Novak Haddad Petrov Castellan Iversen".split()
QUESTIONS = ("What is the seal of container MSKU-4471902?", "What did the repair of the eastern crane cost?")


def log_book(num_entries: int) -> str:
    """Entries of our own making, none like another."""
    dice = random.Random(7)
    entries = ["# Log book of the harbour office\n"]
    for day in range(num_entries):
        ship, cargo, port, name = (dice.choice(each) for each in (SHIPS, CARGO, PORTS, NAMES))
        entries.append(
            f"Day {day + 1}. The {ship} came in from {port} with {dice.randrange(20, 900)} tons of {cargo}; "
            f"invoice HB-{dice.randrange(10_000, 99_999)} was settled by {name}."
        )
        if day == num_entries // 3:
            entries.append("The seal of container MSKU-4471902 is HL-88213-X.")
        if day == num_entries // 2:
            entries.append("The storm of 3 November broke the eastern crane, and its repair cost 12,400 crowns.")
    return "\n".join(entries)


def ask(page: Page, question: str) -> None:
    """Ask, and wait for the end of the answer."""
    before = page.locator(".exchange .took").count()
    page.get_by_label("Question").fill(question)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.locator(".exchange .took").nth(before).wait_for()


def picture(page: Page, path: Path) -> None:
    """What is in the window, in the few colours that it has."""
    page.mouse.move(0, 0)
    page.evaluate("() => window.scrollTo(0, 0)")
    page.screenshot(path=path, animations="disabled")
    with Image.open(path) as taken:
        taken.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    num_bytes = path.stat().st_size
    assert num_bytes < MOST_BYTES, f"{path} has {num_bytes:,} bytes, which is more than {MOST_BYTES:,}"
    print(f"{path}: {num_bytes:,} bytes")


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server with the embedded model and an empty data directory; its address."""
    folder.mkdir()
    child = Child(folder / "fano.log")
    child.start([sys.executable, "-m", "server", "serve", "--data-dir", str(folder / "data")], "/readyz")
    try:
        yield str(child.client.base_url)
    finally:
        child.kill()


def chromium() -> str | None:
    """The browser of this machine."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)


def visit(browser: Browser, url: str, scheme: str, folder: Path, document: Path, questions: Sequence[str]) -> None:
    """Give the document, ask while it is read; by daylight also follow a quotation."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)
    page.set_default_timeout(300_000)
    page.goto(url)
    page.locator("#forecast table").wait_for()
    page.get_by_label("Drop a file here").set_input_files(document)
    row = page.locator(".document", has_text=document.name)
    # A short one may be read before that can be said.
    row.locator(".doing", has_text="tokens/s").or_(row.and_(page.locator('[data-status="ready"]'))).wait_for()
    page.get_by_label("Answer", exact=True).select_option("verbatim")
    for question in questions:
        ask(page, question)
    picture(page, folder / ("console.png" if scheme == "light" else f"console-{scheme}.png"))
    if scheme == "light":
        page.locator("a.cite").first.click()
        page.locator("#reader mark").wait_for()
        picture(page, folder / "console-quotation.png")
    page.close()


def main() -> int:
    """Make the pictures; 1 where there is no browser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--document", type=Path, help="a file to read; one is made if none is given")
    parser.add_argument("--question", action="append", help="what to ask; may be repeated")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    options = parser.parse_args()
    path = chromium()
    if path is None:
        print("no Chromium on this machine: apt-get install chromium, or name one in CHROMIUM", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        document = options.document or Path(scratch) / "harbour-log.md"
        if options.document is None:
            document.write_text(log_book(NUM_ENTRIES))
        browser = playwright.chromium.launch(executable_path=path)
        for scheme in ("light", "dark"):
            with serving(Path(scratch) / scheme) as url:
                visit(browser, url, scheme, options.out, document, options.question or QUESTIONS)
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
