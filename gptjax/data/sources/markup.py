"""HTML: whether a text is a page of it, by how it begins, and in which encoding the bytes of one are."""

import codecs
import re

from gptjax.errors import UserError

# ---- what is a page

# White space, comments of any length and an XML declaration may stand before a page, and end nowhere else.
_BEFORE = re.compile(r"(?:[\s\ufeff]+|<!--.*?-->|<\?xml\b.*?\?>)*", re.DOTALL)
_PAGE = re.compile(r"<(?:!doctype\s+html\b|(?:html|head|body)[\s/>])", re.IGNORECASE)
_HEAD_ALONE = re.compile(r"<(?:meta|title|link|base)[\s/>]", re.IGNORECASE)  # html and head are optional tags
_IN_HEAD = re.compile(r"<(?:script|style|noscript|template)[\s/>]", re.IGNORECASE)  # begin other files too, as Vue's
_TAG = re.compile(r"<(?:html|head|body)[\s>]", re.IGNORECASE)
_HEAD_CHARACTERS = 2048


def begins_as_html(text: str) -> bool:
    """Whether a text of which nobody says what it is begins as a page does, and not as a text with tags in it.

    That is a doctype, <html>, <head> or <body>, or what can only stand in a head; what may also stand elsewhere counts
    if one of these tags follows soon.
    """
    start = _BEFORE.match(text).end()
    if _PAGE.match(text, start) or _HEAD_ALONE.match(text, start):
        return True
    return _IN_HEAD.match(text, start) is not None and _TAG.search(text, start, start + _HEAD_CHARACTERS) is not None


# ---- its encoding


def decode_html(data: bytes, content_type: str, where: str) -> str:
    """Decoded by its byte-order mark, the HTTP header's charset, the document's own, else as UTF-8.

    A charset that names no encoding is passed over, as browsers do. Raises UserError: the bytes are not in the encoding.
    """
    labels = _labels(data, content_type)
    encoding = next(filter(None, map(_encoding, labels)), "utf-8")
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        at = f"at byte {error.start} (0x{data[error.start]:02x})"
        if not labels or _encoding(labels[0]) is None:
            unknown = f"; it says {labels[0]!r}, which is no encoding that is known" if labels else ""
            raise UserError(f"{where} is not {encoding} {at}{unknown}.") from error
        raise UserError(f"{where} is not {labels[0]}, as it says, {at}.") from error


def _labels(data: bytes, content_type: str) -> list[str]:
    """What the page says of its encoding, the most binding first."""
    for mark, name in _MARKS:
        if data.startswith(mark):
            return [name]
    header = re.search(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", content_type, re.IGNORECASE)
    meta = re.search(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", data[:_META_WITHIN], re.IGNORECASE)
    labels = [header[1]] if header else []
    if meta:  # it was found in bytes that are no UTF-16
        labels.append("utf-8" if meta[1].lower().startswith(b"utf-16") else meta[1].decode())
    return labels


def _encoding(label: str) -> str | None:
    """Python's name of the encoding that a label means on the web; None: it means none."""
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):  # the second: a label of odd characters
        return None
    return None if name.replace("-", "_") in _NO_CHARSETS else _WEB_NAMES.get(name, label)


_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META_WITHIN = 4096  # bytes; the HTML standard asks for 1024, and pages are laxer

# Codecs of Python that are no encoding of a page ("Python Specific Encodings" in the documentation of codecs), and UTF-7,
# which browsers do not know either: it can hold halves of surrogate pairs.
_NO_CHARSETS = {"idna", "mbcs", "oem", "palmos", "punycode", "raw_unicode_escape", "undefined", "unicode_escape"}
_NO_CHARSETS |= {"base64", "bz2", "hex", "quopri", "rot_13", "utf_7", "uu", "zlib"}

# What browsers take a name for (WHATWG, Encoding, section 4.2), where Python's codec of that name is a smaller set.
_WEB_NAMES = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
