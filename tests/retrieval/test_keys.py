import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.keys import MAX_KEY_CHARACTERS, fold, query_keys


def raws(question: str) -> list[str]:
    return [key.raw for key in query_keys(question)]


@pytest.mark.parametrize(
    ("raw", "forms"),
    [
        ("INV-2024-000123", ("INV-2024-000123", "inv-2024-000123", "inv2024000123")),
        ("inv2024 000123", ("inv2024 000123", "inv2024000123")),
        ("A-1234.5/x", ("A-1234.5/x", "a-1234.5/x", "a1234.5x", "a12345x")),
        ("$1,234.50", ("$1,234.50", "1234.5 usd", "1234.5")),
        ("1 234,50 USD", ("1 234,50 USD", "1 234,50 usd", "1234.5 usd", "1234.5")),
        ("$1.2 million", ("$1.2 million", "1200000 usd", "1200000")),
        ("1.234", ("1.234", "1234")),
        ("1,234", ("1,234", "1234", "1.234")),
        ("１２３４", ("１２３４", "1234")),
        ("12.5 percent", ("12.5 percent", "12.5 %", "12.5")),
        ("30-day", ("30-day", "30 day")),
        ("5th of March 2024", ("5th of March 2024", "5th of march 2024", "2024-03-05")),
        ("05/03/2024", ("05/03/2024", "2024-03-05", "2024-05-03")),
        ("31/02/2024", ("31/02/2024", "31022024")),
        ("2024年3月5日", ("2024年3月5日", "2024-03-05")),
        ("192.168.1.1", ("192.168.1.1",)),
        ("  Invoice\n number: ", ("Invoice number:", "invoice number", "invoicenumber")),
        ("STRASSE", ("STRASSE", "strasse")),
        ("--", ()),
        ("", ()),
    ],
)
def test_forms_from_exact_to_folded(raw, forms):
    assert fold(raw) == forms


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("550e8400-e29b-41d4-a716-446655440000", "550E8400E29B41D4A716446655440000"),
        ("INV-2024-000123", "INV2024000123"),
        ("INV\u20112024\u2011000123", "INV 2024 000123"),
        ("$1,234.50", "1234.50"),
        ("$1,234.50", "1 234,50 USD"),
        ("1.234,50 €", "EUR 1234.5"),
        ("March 5, 2024", "2024-03-05"),
        ("5. März 2024", "5-Mar-2024"),
        ("straße", "STRASSE"),
        ("Invoice number", "invoice_number"),
        ("978-3-16-148410-0", "9783161484100"),
        ("thirty (30) days", "30-day"),
        ("P1Y6M", "one year and six months"),
        ("+49 (0)30 1234567", "0049 30 123 45 67"),
        ("+49 30 1234567", "030 1234567"),
        ("+1 (555) 123-4567", "555.123.4567"),
        ("Jane.Doe@Example.org", "mailto:jane.doe@example.org"),
        ("https://www.example.org/a/", "example.org/a"),
    ],
)
def test_two_ways_to_write_a_thing_share_a_form(one, other):
    assert set(fold(one)) & set(fold(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("$5", "5 days"),
        ("$1,234.50", "$123,450"),
        ("192.168.1.1", "19.216.81.1"),
        ("A-1", "A-10"),
        ("-5 °C", "5 °F"),
        ("30 days", "30 months"),
        ("30 business days", "30 days"),
        ("jane@doeexample.org", "janedoe@example.org"),
        ("https://ab.cd/ef", "https://abc.d/ef"),
        ("+49 30 1234567", "+43 30 1234568"),
    ],
)
def test_different_things_share_none(one, other):
    assert not set(fold(one)) & set(fold(other))


def test_keys_have_a_greatest_length():
    assert [len(form) for form in fold("x" * 1000)] == [MAX_KEY_CHARACTERS]


@pytest.mark.parametrize(
    ("question", "raw"),
    [
        ("What is the invoice number?", "invoice number"),
        ("What is the deadline?", "deadline"),
        ("What does 550E8400E29B41D4A716446655440000 stand for?", "550E8400E29B41D4A716446655440000"),
        ("Who sent INV 2024 000123 to us?", "INV 2024 000123"),
        ("Who paid $1,234.50?", "$1,234.50"),
        ("What happened on March 5, 2024?", "March 5, 2024"),
        ('Where does "the red car" stand?', "the red car"),
        ("What is MAX-RETRIES' value?", "MAX-RETRIES"),
        ("What is the date of birth of Ada?", "date of birth"),
        ("What is A-1234.5/x's weight?", "A-1234.5/x"),
    ],
)
def test_a_question_names_its_keys(question, raw):
    assert raw in raws(question)


def test_codes_stand_before_phrases_and_plain_words_are_no_keys():
    assert raws("Is the total of INV-7781 due?")[0] == "INV-7781"
    assert raws("Why did he leave?") == []
    assert raws("") == []


def test_every_key_carries_its_forms():
    assert {key.raw: key.folded for key in query_keys("Is INV-7781 due?")}["INV-7781"] == fold("INV-7781")


def test_a_long_question_is_looked_at_in_part():
    assert len(query_keys("a1b2 " * 100_000)) < 20


_NUMBER_WORDS = {1: "one", 12: "twelve", 30: "thirty", 45: "forty-five", 90: "ninety", 120: "one hundred and twenty"}


@given(
    st.sampled_from(sorted(_NUMBER_WORDS)),
    st.sampled_from(["day", "week", "month", "year"]),
    st.sampled_from(["{n} {u}s", "{w} {u}s", "{w} ({n}) {u}s", "{n}-{u}", "{n} {u}", "{W} {U}S", "P{n}{p}"]),
    st.sampled_from(["{n} {u}s", "{w} {u}s", "{w} ({n}) {u}s", "P{n}{p}"]),
)
def test_a_duration_meets_its_key_however_it_is_asked(number, unit, stored, asked):
    word = _NUMBER_WORDS[number]
    names = {"n": number, "u": unit, "w": word, "W": word.upper(), "U": unit.upper(), "p": unit[0].upper()}
    forms = set(fold(stored.format(**names)))
    question = f"What is due within {asked.format(**names)} of it?"
    assert any(forms & set(key.folded) for key in query_keys(question))
    assert not forms & set(fold(f"{number + 1} {unit}s"))


@given(
    st.from_regex(r"[a-z]{2,8}(\.[a-z]{2,8})?", fullmatch=True),
    st.from_regex(r"[a-z]{3,9}\.(org|com|de)", fullmatch=True),
)
def test_addresses_meet_their_keys_however_they_are_asked(name, host):
    email = set(fold(f"{name}@{host}"))
    assert any(email & set(key.folded) for key in query_keys(f"Who is {name.upper()}@{host.title()}?"))
    url = set(fold(f"https://www.{host}/{name}/"))
    for asked in (f"http://{host}/{name}", f"www.{host}/{name}", f"{host}/{name}/"):
        assert url & set(fold(asked))
    assert not url & set(fold(f"https://{host}/{name}x"))


def test_a_code_in_parts_may_end_with_a_letter():
    forms = {form for key in query_keys("What is SN 094608 A?") for form in key.folded}
    assert fold("SN-094608-A")[-1] in forms
