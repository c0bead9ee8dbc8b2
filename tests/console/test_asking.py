"""What a person does: gives documents, watches, asks, follows a quotation, pins, names a conversation."""

import json
import time

import httpx
import pytest
from fakes_console import EXPECTED, Visits
from fakes_server import MODEL
from playwright.sync_api import expect

# Characters outside the basic plane before what is quoted: a browser counts them double, the API does not.
TEXT = (
    "The 🙂🙂 vault opens at noon.\r\nInvoice QX-7741-B was paid by Margarethe Oldenkamp. "
    "The seal of container MSKU-0012345 is HL-88213-X. "
    + "Nobody spoke of the harbour. " * 120
    + "The ferry leaves at dawn."
)
QUESTION = "Who paid invoice QX-7741-B?"
PAID = "Margarethe Oldenkamp"
SEAL = "HL-88213-X"


def test_a_document_is_dropped_read_asked_and_the_quotation_followed(visit: Visits) -> None:
    with visit() as (_, visited):
        page = visited.page
        expect(page.locator("#state")).to_have_text("ready")
        page.evaluate(
            """(text) => {
                const dropped = new DataTransfer();
                dropped.items.add(new File([text], "lease.txt", {type: "text/plain"}));
                document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true}));
            }""",
            TEXT,
        )
        row = visited.document("lease.txt")
        expect(row).to_have_attribute("data-status", "ready")
        expect(row.get_by_role("checkbox")).to_be_checked()
        expect(page.locator("#asked")).to_have_text("Asking lease.txt")
        page.get_by_label("Answer", exact=True).select_option("verbatim")
        article = visited.ask("What is the seal of container MSKU-0012345?")
        expect(article.locator(".words")).to_have_text(SEAL)
        expect(article.locator(".took")).to_contain_text("no model was asked")
        article.locator("a.cite").click()
        expect(page.locator("#reader mark")).to_have_text(SEAL)
        start = TEXT.index(SEAL)
        expect(page.locator("#reader-place")).to_contain_text(f"characters {start} to {start + len(SEAL)}")
        # The text around it is that of the document, line ends and all; more of it comes when asked for.
        shown = page.locator("#text").evaluate("(text) => text.textContent")
        assert TEXT.startswith(shown) and len(shown) < len(TEXT)
        page.get_by_role("button", name="Later text").click()
        expect(page.locator("#text")).to_contain_text("ferry leaves at dawn.")
        assert page.locator("#text").evaluate("(text) => text.textContent") == TEXT
        expect(page.get_by_role("button", name="Later text")).to_be_hidden()
        page.keyboard.press("Escape")
        expect(page.locator("#reader")).to_be_hidden()
        # Whoever came by the quotation goes on there.
        expect(article.locator("a.cite")).to_be_focused()


def test_an_answer_comes_as_it_is_written_and_what_it_quotes_is_marked(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
        quoted = "Invoice QX-7741-B was paid by Margarethe Oldenkamp."
        world.engine.enqueue("", pieces=["They say 🙂: ", *(f"{word} " for word in quoted.split()), "So be it."])
        world.engine.stall()
        page.get_by_label("Question").fill(QUESTION)
        page.get_by_label("Question").press("Control+Enter")
        expect(page.get_by_role("button", name="Stop")).to_be_visible()
        expect(page.locator(".exchange")).to_have_attribute("aria-busy", "true")
        world.engine.go_on()
        article = page.locator(".exchange")
        expect(article.locator(".took")).to_contain_text("Held")
        expect(article.locator(".words")).to_have_text(f"They say 🙂: {quoted} So be it.")
        expect(article.locator("a.cite")).to_have_text(quoted.removesuffix("."))
        expect(page.locator("#said")).to_contain_text("1 quotation")
        article.get_by_text("passages found").or_(article.get_by_text("passage found")).click()
        article.locator(".sources a").first.click()
        expect(page.locator("#reader mark")).to_contain_text("QX-7741-B")


def test_an_answer_is_stopped_with_escape_or_the_button_and_the_work_with_it(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        world.engine.enqueue("", pieces=["word "] * 100_000)
        page.get_by_label("Question").fill("Say something.")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".exchange .words")).to_contain_text("word")
        page.keyboard.press("Escape")
        expect(page.locator(".exchange")).to_contain_text("Stopped here.")
        expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
        world.engine.enqueue("", pieces=["more "] * 100_000)
        page.get_by_label("Question").fill("Say more.")
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(page.locator(".exchange").last.locator(".words")).to_contain_text("more")
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".exchange").last).to_contain_text("Stopped here.")
        expect(page.locator(".exchange")).to_have_count(2)
        deadline = time.monotonic() + 60
        while len(world.engine.aborted) < 2:
            assert time.monotonic() < deadline, world.engine.aborted
            time.sleep(0.02)


def test_several_documents_are_asked_together_and_each_is_left_out_at_will(visit: Visits) -> None:
    with visit() as (_, visited):
        page = visited.page
        for name, text in (("one.txt", "Ann has the red key."), ("two.txt", "Bob has the blue key.")):
            expect(visited.upload(name, text)).to_have_attribute("data-status", "ready")
        expect(page.locator("#asked")).to_contain_text("one.txt")
        with page.expect_request("**/v1/ask") as asked:
            visited.ask("Who has the key?")
        sent = asked.value.post_data_json
        assert len(sent["documents"]) == 2 and sent["recall"] == "grounded"
        visited.document("one.txt").get_by_role("checkbox").uncheck()
        expect(page.locator("#asked")).to_have_text("Asking two.txt")
        with page.expect_request("**/v1/ask") as asked:
            visited.ask("Who has the blue key?")
        assert len(asked.value.post_data_json["documents"]) == 1


def test_a_fact_is_pinned_by_selecting_or_by_writing_it_listed_and_unpinned(visit: Visits) -> None:
    with visit() as (_, visited):
        page = visited.page
        expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
        visited.document("lease.txt").get_by_role("button", name="Open").click()
        expect(page.locator("#text")).to_contain_text("vault opens")
        page.evaluate(
            """(words) => {
                const node = document.getElementById("text").firstChild, at = node.data.indexOf(words);
                document.getSelection().setBaseAndExtent(node, at, node, at + words.length);
            }""",
            "vault opens at noon.\r\nInvoice",
        )
        page.get_by_label("Asked by").fill("hours")
        with page.expect_request("**/facts") as sent:
            page.get_by_role("button", name="Pin", exact=True).click()
        words = "vault opens at noon.\r\nInvoice"
        start = TEXT.index(words)
        assert sent.value.post_data_json == {"start": start, "end": start + len(words), "key": "hours"}
        expect(page.locator("#pins li")).to_contain_text("asked by hours")
        expect(page.locator("#text .pinned")).to_have_count(1)
        page.get_by_label("Words").fill("Margarethe Oldenkamp")
        page.get_by_label("Words").press("Enter")
        expect(page.locator("#pins li")).to_have_count(2)
        page.get_by_label("Words").fill("what is not there")
        page.get_by_label("Words").press("Enter")
        expect(page.locator("#pin-said")).to_contain_text("do not stand")
        page.get_by_role("button", name="Unpin vault").click()
        expect(page.locator("#pins li")).to_have_count(1)
        page.locator("#pins button.quote").click()
        expect(page.locator("#reader mark")).to_have_text(PAID)


def test_a_conversation_is_named_gone_on_with_saved_forked_restored_and_deleted(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        page.get_by_label("Conversation", exact=True).fill("not a name!")
        expect(page.locator("#talk-note")).to_contain_text("letters, digits")
        page.get_by_label("Conversation", exact=True).fill("mill")
        world.engine.enqueue("Good morning.")
        with page.expect_request("**/chat/completions") as first:
            visited.ask("Hello")
        assert first.value.post_data_json["fano"] == {"session": "mill"}
        talk = page.locator(".session", has_text="mill").first
        talk.get_by_role("button", name="Save").click()
        expect(page.locator("#notices")).to_contain_text("mill was saved")
        talk.get_by_role("button", name="Fork").click()
        page.get_by_label("Name of the fork").fill("other")
        page.get_by_role("dialog").get_by_role("button", name="Fork").click()
        expect(page.locator(".session")).to_have_count(2)
        talk.get_by_role("button", name="Restore").click()
        expect(page.locator("#notices")).to_contain_text("mill was restored")
        page.locator(".session", has_text="other").get_by_role("button", name="Go on").click()
        expect(page.get_by_label("Question")).to_be_focused()
        with page.expect_request("**/chat/completions") as again:
            visited.ask("Third")
        sent = again.value.post_data_json
        assert [each["content"] for each in sent["messages"]] == ["Hello", "Good morning.", "Third"]
        # What the tab knows it still knows after a reload; what the server remembers of a response is not of the page.
        httpx.post(f"{visited.url}/v1/responses", json={"model": MODEL, "input": "Hello"}).raise_for_status()
        assert len(httpx.get(f"{visited.url}/v1/sessions").json()["data"]) == 3
        page.reload()
        page.locator(".session", has_text="other").get_by_role("button", name="Go on").click()
        expect(page.locator("#talk-note")).to_contain_text("4 messages")
        page.locator(".session", has_text="other").get_by_role("button", name="Delete").click()
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.locator(".session")).to_have_count(1)


def test_recall_and_policy_are_those_the_server_offers_and_are_sent(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page

        def more(route: object) -> None:
            reply = route.fetch()  # type: ignore[attr-defined]
            told = reply.json()
            told["data"][0]["fano"]["policies"] = ["full", "window", "of-tomorrow"]
            route.fulfill(response=reply, json=told)  # type: ignore[attr-defined]

        expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
        names = page.locator("#policy option").evaluate_all("(all) => all.map((each) => each.value)")
        offered = page.evaluate("async () => (await (await fetch('/v1/models')).json()).data[0].fano.policies")
        assert names == offered
        page.get_by_label("Attention").select_option("full")
        with page.expect_request("**/chat/completions") as asked:
            visited.ask(QUESTION)
        assert asked.value.post_data_json["fano"]["policy"] == {"name": "full"}
        assert world.engine.requests[-1].policy is not None and world.engine.requests[-1].policy.name.value == "full"
        page.get_by_label("Answer", exact=True).select_option("free")
        expect(page.locator("#asked")).to_contain_text("No document is looked at")
        page.route("**/v1/models", more)
        page.reload()
        expect(page.locator("#policy option")).to_have_count(3)
        # Of a policy that it does not know yet the server says so, and the page passes it on.
        visited.errors[:] = [each for each in visited.errors if EXPECTED not in each]


def test_deleting_names_what_goes_with_it(visit: Visits) -> None:
    with visit() as (_, visited):
        page = visited.page
        expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
        page.get_by_label("Conversation", exact=True).fill("about-it")
        visited.ask(QUESTION)
        expect(page.locator(".session")).to_have_count(1)
        visited.document("lease.txt").get_by_role("button", name="Delete").click()
        sure = page.get_by_role("dialog")
        sure.get_by_role("button", name="Keep").click()
        expect(visited.document("lease.txt")).to_be_visible()
        visited.document("lease.txt").get_by_role("button", name="Delete").click()
        sure.get_by_role("button", name="Delete").click()
        expect(sure).to_contain_text("Conversations hold it")
        expect(sure).to_contain_text("about-it")
        sure.get_by_role("button", name="Delete all of it").click()
        expect(page.locator(".document")).to_have_count(0)
        expect(page.locator(".session")).to_have_count(0)


HOSTILE = "</p><script>window.hit = 1</script><img src=x onerror='window.hit = 1'>{{7*7}}${7*7}<b>bold</b> <!--"


@pytest.mark.parametrize("name", ["<img src=x onerror=window.hit=1>.txt", "'><svg onload=window.hit=1>.txt"])
def test_what_documents_models_and_names_say_is_only_ever_text(visit: Visits, name: str) -> None:
    with visit() as (world, visited):
        page = visited.page
        text = f"The key code ZZ-11-Q is {HOSTILE} and no other."
        row = visited.upload(name, text)
        expect(row).to_have_attribute("data-status", "ready")
        expect(row.locator(".name")).to_contain_text(".txt")
        world.engine.enqueue("", pieces=[f"The key code ZZ-11-Q is {HOSTILE}", " <i>so</i>"])
        article = visited.ask(f"What is the key code ZZ-11-Q? {HOSTILE}")
        expect(article.locator(".words")).to_contain_text("<i>so</i>")
        expect(article.locator("h3")).to_contain_text(HOSTILE)
        article.locator("summary").click()
        article.locator(".sources a").first.click()
        expect(page.locator("#text")).to_contain_text(HOSTILE)
        page.get_by_label("Words").fill(HOSTILE)
        page.get_by_label("Words").press("Enter")
        expect(page.locator("#pins li")).to_contain_text(HOSTILE)
        page.keyboard.press("Escape")
        assert page.evaluate("() => window.hit") is None
        elements = page.locator("main script, main img, main i, dialog script, dialog img").count()
        assert elements == 0
        # And were it tried, the policy would not let it.
        refused = page.evaluate(
            """() => {
                try { document.body.innerHTML += "<b>x</b>"; } catch (error) { return error.name; }
            }"""
        )
        assert refused == "TypeError"
        visited.errors[:] = [each for each in visited.errors if "TrustedHTML" not in each]
        assert json.dumps(visited.errors) == "[]"
