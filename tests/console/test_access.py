"""The console for whoever has no mouse, a phone, a dark room, or ears in place of eyes; axe-core finds nothing."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fakes_console import Visit, Visits
from playwright.sync_api import Page, expect

TEXT = "The seal of container MSKU-0012345 is HL-88213-X. Invoice QX-7741-B was paid by Margarethe Oldenkamp."
PHONE = {"width": 360, "height": 740}
SETTINGS = [
    pytest.param({"color_scheme": "light"}, id="light"),
    pytest.param({"color_scheme": "dark"}, id="dark", marks=pytest.mark.slow),
    pytest.param({"color_scheme": "dark", "viewport": PHONE, "has_touch": True}, id="dark phone"),
    pytest.param(
        {"color_scheme": "light", "viewport": PHONE, "has_touch": True}, id="light phone", marks=pytest.mark.slow
    ),
]


def assert_clean(page: Page) -> None:
    """No violation of any of axe-core's rules, best practices among them."""
    found = Axe().run(page)
    told = [
        f"{each['id']} ({each['impact']}): {each['help']}\n"
        + "\n".join(node["html"][:200] for node in each["nodes"][:5])
        for each in found.response["violations"]
    ]
    assert not told, "\n".join(told)
    contrast = [each["id"] for each in found.response["passes"]]
    assert "color-contrast" in contrast and "label" in contrast


def assert_no_overflow(page: Page) -> None:
    """Nothing is wider than the window, and what must be hit with a finger is large enough (WCAG 2.5.8: 24 pixels)."""
    widths = page.evaluate("() => [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1], widths
    small = page.locator(
        "button:visible, select:visible, input:visible:not([type=checkbox]), summary:visible"
    ).evaluate_all(
        "(all) => all.filter((each) => each.getBoundingClientRect().height < 24).map((each) => each.outerHTML)"
    )
    assert small == []


def filled(visited: Visit, world: Any) -> None:
    """A page on which there is something of everything."""
    page = visited.page
    expect(visited.upload("lease.txt", TEXT)).to_have_attribute("data-status", "ready")
    broken = visited.upload("broken.pdf", b"%PDF-1.4\nnothing", "application/pdf")
    expect(broken).to_have_attribute("data-status", "failed")
    visited.upload("picture.png", b"\x89PNG\r\n\x1a\n" + bytes(100), "image/png")
    page.get_by_label("Conversation", exact=True).fill("mill")
    world.engine.enqueue(TEXT)
    visited.ask("Who paid invoice QX-7741-B?")
    page.get_by_label("Conversation", exact=True).fill("")
    world.engine.enqueue(TEXT)
    visited.ask("Who paid invoice QX-7741-B?").locator("summary").click()
    expect(page.locator(".notice.bad")).to_be_visible()
    expect(page.locator(".session")).to_be_visible()
    expect(page.locator("#forecast table")).to_be_visible()


@pytest.fixture(params=SETTINGS)
def furnished(request: pytest.FixtureRequest, visit: Visits) -> Iterator[Visit]:
    with visit(browse=request.param) as (world, visited):
        filled(visited, world)
        yield visited


def test_axe_finds_nothing_with_everything_on_the_page_nor_in_the_reader(furnished: Visit) -> None:
    page = furnished.page
    assert_clean(page)
    assert_no_overflow(page)
    page.locator("a.cite").first.click()
    expect(page.locator("#reader mark")).to_be_visible()
    page.get_by_label("Words").fill("Margarethe")
    page.get_by_label("Words").press("Enter")
    expect(page.locator("#pins li")).to_have_count(1)
    assert_clean(page)
    assert_no_overflow(page)
    page.keyboard.press("Escape")
    page.locator(".session").get_by_role("button", name="Fork").click()
    assert_clean(page)


@pytest.mark.parametrize(
    "browse", [{"viewport": PHONE, "color_scheme": "dark"}, pytest.param({}, marks=pytest.mark.slow)]
)
def test_axe_finds_nothing_before_anything_is_there_and_at_the_door(visit: Visits, browse: dict[str, Any]) -> None:
    with visit(browse=browse) as (_, visited):
        expect(visited.page.locator("#forecast table")).to_be_visible()
        assert_clean(visited.page)
        assert_no_overflow(visited.page)
        visited.page.evaluate("() => import('/console/api.js').then(({news}) => news.dispatchEvent("
                              "new CustomEvent('key', {detail: {message: 'the key is not known'}})))")  # fmt: skip
        expect(visited.page.locator("#door")).to_be_visible()
        assert_clean(visited.page)
        assert_no_overflow(visited.page)


def focused(page: Page) -> str:
    """What the next key goes to, and that one can see it."""
    name, outline = page.evaluate(
        """() => {
            const at = document.activeElement, {outlineStyle, outlineWidth} = getComputedStyle(at);
            return [at.id || at.textContent.trim(), outlineStyle === "none" ? 0 : parseFloat(outlineWidth)];
        }"""
    )
    assert outline >= 2, f"one cannot see that {name} has the focus"
    return str(name)


def test_all_of_it_can_be_done_with_the_keyboard_alone(visit: Visits) -> None:
    with visit() as (world, visited):
        page, press = visited.page, visited.page.keyboard.press
        expect(page.locator("#forecast table")).to_be_visible()
        press("Tab")
        assert focused(page) == "Skip to the question"
        press("Tab")
        assert focused(page) == "file"
        press("Tab")
        assert focused(page) == "Or paste a text"
        press("Enter")
        press("Tab")
        press("Tab")
        assert focused(page) == "paste"
        page.keyboard.type(TEXT)
        press("Tab")
        press("Enter")
        row = visited.document("pasted.txt")
        expect(row).to_have_attribute("data-status", "ready")
        press("Tab")
        assert focused(page).startswith("ask-doc")
        press("Space")
        expect(page.locator("#asked")).to_contain_text("No document")
        press("Space")
        for expected in ("Open", "Delete", "question"):
            press("Tab")
            assert focused(page) == expected
        page.keyboard.type("Who paid invoice QX-7741-B?")
        for expected in ("recall", "policy", "talk", "go"):
            press("Tab")
            assert focused(page) == expected
        world.engine.enqueue(TEXT)
        press("Enter")
        expect(page.locator(".exchange .took")).to_be_visible()
        # The answer stands before the question that is still to be asked.
        for _ in range(12):
            press("Shift+Tab")
            if page.evaluate("() => document.activeElement.classList.contains('cite')"):
                break
        press("Enter")
        expect(page.locator("#reader mark")).to_be_visible()
        for _ in range(6):
            press("Tab")
            if page.evaluate("() => document.activeElement.id === 'pin-words'"):
                break
        page.keyboard.type("Margarethe Oldenkamp")
        press("Enter")
        expect(page.locator("#pins li")).to_have_count(1)
        press("Escape")
        expect(page.locator("#reader")).to_be_hidden()
        assert page.evaluate("() => document.activeElement.classList.contains('cite')")


def test_what_happens_is_said_but_not_token_by_token(visit: Visits) -> None:
    with visit() as (world, visited):
        page = visited.page
        page.evaluate(
            """() => {
                window.said = [];
                new MutationObserver(() => window.said.push(document.getElementById("said").textContent))
                    .observe(document.getElementById("said"), {childList: true, characterData: true, subtree: true});
            }"""
        )
        world.engine.enqueue("", pieces=[f"word{number} " for number in range(200)])
        visited.ask("Say something long.")
        expect(page.locator("#said")).to_contain_text("Answer: word0 word1")
        assert len(page.evaluate("() => window.said")) <= 2
        # Of what comes in quick succession only the last is said.
        page.evaluate(
            """() => import("/console/page.js").then(({announce}) => {
                window.said = [];
                for (const words of ["one", "two", "three"]) announce(words);
                return new Promise((done) => setTimeout(done, 100)).then(() => announce("four"));
            })"""
        )
        expect(page.locator("#said")).to_have_text("four")
        assert page.evaluate("() => window.said") == ["four"]
        live = page.locator("#exchanges [aria-live], #documents [aria-live]").count()
        assert live == 0


def test_nothing_moves_for_whoever_asked_for_rest(visit: Visits) -> None:
    with visit(browse={"reduced_motion": "reduce"}) as (_, visited):
        moving = visited.page.evaluate(
            """() => {
                const bar = document.createElement("progress");
                document.querySelector("main").append(bar);
                return [getComputedStyle(bar).animationName, document.getAnimations().length];
            }"""
        )
        assert moving == ["none", 0]


@pytest.mark.slow
@pytest.mark.parametrize("scale", [2.0, 4.0])
def test_letters_may_be_enlarged(visit: Visits, scale: float) -> None:
    """Four times as large is 320 pixels of a window of 1280: one column, nothing cut off (WCAG 1.4.10)."""
    with visit(browse={"viewport": {"width": round(1280 / scale), "height": round(900 / scale)}}) as (_, visited):
        expect(visited.page.locator("#forecast table")).to_be_visible()
        assert_no_overflow(visited.page)
