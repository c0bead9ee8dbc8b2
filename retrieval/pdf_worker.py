"""Run as a script by retrieval/pdf_text.py: one PDF to one JSON object on standard output."""

import json
import sys

import pypdfium2
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY

_MAX_ADDRESS_BYTES = 4 << 30


def pages_of(path: str, max_characters: int) -> dict[str, object]:
    """Return {"code": None, "pages": [text, ...]} or {"code": why not}. Texts may hold surrogates and U+FFFE."""
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        is_locked = error.err_code in (FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY)
        return {"code": "encrypted" if is_locked else "damaged"}
    pages: list[str] = []
    num_characters = 0
    for number in range(len(document)):
        try:
            page = document[number]
        except pypdfium2.PdfiumError:
            pages.append("")  # a page that cannot be opened keeps its number
            continue
        text_page = page.get_textpage()
        pages.append(text_page.get_text_range(errors="surrogatepass"))
        text_page.close()
        page.close()
        num_characters += len(pages[-1])
        if num_characters > max_characters:
            return {"code": "too_long", "num_characters": num_characters, "num_pages": number + 1}
    return {"code": None, "pages": pages}


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = _MAX_ADDRESS_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MAX_ADDRESS_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    _limit_memory()
    json.dump(pages_of(sys.argv[1], int(sys.argv[2])), sys.stdout)
