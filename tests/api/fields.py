"""The section "Fields" of docs/api.md: what becomes of each field of a request, as the tables of the server say.

``python tests/api/fields.py`` writes it.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from server.chat.fields import CHAT_FIELDS, MESSAGE_FIELDS, ChatField, Treatment
from server.completions.schema import COMPLETION_FIELDS
from server.embeddings.schema import EMBEDDING_FIELDS
from server.responses import fields as responses

PAGE = Path(__file__).parent.parent.parent / "docs" / "api.md"
BEGIN = "<!-- fields: written by `python tests/api/fields.py` -->"
END = "<!-- end of fields -->"
TABLES: Mapping[str, Mapping[str, ChatField]] = {
    "`POST /v1/chat/completions`": CHAT_FIELDS,
    "A message of a chat": MESSAGE_FIELDS,
    "`POST /v1/responses`": responses.RESPONSE_FIELDS,
    "`POST /v1/responses/input_tokens`": responses.COUNT_FIELDS,
    "A message of a response's input": responses.MESSAGE_FIELDS,
    "A part of such a message": responses.PART_FIELDS,
    "A `file_search_call` of an earlier reply": responses.SEARCH_CALL_FIELDS,
    "A `function_call` of an earlier reply": responses.FUNCTION_CALL_FIELDS,
    "A `function_call_output`": responses.FUNCTION_OUTPUT_FIELDS,
    "The tool `function`": responses.FUNCTION_FIELDS,
    "The tool `file_search`": responses.FILE_SEARCH_FIELDS,
    "Its `ranking_options`": responses.RANKING_FIELDS,
    "`text` of a response": responses.TEXT_FIELDS,
    "`POST /v1/completions`": COMPLETION_FIELDS,
    "`POST /v1/embeddings`": EMBEDDING_FIELDS,
}
INTRODUCTION = (
    "Every field of OpenAI's requests is honoured, harmless to leave unheeded (neutral), or refused by its name with "
    "the reason; null asks for nothing. Any other field is a 400 that names it. `fano` is the extension object."
)


def section() -> str:
    """The section as it has to be."""
    parts = [f"#### {title}\n\n{_table(table)}" for title, table in TABLES.items()]
    return "\n\n".join([BEGIN, INTRODUCTION, *parts, END])


def with_section(page: str) -> str:
    """The page with its section as it has to be, which comes before "Conformance" in a page that has none."""
    if BEGIN not in page:
        before, mark, rest = page.partition("## Conformance")
        return f"{before.rstrip()}\n\n## Fields\n\n{section()}\n\n{mark}{rest}".lstrip()
    before, rest = page.split(BEGIN, 1)
    return before + section() + rest.split(END, 1)[1]


def _table(table: Mapping[str, ChatField]) -> str:
    honoured = [f"`{name}`" for name, row in table.items() if row.treatment is Treatment.HONOURED]
    rows = ["| field | | |", "| --- | --- | --- |"]
    rows += [
        f"| `{name}` | {row.treatment.value} | {_words(row)} |"
        for name, row in table.items()
        if row.treatment is not Treatment.HONOURED or row.reason
    ]
    told = f"Honoured: {', '.join(honoured)}."
    return told if len(rows) == 2 else "\n".join([told, "", *rows])


def _words(row: ChatField) -> str:
    harmless = ", ".join(f"`{json.dumps(value)}`" for value in row.harmless)
    return f"{row.reason}; {harmless} asks for nothing" if harmless else row.reason


if __name__ == "__main__":
    PAGE.write_text(with_section(PAGE.read_text() if PAGE.exists() else "# The API\n"))
