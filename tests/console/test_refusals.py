"""What goes wrong is said where it happens, in words, with what to do; nothing looks as if it had worked."""

from pathlib import Path

import pytest
from fakes_console import Visits
from fakes_library import FakeLibrary
from playwright.sync_api import expect

from model.errors import GenerationFailed, QueueFull
from server.keys import Keys
from server.readiness import Stage

KEY = "a-long-random-string"
TEXT = "Invoice QX-7741-B was paid by Margarethe Oldenkamp."


def test_a_server_that_loads_drains_or_fails_says_so_and_the_page_goes_on_by_itself(visit: Visits) -> None:
    with visit() as (world, visited):
        page, readiness = visited.page, world.app.state.fano.readiness
        state = page.locator("#state")
        expect(state).to_have_text("ready")
        readiness.stage, readiness.reason = Stage.LOADING, "the model and the library are loading"
        article = visited.ask("Hello")
        expect(article).to_contain_text("No answer: the server is not ready")
        expect(state).to_have_text("loading the model")
        readiness.ready()
        expect(state).to_have_text("ready")
        article.get_by_role("button", name="Ask again").click()
        expect(page.locator(".exchange .words")).to_have_text("ok")
        readiness.drain()
        expect(visited.ask("Hello again")).to_contain_text("No answer")
        expect(state).to_have_text("shutting down")
        expect(page.locator("#notices")).to_contain_text("takes nothing new")
        readiness.stage = Stage.READY
        expect(state).to_have_text("ready")
        expect(page.locator("#notices")).not_to_contain_text("takes nothing new")
        readiness.fail("the disk is gone")
        visited.ask("Once more")
        expect(state).to_have_text("failed")
        expect(page.locator("#notices")).to_contain_text("the disk is gone")


def test_a_key_is_asked_for_kept_in_the_tab_and_asked_for_again_when_it_ends(visit: Visits, tmp_path: Path) -> None:
    _, text = Keys(tmp_path / "data").add("laptop")
    with visit(host="0.0.0.0") as (_, visited):
        page = visited.page
        expect(page.locator("#state")).to_have_text("a key is needed")
        key = page.get_by_label("Key", exact=True)
        expect(key).to_be_focused()
        expect(page.locator("#main")).to_be_hidden()
        key.press("Enter")
        expect(page.locator("#door-why")).to_contain_text("empty")
        key.fill("not the key")
        key.press("Enter")
        expect(page.locator("#door-why")).to_contain_text("was not taken")
        key.fill(text)
        key.press("Enter")
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#bill .sum")).to_be_visible()
        expect(page.locator("#door")).to_be_hidden()
        kept = page.evaluate(
            "() => [JSON.stringify(localStorage), document.cookie, sessionStorage.getItem('fano-key')]"
        )
        assert kept == ["{}", "", text]
        # The page itself comes with a 401 when it is loaded anew, and has its key.
        assert page.reload().status == 401
        expect(page.locator("#state")).to_have_text("ready")
        assert visited.ask("Hello").locator(".words").inner_text() == "ok"
        Keys(tmp_path / "data").revoke("laptop")
        page.get_by_label("Question").fill("Hello again")
        page.get_by_label("Question").press("Control+Enter")
        expect(page.locator("#door-why")).to_contain_text("was not taken")
        expect(page.locator("#main")).to_be_hidden()


def test_files_that_are_refused_or_fail_are_named_with_the_reason(visit: Visits) -> None:
    with visit(max_upload_bytes=2000) as (_, visited):
        page = visited.page
        notices = page.locator("#notices")
        page.get_by_label("Drop a file here").set_input_files(
            {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\r\n\x1a\n" + bytes(100)}
        )
        expect(notices).to_contain_text("picture.png was not taken")
        page.get_by_label("Drop a file here").set_input_files(
            {"name": "long.txt", "mimeType": "text/plain", "buffer": b"word " * 1000}
        )
        expect(notices).to_contain_text("long.txt was not taken")
        expect(notices).to_contain_text("FANO_MAX_UPLOAD_BYTES")
        expect(page.locator(".document")).to_have_count(0)
        row = visited.upload("broken.pdf", b"%PDF-1.4\nnothing of a page", "application/pdf")
        expect(row).to_have_attribute("data-status", "failed")
        expect(row.locator(".wrong")).to_contain_text("(")
        expect(row.get_by_role("button", name="Open")).to_be_disabled()
        # It cannot be asked, and is not.
        expect(row.get_by_role("checkbox")).to_be_disabled()
        expect(page.locator("#asked")).to_contain_text("No document is chosen")
        page.get_by_text("Or paste a text").click()
        page.get_by_role("button", name="Read this text").click()
        expect(notices).to_contain_text("no text in the field")
        page.get_by_role("button", name="Dismiss this notice").first.click()


def test_what_cannot_be_asked_yet_says_how_far_it_is(visit: Visits) -> None:
    library = FakeLibrary()
    library.hold()
    with visit(library=library) as (_, visited):
        page = visited.page
        row = visited.upload("lease.txt", TEXT)
        expect(row.locator(".doing")).to_contain_text("waiting for its turn")
        expect(page.locator("#asked")).to_contain_text("not yet")
        article = visited.ask("Who paid invoice QX-7741-B?")
        expect(article).to_contain_text("cannot be asked yet; it is queued, 12 s left")
        library.release()
        expect(row).to_have_attribute("data-status", "ready")
        article.get_by_role("button", name="Ask again").click()
        expect(page.locator(".exchange .took")).to_contain_text("Held")


def test_a_full_queue_and_a_failure_on_the_way_are_told_apart(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        world.engine.refuse(QueueFull(64, 64, 3))
        expect(visited.ask("Hello")).to_contain_text("too many are waiting already; try again in 3 seconds")
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled()
        world.engine.enqueue("half of an", error=GenerationFailed(RuntimeError("the pool is gone")))
        article = visited.ask("Hello")
        expect(article.locator(".words")).to_contain_text("half of")
        expect(article).to_contain_text("not the whole answer")
        # What was asked is not lost, and the next question is answered.
        expect(page.get_by_label("Question")).to_have_value("Hello")
        assert visited.ask("Hello").locator(".words").inner_text() == "ok"
        page.get_by_label("Question").fill("  ")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.get_by_label("Question")).to_have_attribute("aria-invalid", "true")


def test_the_quotation_of_a_document_that_is_gone_says_so(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
        world.engine.enqueue(TEXT)
        article = visited.ask("Who paid invoice QX-7741-B?")
        expect(article.locator("a.cite")).to_be_visible()
        page.evaluate(
            """async () => {
                const {data} = await (await fetch("/v1/documents")).json();
                await fetch(`/v1/documents/${data[0].id}`, {method: "DELETE"});
            }"""
        )
        article.locator("a.cite").click()
        expect(page.locator("#reader-place")).to_contain_text("was deleted")


def test_a_server_that_is_gone_is_told_and_found_again(visit: Visits) -> None:
    with visit() as (_, visited):
        page = visited.page
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#bill .sum")).to_be_visible()
        page.context.set_offline(True)
        expect(page.locator("#state")).to_have_text("no connection")
        expect(page.locator("#notices")).to_contain_text("no connection to the server")
        expect(page.locator("#bill-wait")).to_contain_text("The bill is as it was at")
        expect(visited.ask("Hello")).to_contain_text("the connection to the server was lost")
        page.context.set_offline(False)
        expect(page.locator("#state")).to_have_text("ready")
        expect(page.locator("#bill-wait")).to_be_hidden()


@pytest.mark.slow
def test_lists_longer_than_a_page_are_shown_whole(visit: Visits) -> None:
    library = FakeLibrary()
    for number in range(120):
        library.put(f"Text {number}.", f"note-{number}.txt")
    with visit(library=library) as (_, visited):
        expect(visited.page.locator(".document")).to_have_count(120)
        # The newest comes first and is what is asked, until something else is chosen.
        expect(visited.page.locator(".document").first).to_contain_text("note-119.txt")
        expect(visited.page.locator("#asked")).to_have_text("Asking note-119.txt")
