"""The whole way with real parts: `fano serve` as a process with the embedded model, a browser, a kill in between."""

import subprocess
import sys
from pathlib import Path

import pytest
from fakes_console import chromium, visiting
from fakes_process import Server
from playwright.sync_api import Browser, expect
from test_journey import NEEDLE, QUESTION, story

ROOT = Path(__file__).resolve().parents[2]
# Long enough that its reading is seen, short enough for a machine with two cores.
TEXT = f"{story(120, 1)} {NEEDLE} {story(180, 2)}"
NAME = "mill"


def test_read_ask_follow_save_kill_restore_ask(browser: Browser, tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    server.start()
    try:
        walk(browser, server)
    except BaseException:
        server.kill()
        raise
    assert server.stop() == 0, server.log.read_text()


def walk(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url) as visited:
        page = visited.open()
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#model")).to_contain_text("fano-reader")
        row = visited.upload("story.txt", TEXT)
        expect(row.locator(".doing")).to_contain_text("of")  # so many of so many
        expect(row).to_have_attribute("data-answerable", "true")
        expect(row).to_have_attribute("data-status", "ready", timeout=120_000)
        expect(row).to_contain_text("tokens · read")
        page.get_by_label("Answer", exact=True).select_option("verbatim")
        article = visited.ask(QUESTION)
        quote = article.locator("a.cite").inner_text()
        assert quote in NEEDLE
        article.locator("a.cite").click()
        expect(page.locator("#reader mark")).to_have_text(quote)
        page.keyboard.press("Escape")
        # What a longer document costs, and what it does not, from this page alone.
        expect(page.locator("#forecast")).to_contain_text("On the device: nothing more.")
        expect(page.locator("#bill .since")).to_contain_text("in the pools on the device not a byte more")

        # A first turn long enough that there is a state to keep.
        page.get_by_label("Conversation", exact=True).fill(NAME)
        page.get_by_label("Answer", exact=True).select_option("free")
        visited.ask(f"{story(12, 3)} What stood beside the lantern?")
        talk = page.locator(f'.session[data-name="{NAME}"]')
        talk.get_by_role("button", name="Save").click()
        expect(talk).to_contain_text("· saved")
        # What is said after that is not in what is restored.
        page.get_by_label("Answer", exact=True).select_option("verbatim")
        visited.ask(QUESTION)
        expect(page.locator("#talk-note")).to_contain_text("4 messages")
        expect(talk).to_contain_text("went on since")

        # The answer that is being written when the server dies is not taken for whole.
        page.get_by_label("Conversation", exact=True).fill("")
        page.get_by_label("Answer", exact=True).select_option("free")
        page.get_by_label("Question").fill("Tell me a long story about the harbour.")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".exchange").last).to_have_attribute("aria-busy", "true")
        server.kill()
        expect(page.locator(".exchange").last.locator(".wrong")).to_contain_text(
            "the connection to the server was lost"
        )
        expect(page.locator("#state")).to_have_text("no connection")
        server.start()
        expect(page.locator("#state")).to_have_text("ready")
        expect(row).to_have_attribute("data-status", "ready")

        page.get_by_label("Answer", exact=True).select_option("verbatim")
        talk.get_by_role("button", name="Go on").click()
        talk.get_by_role("button", name="Restore").click()
        expect(page.locator("#notices")).to_contain_text(f"{NAME} was restored")
        expect(page.locator("#talk-note")).to_contain_text("2 messages")
        again = visited.ask(QUESTION)
        assert again.locator("a.cite").first.inner_text() in TEXT
        expect(again.locator(".took")).to_contain_text("of them known")


@pytest.mark.slow
def test_the_pictures_of_the_documentation_are_made_by_one_command(tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("no Chromium on this machine")
    document = tmp_path / "short.txt"
    document.write_text(TEXT)
    command = [sys.executable, "-m", "bench.pictures.console", "--out", str(tmp_path / "docs"), "--document"]
    subprocess.run([*command, str(document), "--question", QUESTION], cwd=ROOT, check=True, timeout=400)
    made = {path.name for path in (tmp_path / "docs").iterdir()}
    assert made == {path.name for path in (ROOT / "docs").glob("console*.png")}
