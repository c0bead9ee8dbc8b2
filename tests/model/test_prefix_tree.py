"""The tree finds for any texts what a look at every one of them finds."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from model.cache.prefix_tree import PrefixTree, common_length

# Two tokens, so that texts run together for a while, part, and end inside one another.
TEXTS = st.lists(st.integers(1, 2), max_size=12).map(tuple)


def common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


@given(
    actions=st.lists(st.tuples(st.sampled_from(["keep", "drop", "anchor", "let go"]), TEXTS), max_size=40), asked=TEXTS
)
def test_the_deepest_kept_place_is_found(actions: list[tuple[str, tuple[int, ...]]], asked: tuple[int, ...]) -> None:
    tree = PrefixTree[str]()
    kept: dict[tuple[int, ...], str] = {}
    anchors: list[tuple[int, ...]] = []
    for number, (action, text) in enumerate(actions):
        if not text:
            continue
        if action == "keep":
            tree.node(text, len(text)).kept = kept[text] = str(number)
        elif action == "drop" and text in kept:
            node = tree.node(text, len(text))
            del kept[text]
            node.kept = None
            tree.prune(node)
        elif action == "anchor":
            tree.node(text, len(text)).num_anchors += 1
            anchors.append(text)
        elif action == "let go" and text in anchors:
            node = tree.node(text, len(text))
            node.num_anchors -= 1
            anchors.remove(text)
            tree.prune(node)
        tree.check()
        match = tree.match(asked)
        on_path = sorted((text for text in kept if asked[: len(text)] == text), key=len)
        assert [(node.depth, node.kept) for node in match.kept] == [(len(text), kept[text]) for text in on_path]
        assert match.num_common == max((common(asked, text) for text in (*kept, *anchors)), default=0)
    for num_tokens in range(len(asked)):
        top = tree.beyond(asked, num_tokens)
        found = {node.kept for node in top.subtree() if node.kept} if top else set()
        assert found == {name for text, name in kept.items() if common(asked, text) > num_tokens}


@given(length=st.integers(0, 9000), at=st.integers(0, 9000), start=st.integers(0, 50))
def test_long_texts_are_compared_to_the_token(length: int, at: int, start: int) -> None:
    edge = array("i", range(length))
    ids = array("i", [7] * start + [*range(length)])
    if at < length:
        ids[start + at] = -1
    assert common_length(edge, ids, start) == min(at, length)
