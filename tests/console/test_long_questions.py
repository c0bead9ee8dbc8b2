"""A long text pasted with the question: alone and beside a document; and what a longer one costs, and where."""

import os

from fakes_console import Visits
from fakes_prompts import ASKED, CODE, PASTED
from playwright.sync_api import expect

from model.policy import AttentionPolicy, PolicyName

OWNER = "The Halvorsen turbine belongs to Tobias Wrenfield."
ARCHIVE = AttentionPolicy(PolicyName.ARCHIVE, 64, 1024)


def test_a_text_that_is_pasted_with_the_question_is_searched_and_quoted(visit: Visits) -> None:
    pasted = f"🙂 {PASTED}"
    with visit() as (world, visited):
        expect(visited.page.locator("#state")).to_have_text("ready")
        world.engine.enqueue("", pieces=["QX-7741-B", "."])
        article = visited.ask(f"{pasted}\n\n{ASKED}")
        # The question as it begins and as it asks, not all that was pasted.
        heading = article.locator("h3").inner_text()
        assert heading.startswith("🙂") and heading.endswith(ASKED) and len(heading) < 700
        expect(article.locator("q.cite")).to_have_text("QX-7741-B")
        start = pasted.index("QX-7741-B")
        expect(article.locator(".citations")).to_contain_text(
            f"message 1 of this conversation, characters {start:,} to {start + 9:,}"
        )
        expect(article.locator(".around")).to_contain_text(CODE)
        expect(article.locator(".took")).to_contain_text("in the host's memory until its room is wanted")
        expect(article.locator(".took")).to_contain_text("read, ")


def test_a_text_beside_a_document(visit: Visits) -> None:
    with visit() as (world, visited):
        expect(visited.upload("owners.txt", OWNER)).to_have_attribute("data-status", "ready")
        world.engine.enqueue("", pieces=["QX-7741-B, of Tobias Wrenfield."])
        article = visited.ask(f"{PASTED}\n\n{ASKED[:-1]}, and to whom does it belong?")
        expect(article.locator("q.cite")).to_have_text("QX-7741-B")
        expect(article.locator("a.cite")).to_have_text("Tobias Wrenfield")
        article.locator("a.cite").click()
        expect(visited.page.locator("#reader mark")).to_have_text("Tobias Wrenfield")


def test_what_grows_with_a_document_is_told_for_the_host_too(visit: Visits) -> None:
    with visit(policy=ARCHIVE) as (_, visited):
        told = visited.page.locator("#forecast")
        expect(told).to_contain_text("On the device: nothing more.")
        expect(told).to_contain_text("On the host, and it grows with the document: its text, the index")
        expect(told).to_contain_text("under archive also the keys and values that left the window: ")
        expect(told.locator("td .host").last).to_contain_text("on the host")
        if directory := os.environ.get("FANO_SCREENSHOTS"):
            visited.page.locator("#forecast").screenshot(path=f"{directory}/forecast.png")
    with visit() as (_, visited):
        expect(visited.page.locator("#forecast")).to_contain_text("its vectors")
