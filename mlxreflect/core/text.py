"""Characters of untrusted text in one form."""

import unicodedata

MAX_MARKS = 30  # combining marks in a row, as in Unicode's stream-safe format (UAX 15)


def composed(text: str) -> str:
    """NFC; a text with more marks in a row than any language has is left as it is.

    NFC sorts such a run in time quadratic in its length.
    """
    run = 0
    for character in "" if text.isascii() else text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run > MAX_MARKS:
            return text
    return unicodedata.normalize("NFC", text)
