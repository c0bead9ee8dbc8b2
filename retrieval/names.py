"""Names of organisations and persons, by what stands in or around them. Precision first: no gazetteer, no guess."""

import re
from collections.abc import Iterator

from retrieval.hits import Hit, Survey
from retrieval.passage import FactKind, Span
from retrieval.words import STOP_WORDS

_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈĊČĎĐĒĔĖĘĚĜĞĠĢĤĦĨĪĬĮİĶĹĻĽŁŃŅŇŌŎŐŒŔŖŘŚŜŞŠŢŤŨŪŬŮŰŲŴŶŸŹŻŽА-ЯЁΑ-Ω"
_STOPPED = (
    "Mr|Mrs|Ms|Dr|Prof|St|Inc|Ltd|Co|Corp|Jr|Sr|Gen|Col|Capt|Lt|Sgt|Rev|Hon|Bros|Messrs|Assn|Dept|Univ|Pty|Sen|Rep|Gov"
)
_WORD = rf"(?:(?:{_STOPPED})\.(?!\w)|[{_UPPER}]\.(?=[ {_UPPER}])|[{_UPPER}][\w’'&-]*)"
_LINK = r"(?:of the|of|and|for|the|&|de la|de|del|della|du|des|der|von|van der|van|zu|für|et|y)"
_BLANK = r"(?:[ \u00a0]|\r?\n)"
# A run of capitalised words; small words only between two of them.
_RUN = re.compile(
    rf"(?<![\w@.-]){_WORD}(?:(?:,{_BLANK}(?=(?:Inc|Ltd|LLC|LLP|L\.L\.C|Limited|Corp|Jr|Sr)\b)|"
    rf"{_BLANK}(?:{_LINK}{_BLANK})?|(?<=\.)(?=[{_UPPER}]\.)){_WORD}){{1,11}}"
)
_PART = re.compile(rf"{_WORD}|[^\s,]+")

_LEGAL = frozenset(
    "inc incorporated ltd limited llc llp plc gmbh ag kg kgaa ohg ug corp corporation pty bv nv spa srl "
    "sarl sas oy oyj ab aps asa co".split()
)
# These are words or places as well: only after two capitalised words, or with their stop.
_LEGAL_CASED = frozenset("AG AB SAS SPA UG KG NV BV Co ASA CO".split())
_TAILS = frozenset(
    "university college institute foundation association society bank agency authority commission "
    "committee council ministry company group holdings organization organisation corporation federation "
    "institution academy hospital museum press partners airlines airways industries laboratories bureau "
    "consortium coalition tribunal administration centre center board trust laboratory "
    "department university library orchestra league club union fund".split()
)
_WEAK_TAILS = frozenset(
    "administration centre center board trust laboratory group union club league fund "
    "press library department company council society bank".split()
)
_HEADS = frozenset(
    "university ministry institute department bank bureau college faculty office academy association "
    "federation society council commission committee court chamber school foundation organization "
    "organisation agency".split()
)
# Who leads an organisation is none; and what its name is the first part of is something else.
_LEADERS = frozenset(
    "dean head chair chairman chairwoman director president secretary member members minister governor professor "
    "chancellor officer fellow master bachelor doctor vice report act journal transactions proceedings bulletin annals "
    "description commencement provision history".split()
)
_PARTS_OF_TEXTS = frozenset("section article part chapter title form room suite rule".split())
# A council of one place was a meeting.
_COUNCILS = frozenset("europe state elders".split())
_CHAMBERS = frozenset("commerce deputies representatives industry advocates notaries councillors agriculture".split())
_ORDINALS = frozenset("first second third fourth fifth sixth seventh eighth ninth tenth".split())
# One of these alone before the kind of an organisation makes no name: an Executive Agency.
_GENERIC = frozenset(
    "executive public local regional special general joint independent private foreign domestic federal state central "
    "competent other each new holding parent operating steering".split()
)
_AFTER_ENUMERATION = re.compile(r",\s(?:and|&)\s\Z")
_SIDES = frozenset("west east north south left right".split())
_WITH_FIELDS = frozenset("committee commission authority council conference".split())
_ON_FIELD = re.compile(
    rf" on(?: the)?(?: [{_UPPER}][\w’'-]+(?: (?:and|of|of the|the))?(?= [{_UPPER}])){{0,6}} [{_UPPER}][\w’'-]+"
)
_ZIP_CODE = re.compile(r"\s\d{5}")
_NO_HEADS = frozenset("court school office chamber college faculty bank society".split())

_TITLES = frozenset(
    "mr mrs ms miss dr prof professor sir dame senator rev reverend messrs mx madam mme herr frau".split()
)
# What stands before a title and belongs to it: Prime Minister, Attorney General.
_BEFORE_TITLE = frozenset("prime vice attorney secretary solicitor lieutenant major brigadier chief deputy".split())
_RANKS = frozenset(
    "captain capt colonel col lieutenant lt sergeant sgt major general gen admiral judge justice "
    "president minister ambassador secretary governor king queen prince princess pope bishop archbishop "
    "chancellor lord lady".split()
)
# A general or major with one of these is none: General Motors, Major League.
_NO_NAMES = frozenset(
    "motors electric mills dynamics foods conference administration services service staff order god almighty jesus "
    "relativity theory election secretariat debate purpose hospital public manager counsel partner strike convention "
    "accounting meeting release terms conditions agreement information".split()
)
_ROLE = re.compile(
    r",? ?(?:\((?:born|b\.|\d{4}\s?[–-]\s?\d{4})|was\sborn\b|"
    r"<[\w.+-]{1,64}@|,? (?:Jr|Sr)\.|,? (?:the )?(?:[a-z]{2,12} )?"
    r"(?:CEO|CFO|CTO|COO|Chief Executive|Managing Director|Director|chairman|chairwoman|chairperson|president|"
    r"secretary|spokes(?:man|woman|person)|founder|author)\b)"
)
_BEFORE = re.compile(
    r"(?:signed by|written by|authored by|directed by|founded by|represented by|invented by|composed by|edited by|"
    r"author is|name is|named|Author:|Name:|Contact:|Signed:|Attn:|Attention:|Dear)\s$"
)
_NEAR_CHARACTERS = 50_000
_FULL_LINE = 50
# What follows a name in the name of a place or thing that is named after somebody.
_PLACES = frozenset(
    "island islands street road avenue square university college school county court bay sound range "
    "mountain mountains mount river lake sea land cape park bridge hall house castle church cathedral "
    "hospital airport station assembly theorem law act award prize medal cup state states line city town "
    "village district cave caves province region peninsula glacier coast strait channel fund institute museum "
    "library foundation association company society committee".split()
)


class NameRecogniser:
    """Looks through runs of capitalised words for those that are of one kind."""

    def __init__(self, kind: FactKind) -> None:
        """``kind`` is ORGANISATION or PERSON."""
        self.name = kind.value
        self.kind = kind

    def find(self, survey: Survey) -> Iterator[Hit]:
        """Hits in reading order."""
        text = survey.text
        find = _organisation if self.kind is FactKind.ORGANISATION else _person
        for run in survey.matches(_RUN):
            # Two names may be joined by a small word.
            for piece in _by_lines(text, run):
                rest = piece
                while len(rest) and (found := find(text, rest)) is not None:
                    yield found
                    rest = Span(found.value.end, max(found.value.end, rest.end))


def _by_lines(text: str, run: Span) -> Iterator[Span]:
    """A name goes on in the next line only where lines are full: what follows a heading is another sentence."""
    start = run.start
    end = text.find("\n", start, run.end)
    while end >= 0:
        if end - text.rfind("\n", 0, end) < _FULL_LINE:
            yield Span(start, end)
            start = end + 1
        end = text.find("\n", end + 1, run.end)
    yield Span(start, run.end)


def _organisation(text: str, run: Span) -> Hit | None:
    parts = _parts(text, run)
    while parts and (_bare(text, parts[0]) in STOP_WORDS or not text[parts[0].start].isupper()):
        parts = parts[1:]
    if len(parts) < 2:
        return None
    while parts and _bare(text, parts[-1]) in _PARTS_OF_TEXTS:
        parts = parts[:-1]
    words = [_bare(text, part) for part in parts]
    for place, word in enumerate(words[:-2]):
        if word in _LEADERS and words[place + 1] in ("of", "of the", "for"):
            parts, words = parts[place + 2 :], words[place + 2 :]
            if words and words[0] == "the":
                parts, words = parts[1:], words[1:]
            break
    if len(parts) < 2:
        return None
    if any(word in STOP_WORDS and text[part.start].isupper() for word, part in zip(words, parts, strict=True)):
        return None  # a title
    if len(words) > 2 and text[parts[0].start : parts[-1].end].isupper():
        return None
    legal = next((place for place in range(1, len(words)) if _is_legal(text, parts, words, place)), None)
    if legal is not None:
        return Hit(Span(parts[0].start, _end(text, parts[legal])), 0.85)
    if words[0] in _HEADS and len(words) > 2 and words[1] in ("of", "for", "on"):
        if words[0] in _NO_HEADS and len(words) < 4 and words[1] != "of":
            return None
        if words[-1] in _ORDINALS or (words[0] == "chamber" and words[2] not in _CHAMBERS):
            return None
        if words[0] == "council" and len(words) == 3 and words[2] not in _COUNCILS and words[2][-1] != "s":
            return None
        return Hit(Span(parts[0].start, _end(text, parts[-1])), 0.75)
    tail = next((place for place in range(len(words) - 1, 0, -1) if words[place] in _TAILS), None)
    if tail is None or words[0] in _TITLES or not text[parts[tail - 1].start].isupper():
        return None
    if tail < 2 and (
        words[tail] in _WEAK_TAILS
        or words[0] in _GENERIC
        or _is_common(text, parts[0])
        or _AFTER_ENUMERATION.search(text, max(0, parts[0].start - 6), parts[0].start)
    ):
        return None
    if words[tail] == "council" and words[0] in _ORDINALS:
        return None  # a meeting
    if words[tail] == "bank" and words[tail - 1] in _SIDES:
        return None  # of a river
    # World University Rankings are no university.
    if tail + 1 < len(parts) and text[parts[tail + 1].start].isupper():
        return None
    # University of Cape Town: what belongs to the last word goes with it.
    end = len(parts) - 1 if len(parts) > tail + 2 and words[tail + 1] in ("of", "for") else tail
    stop = _end(text, parts[end])
    field = _ON_FIELD.match(text, stop) if words[tail] in _WITH_FIELDS and end == len(parts) - 1 else None
    return Hit(Span(parts[0].start, field.end() if field else stop), 0.7)


def _is_legal(text: str, parts: list[Span], words: list[str], place: int) -> bool:
    if words[place].replace(".", "") not in _LEGAL:
        return False
    written = text[parts[place].start : parts[place].end]
    if written == "NV" and _ZIP_CODE.match(text, parts[place].end):
        return False  # Nevada
    if written in _LEGAL_CASED:
        return written != "CO" and (written != "Co" or words[place - 1] == "&")
    return not (written.islower() or (written == "Limited" and place < 1))


def _person(text: str, run: Span) -> Hit | None:
    parts = _parts(text, run)
    words = [_bare(text, part) for part in parts]
    title = next((place for place, word in enumerate(words[:-1]) if word in _TITLES or word in _RANKS), None)
    if title is not None:
        name = []
        for place in range(title + 1, min(len(parts), title + 6)):
            written = text[parts[place].start : parts[place].end]
            if words[place] in ("of", "the", "and", "for", "&", "in") or written.isdigit():
                break
            name.append(place)
            if written.endswith(("'s", "’s", "s'", "s’")):
                break
        while name and not text[parts[name[-1]].start].isupper():
            name.pop()
        if not name or (name[-1] + 1 < len(words) and words[name[-1]] in _PLACES) or words[name[-1]] in _PLACES:
            return None
        if any(words[place] in _TITLES | _RANKS | STOP_WORDS for place in name):
            return None
        weak = words[title] in _RANKS
        if weak and any(words[place] in _NO_NAMES or words[place] in _TAILS for place in name):
            return None
        if weak and any(_is_common(text, parts[place]) for place in name):
            return None
        if weak and (len(name) > 3 or text[parts[name[0]].start : parts[name[0]].end].isupper()):
            return None
        first = title
        while first and words[first - 1] in _BEFORE_TITLE:
            first -= 1
        span = Span(parts[first].start, _end(text, parts[name[-1]]))
        return Hit(span, 0.7 if weak else 0.85)
    if not 2 <= len(parts) <= 4 or any(not text[part.start].isupper() for part in parts):
        return None
    if text[run.start : run.end].isupper():
        return None
    if any(word in STOP_WORDS or word in _PLACES or word in _TAILS for word in words):
        return None
    role = _ROLE.match(text, run.end)
    if role is None and _BEFORE.search(text, max(0, run.start - 16), run.start) is None:
        return None
    return Hit(Span(parts[0].start, _end(text, parts[-1])), 0.7)


def _is_common(text: str, part: Span) -> bool:
    """Whether the word stands not far away in small letters: general tendencies are no officers."""
    word = text[part.start : _end(text, part)]
    near = text.find(f" {word.lower()}", max(0, part.start - _NEAR_CHARACTERS), part.start + _NEAR_CHARACTERS)
    return near >= 0


def _parts(text: str, run: Span) -> list[Span]:
    return [Span(*match.span()) for match in _PART.finditer(text, run.start, run.end)]


def _bare(text: str, part: Span) -> str:
    return text[part.start : part.end].rstrip(".").casefold()


def _end(text: str, part: Span) -> int:
    """Without the sign of the genitive."""
    end = part.end
    if text[part.start : end].endswith(("'s", "’s")):
        return end - 2
    return end - 1 if text[end - 1] in "'’-&" else end
