"""The reference at /docs in a browser: it is there, it tells of the routes, and it asks nothing of any other place."""

from fakes_console import Visits
from playwright.sync_api import expect


def test_the_reference_opens_and_shows_an_example(visit: Visits) -> None:
    with visit("/docs") as (_, visited):
        page = visited.page
        expect(page.get_by_role("heading", name="Fano")).to_be_visible()
        page.locator("#operations-tag-responses").click()
        page.locator(".opblock", has_text="Create Response").first.click()
        expect(page.get_by_text("Reply to a text or a conversation; with the tool").first).to_be_visible()
        expect(page.locator(".examples-select-element").first).to_contain_text("Ask the files of a vector store")
