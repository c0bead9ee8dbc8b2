"""Rare words of a question: whoever asks for several things by name is shown a place of each."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from retrieval.lexical_index import LexicalHits, LexicalQuery
from retrieval.passages import Place

# A word that stands in more chunks than these is not rare. One that is joined by signs, as names of things are
# (``blue-heron-7``), may stand in some more, and every place of it is shown.
MAX_PLACES = 3
MAX_PLACES_OF_JOINED = 5


def rare_places(search: Callable[[LexicalQuery, int], LexicalHits], lexical: LexicalHits) -> dict[str, list[Place]]:
    """For each stem of the question that stands in few chunks, these; the rarest stem first. ``search`` gives
    the best so many chunks of what ``lexical`` was found in."""
    found: dict[str, list[Place]] = {}
    for stem in lexical.rarest_first:
        hits = search(LexicalQuery((), (stem,)), MAX_PLACES_OF_JOINED + 1).hits
        if len(hits) > MAX_PLACES_OF_JOINED:
            break
        if len(hits) <= MAX_PLACES or not stem.isalnum():
            found[stem] = [(document, ordinal) for document, ordinal, _ in hits]
    return found


def only_places(names: Collection[str], rare: Mapping[str, Sequence[Place]]) -> list[Place]:
    """Where a name stands that stands nowhere else."""
    return [places[0] for stem, places in rare.items() if stem in names and len(places) == 1]


def spread(scores: Mapping[Place, float], rare: Mapping[str, Sequence[Place]], num_first: int) -> dict[Place, float]:
    """The same scores in an order in which the first ``num_first`` places hold every rare word, if there is room.

    The best place stays first. Of places that no rare word needs the last make room; ``rare`` has for each word its
    places, of which the best is taken, and all of a joined one.
    """
    order = sorted(scores, key=lambda place: (-scores[place], place))
    first, rest = order[:num_first], order[num_first:]
    wanted = [group for stem, places in rare.items() for group in ([places] if stem.isalnum() else _each(places))]
    for places in wanted:
        beyond = [place for place in rest if place in places]
        if not beyond or not set(places).isdisjoint(first):
            continue
        free = [place for place in first[1:] if not _is_needed(place, first, wanted)]
        if not free:
            break
        first[first.index(free[-1])] = beyond[0]
        rest.remove(beyond[0])
        rest.insert(0, free[-1])
    return dict(zip((*first, *rest), sorted(scores.values(), reverse=True), strict=True))


def _each(places: Sequence[Place]) -> list[list[Place]]:
    return [[place] for place in places]


def _is_needed(place: Place, first: Sequence[Place], rare: Iterable[Sequence[Place]]) -> bool:
    """Whether a rare word stands nowhere else among ``first``."""
    return any(place in places and sum(other in places for other in first) == 1 for places in rare)
