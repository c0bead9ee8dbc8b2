"""Run by itself for retrieval/pdf_text.py: one PDF to one JSON object on standard output."""

import pypdfium2
from pypdfium2.raw import FPDF_ERR_PASSWORD, FPDF_ERR_SECURITY

from retrieval.reader_process import answer


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
            read = f"{num_characters} characters in its first {number + 1} pages"
            return {"code": "too_long", "message": f"the pdf has {read}, the limit is {max_characters}; split it"}
    return {"code": None, "pages": pages}


if __name__ == "__main__":
    answer(pages_of)
