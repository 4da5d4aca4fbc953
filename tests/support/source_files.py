"""Files of each kind of source, as bytes or written to disk: texts in, a file out."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import warcio
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter


def jsonl(texts, field="text") -> bytes:
    return b"".join(json.dumps({"id": i, field: text}).encode() + b"\n" for i, text in enumerate(texts))


def zstd_frames(data: bytes, n: int = 2) -> bytes:
    cuts = [data[len(data) * i // n : len(data) * (i + 1) // n] for i in range(n)]
    skippable = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"  # as pzstd writes them
    return skippable.join(zstandard.compress(cut) for cut in cuts)


def parquet(texts, kind=None, **options) -> bytes:
    out = io.BytesIO()
    table = pa.table({"id": list(range(len(texts))), "text": pa.array(texts, kind or pa.string())})
    pa.parquet.write_table(table, out, **{"row_group_size": 7} | options)
    return out.getvalue()


def array_record(file, records) -> None:
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for record in records:
        writer.write(record.encode() if isinstance(record, str) else record)
    writer.close()


def warc(records, packed: bool = True) -> bytes:
    """records: (type, HTTP headers or None, payload)."""
    out = io.BytesIO()
    writer = warcio.warcwriter.WARCWriter(out, gzip=packed)
    for kind, headers, payload in records:
        http = warcio.statusandheaders.StatusAndHeaders(headers[0], headers[1:], "HTTP/1.1") if headers else None
        content_type = "application/http" if headers else "text/plain"
        url = "http://example.org/"
        writer.write_record(
            writer.create_warc_record(url, kind, io.BytesIO(payload), http_headers=http, warc_content_type=content_type)
        )
    return out.getvalue()


def wet(texts, packed: bool = True) -> bytes:
    return warc([("warcinfo", None, b"software: x")] + [("conversion", None, t.encode()) for t in texts], packed)


HTML = ["200 OK", ("Content-Type", "text/html")]
