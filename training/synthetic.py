"""Made-up passages with look-alike facts: sentences, key-value lines, table rows; questions in other words."""
# ruff: noqa: E501  (tables of sentences read better in long lines)

from __future__ import annotations

import random
import string
from dataclasses import dataclass

FIRST = """Ada Boris Carla Dmitri Elena Farid Grace Hugo Ines Jonas Karin Liam Mona Nadia Omar Petra Quentin Rosa Samir Tessa
Ugo Vera Walter Xenia Yusuf Zoe Anders Bianca Cormac Deepa Emil Fiona Gustav Hana Igor Judith Kofi Lena Marco Noor""".split()
LAST = """Adler Brandt Castillo Dahl Eriksen Fontaine Gruber Haddad Ivanova Jensen Kowalski Lindgren Moreau Novak Okafor
Petrov Quist Rossi Sato Tanaka Ulrich Vargas Weiss Yamada Zimmer Baptiste Chaudhry Duarte Farrell Greco""".split()
PLACES = """Lisbon Oslo Nairobi Quito Hanoi Riga Tunis Perth Leeds Malmo Porto Graz Bergen Cusco Osaka Turin Ghent Lyon
Denver Tampa Bergamo Odense Galway Zagreb Split Tartu Winnipeg Darwin Salta Kyoto""".split()
THINGS = """archive turbine reactor greenhouse library warehouse pump bridge elevator generator laboratory server printer
boiler freezer telescope orchard mill tunnel ferry vault workshop cabin kiln antenna battery compressor conveyor furnace
garage hangar museum observatory pavilion quarry refinery shed terminal valve windmill""".split()
COLOURS = "red blue green amber violet silver northern southern eastern western upper lower old new main spare".split()
PROJECTS = """Falcon Juniper Basalt Meridian Lantern Cobalt Orchid Summit Harbor Tundra Willow Comet Ember Granite Heron
Indigo Jasper Kestrel Lotus Maple Nimbus Onyx Pelican Quartz Raven Sable Topaz Umber Vesper Zephyr""".split()
MONTHS = """January February March April May June July August September October November December""".split()
WORDS = """copper saddle violin lantern pepper marble walnut velvet ginger anchor button cactus dagger easel feather goblet
hammer island jacket kettle ladder mirror needle oyster parcel quiver ribbon satchel teapot urchin vessel whistle""".split()


@dataclass(frozen=True, slots=True)
class Made:
    """A sentence or line with one fact: `text[start:end]` answers each of the questions."""

    text: str
    start: int
    end: int
    questions: tuple[str, ...]


def person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def place(rng: random.Random) -> str:
    return rng.choice(PLACES)


def thing(rng: random.Random) -> str:
    return f"{rng.choice(COLOURS)} {rng.choice(THINGS)}"


def project(rng: random.Random) -> str:
    return rng.choice(PROJECTS)


def code(rng: random.Random) -> str:
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 3)))
    number = "".join(rng.choices(string.digits, k=rng.randint(2, 6)))
    tail = "".join(rng.choices(string.digits + string.ascii_uppercase, k=rng.randint(1, 3)))
    return rng.choice(
        [f"{letters}-{number}", f"{letters}-{number}-{tail}", number, f"{letters}{number}", f"{number}-{tail}"]
    )


def amount(rng: random.Random) -> str:
    value = rng.choice([rng.randint(2, 99), rng.randint(100, 999), rng.randint(1, 99) * 1000 + rng.randint(0, 999)])
    form = f"{value:,}" if rng.random() < 0.8 else str(value)
    return rng.choice(["${}", "{} euros", "EUR {}", "{} dollars", "${}.50", "{} million dollars"]).format(form)


def date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(MONTHS), rng.randint(1900, 2030)
    return rng.choice(
        [f"{day} {month} {year}", f"{month} {day}, {year}", f"{year}-{MONTHS.index(month) + 1:02}-{day:02}"]
    )


def count(rng: random.Random) -> str:
    unit = rng.choice(
        "days weeks months hours tonnes metres litres kilometres people boxes degrees pages years".split()
    )
    return f"{rng.randint(2, 900)} {unit}"


def word(rng: random.Random) -> str:
    return rng.choice(WORDS)


# {k} is the entity that is asked about, {v} the answer. Statements and questions use different words on purpose.
FRAMES = [
    (thing, code, ["The access code for the {k} is {v}.", "To open the {k}, enter {v}.", "The {k} is unlocked with code {v}."],
     ["What is the access code for the {k}?", "Which code opens the {k}?", "How do you unlock the {k}?"]),
    (person, place, ["{k} lives in {v}.", "{k} moved to {v} last year.", "The home of {k} is in {v}.", "{k} settled in {v}."],
     ["Where does {k} live?", "In which city is the home of {k}?", "Which town did {k} settle in?"]),
    (project, amount, ["Project {k} was given a budget of {v}.", "The cost of Project {k} came to {v}.", "Project {k} received {v} in funding."],
     ["How much did Project {k} cost?", "What is the budget of Project {k}?", "How much money did Project {k} receive?"]),
    (project, date, ["Project {k} starts on {v}.", "The deadline of Project {k} is {v}.", "Project {k} was launched on {v}."],
     ["When does Project {k} start?", "What is the deadline for Project {k}?", "On what date was Project {k} launched?"]),
    (thing, person, ["The {k} was designed by {v}.", "{v} built the {k}.", "{v} is responsible for the {k}.", "The {k} is run by {v}."],
     ["Who designed the {k}?", "Who built the {k}?", "Who is in charge of the {k}?", "Who takes care of the {k}?"]),
    (project, person, ["{v} leads Project {k}.", "The head of Project {k} is {v}.", "Project {k} is managed by {v}."],
     ["Who leads Project {k}?", "Who is the manager of Project {k}?", "Which person heads Project {k}?"]),
    (thing, place, ["The {k} stands in {v}.", "They moved the {k} to {v}.", "You will find the {k} in {v}."],
     ["Where is the {k}?", "In which city does the {k} stand?", "What is the location of the {k}?"]),
    (thing, count, ["The warranty of the {k} lasts {v}.", "The {k} holds up to {v}.", "The {k} must be checked every {v}."],
     ["What is the limit for the {k}?", "How long is the warranty of the {k}?", "How much does the {k} hold?", "How often is the {k} checked?"]),
    (person, code, ["The badge number of {k} is {v}.", "{k} carries passport {v}.", "{k} was assigned case number {v}."],
     ["What is the number of {k}?", "Which badge belongs to {k}?", "What identifier was given to {k}?"]),
    (person, word, ["The secret word of {k} is {v}.", "{k} uses the password {v}.", "{k} likes the {v} best."],
     ["What is the secret word of {k}?", "Which password does {k} use?", "What does {k} like best?"]),
    (person, date, ["{k} was born on {v}.", "{k} retired on {v}.", "On {v}, {k} joined the company.", "{k} signed the contract on {v}."],
     ["When was {k} born?", "On what date did {k} retire?", "When did {k} join?", "When did {k} sign?"]),
    (person, amount, ["{k} earns {v} a year.", "{k} paid {v} for the land.", "The fine for {k} was {v}.", "{k} owes the bank {v}."],
     ["How much does {k} earn?", "What did {k} pay?", "How large was the fine for {k}?", "How much does {k} owe?"]),
]  # fmt: skip
KEYS = [
    ("Invoice number", code), ("Order", code), ("Total due", amount), ("Due date", date), ("Contact", person),
    ("Delivery address", place), ("Serial number", code), ("Customer", person), ("Notice period", count),
    ("Deposit", amount), ("Signed on", date), ("Room", code), ("Supervisor", person), ("Capacity", count),
    ("Rent", amount), ("Policy number", code), ("Headquarters", place), ("Password", word), ("Expiry date", date),
]  # fmt: skip


def sentences(rng: random.Random, number: int) -> list[Made]:
    """`number` sentences of one or two frames with different entities, so that only the entity tells them apart."""
    made, seen = [], set()
    frames = rng.sample(range(len(FRAMES)), min(2, number))
    while len(made) < number:
        index = rng.choice(frames)
        make_key, make_value, statements, questions = FRAMES[index]
        which = rng.randrange(len(statements))
        key, value = make_key(rng), make_value(rng)
        if (index, key) in seen:
            continue
        seen.add((index, key))
        before, after = statements[which].format(k=key, v="\0").split("\0")
        # Statements of one frame may state different relations: the question at the same place fits, the first is close.
        question = questions[which] if which < len(questions) else questions[0]
        made.append(Made(before + value + after, len(before), len(before) + len(value), (question.format(k=key),)))
    return made


def key_value_lines(rng: random.Random) -> list[Made]:
    made = []
    for key, make in rng.sample(KEYS, rng.randint(3, 8)):
        value = make(rng)
        form = rng.choice(["What is the {}?", "{}?", "What does it say for {}?", "Tell me the {}."])
        question = form.format(key.lower() if rng.random() < 0.7 else key)
        made.append(
            Made(f"{key}: {value}", len(key) + 2, len(key) + 2 + len(value), (question[0].upper() + question[1:],))
        )
    return made


def table_rows(rng: random.Random) -> tuple[str, list[Made]]:
    """A header line and rows; the questions ask for one cell by its row's name and its column."""
    columns = rng.sample(KEYS, rng.randint(2, 3))
    name, make = rng.choice([("Name", person), ("Item", thing), ("Project", project), ("City", place)])
    header = "| " + " | ".join([name] + [key for key, _ in columns]) + " |"
    made = []
    for label in sorted({make(rng) for _ in range(rng.randint(2, 5))}, key=lambda _: rng.random()):
        cells = [make_cell(rng) for _, make_cell in columns]
        target = rng.randrange(len(cells))
        before = "| " + " | ".join([label, *cells[:target]]) + " | "
        text = before + " | ".join(cells[target:]) + " |"
        key = columns[target][0].lower()
        question = rng.choice([f"What is the {key} of {label}?", f"What is the {key} for {label}?", f"{label}: {key}?"])
        made.append(Made(text, len(before), len(before) + len(cells[target]), (question,)))
    return header, made
