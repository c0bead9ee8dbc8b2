"""Documents: what was decided about questions, how long the search took, and how far the index is behind."""

from retrieval.passage import DocumentStatus
from server.answers.gate import Reason
from server.measures.measure import Kind, Measure

# In the order of the search; total is all of them and what lies between.
STAGES = ("keys", "lexical", "dense", "ranking", "hops", "passages", "total")
# Why a turn is not searched for; of any other reason it is, and something is found or nothing.
SKIPPED = (Reason.SMALL_TALK, Reason.CONVERSATION, Reason.CERTAIN, Reason.NO_DOCUMENTS)
# What is there at nought before it happens.
DECISIONS = tuple(
    (decision, reason)
    for reason in Reason
    for decision in (("skipped",) if reason in SKIPPED else ("retrieved", "nothing"))
)
SEARCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

RETRIEVAL = Measure(
    "fano_retrieval_total", Kind.COUNTER, "",
    "Questions by what was decided: retrieved, nothing (searched, but nothing that answers was found), or skipped.",
    "nothing rises: questions that the documents do not answer, or documents that are not there yet.",
    {"decision": ("retrieved", "nothing", "skipped"), "reason": (*Reason,)},
)  # fmt: skip
RETRIEVAL_SECONDS = Measure(
    "fano_retrieval_seconds", Kind.HISTOGRAM, "seconds", "A search by stage; total is all of it.",
    "dense slow: the embedder shares the cores with the model. lexical slow at first: it reads an index from disk.",
    {"stage": STAGES},
    buckets=SEARCH_SECONDS,
)  # fmt: skip
PASSAGES = Measure(
    "fano_retrieval_passages", Kind.HISTOGRAM, "", "Passages found for a question that was searched for.",
    buckets=(0, 1, 2, 3, 5, 10, 20),
)  # fmt: skip
FACTS = Measure("fano_facts", Kind.GAUGE, "", "Facts in the key table, pins among them.")
VECTORS = Measure(
    "fano_index_vectors", Kind.GAUGE, "", "Vectors in the index.",
    "Does not grow while documents are indexing: see the log for the embedder.",
)  # fmt: skip
DOCUMENTS = Measure(
    "fano_documents", Kind.GAUGE, "",
    "Documents by status; reading ones can be asked, while the model reads them in the background.",
    "failed: GET /v1/documents tells why of each. queued or parsing that does not shrink: see fano_index_lag_seconds.",
    {"status": (*DocumentStatus,)},
)  # fmt: skip
LAG_DOCUMENTS = Measure(
    "fano_index_lag_documents", Kind.GAUGE, "",
    "Documents of which the index is behind the store: still to be parsed, indexed or embedded, or to be done anew.",
    "Grows: more is sent than this machine can index. It is worked off one by one, what cannot be asked yet first.",
)  # fmt: skip
LAG_SECONDS = Measure(
    "fano_index_lag_seconds", Kind.GAUGE, "seconds",
    "How long the document has waited that came first of those that cannot be asked yet; 0 without any.",
    "Grows with the clock: nothing is being indexed. See the log; a restart takes up what was left.",
)  # fmt: skip

MEASURES = (RETRIEVAL, RETRIEVAL_SECONDS, PASSAGES, FACTS, VECTORS, DOCUMENTS, LAG_DOCUMENTS, LAG_SECONDS)
