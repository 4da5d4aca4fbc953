"""Tokens come back from a shard however it is cut, read and reached; whatever was altered is found before it is used."""

import functools
import http.server
import pathlib
import pickle
import re
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.data.tokens.shards import BLOCK, MappedShard, MemoryShard, RemoteShard, ShardWriter, Tokens, open_shard
from gptjax.errors import UserError


def write_shard(folder, documents, dtype=np.uint16) -> dict:
    """documents: (tokens, bytes) of each."""
    writer = ShardWriter(folder, dtype)
    for ids, n_bytes in documents:
        writer.add(np.asarray(ids), n_bytes)
    return writer.close()


def random_documents(lengths, high=50257, seed=0) -> list:
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, high, n), int(rng.integers(0, 9 * n + 1))) for n in lengths]


def memory(documents) -> MemoryShard:
    ids = [ids for ids, _ in documents]
    start = np.cumsum([0, *map(len, ids)])[:-1]
    return MemoryShard(
        np.concatenate([[], *ids]).astype(np.int64), start, np.array([n for _, n in documents], np.int64)
    )


LENGTHS = [7, 0, BLOCK - 7, 1, 2 * BLOCK + 5, 0, 100, 30_000]  # a document ends where a block ends


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder, documents, its entry in a manifest) of a shard of several blocks."""
    documents = random_documents(LENGTHS, 60_000)
    folder = tmp_path_factory.mktemp("shard")
    return folder, documents, write_shard(folder, documents)


@pytest.fixture
def copy(large, tmp_path):
    """(folder to alter, documents)."""
    folder, documents, _ = large
    for file in folder.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(folder)).parent.mkdir(exist_ok=True)
            (tmp_path / file.relative_to(folder)).write_bytes(file.read_bytes())
    return tmp_path, documents


def spans(n_tokens) -> list[tuple[int, int]]:
    edges = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, n_tokens - 1]
    return [(a, min(b, n_tokens)) for a in edges for b in (a + 1, a + 17, a + BLOCK, a + 3 * BLOCK)] + [(0, n_tokens)]


# ---- what was written is what is read


def test_the_entry_counts_what_was_added(large):
    _, documents, entry = large
    assert (entry["documents"], entry["tokens"]) == (len(LENGTHS), sum(LENGTHS))
    assert entry["bytes"] == sum(n for _, n in documents)


@pytest.mark.parametrize("opened", ["mapped", "file://", "pickled", "pickled file://"])
def test_every_span_comes_back_whichever_way_the_shard_is_opened(large, opened):
    folder, documents, entry = large
    url = f"file://{folder}" if "file" in opened else folder
    shard = open_shard(url, entry["tokens"], "uint16")
    assert isinstance(shard, RemoteShard if "file" in opened else MappedShard)
    whole = np.concatenate([ids for ids, _ in documents])
    if "pickled" in opened:
        shard.wait(shard.read(0, 5))  # with its files open
        data = pickle.dumps(shard)
        assert len(data) < 1000
        shard = pickle.loads(data)
    reads = [(a, b, shard.read(a, b)) for a, b in spans(len(whole))]  # all on their way before the first is awaited
    for a, b, part in reads:
        part = shard.wait(part)
        assert part.dtype == np.uint16 and np.array_equal(part, whole[a:b])
    assert np.array_equal(shard.document_start, memory(documents).document_start)
    assert np.array_equal(shard.document_bytes, [n for _, n in documents])


@pytest.mark.parametrize("dtype, high", [(np.uint16, 1 << 16), (np.uint32, 1 << 32)])
def test_the_whole_range_of_ids_survives(tmp_path, dtype, high):
    ids = np.array([0, 1, high // 2, high - 1], np.uint64)
    entry = write_shard(tmp_path, [(ids, 4)], dtype)
    for shard in (
        MappedShard(tmp_path, 4, entry and np.dtype(dtype).name),
        RemoteShard(f"file://{tmp_path}", 4, dtype),
    ):
        assert shard.wait(shard.read(0, 4)).tolist() == ids.tolist()


@pytest.mark.parametrize("documents", [[], [([], 0)], [([], 0), ([], 3)]])
def test_a_shard_without_tokens_opens_and_has_its_documents(tmp_path, documents):
    entry = write_shard(tmp_path, documents)
    assert entry["tokens"] == 0 and entry["documents"] == len(documents)
    for shard in (MappedShard(tmp_path, 0, "uint16"), RemoteShard(f"file://{tmp_path}", 0, "uint16")):
        assert shard.document_start.tolist() == [0] * len(documents)
        assert shard.document_bytes.tolist() == [n for _, n in documents]
    assert Tokens([shard]).n_tokens == 0


def test_any_reader_of_zarr_opens_a_shard(large):
    import tensorstore

    folder, documents, _ = large
    array = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{folder}/"}, open=True).result()
    assert array.shape == (sum(LENGTHS),) and array.dtype.name == "uint16"
    assert np.array_equal(array.read().result(), np.concatenate([ids for ids, _ in documents]))


def test_equal_documents_make_equal_files(large, tmp_path):
    _, documents, entry = large
    assert write_shard(tmp_path / "again", documents) == entry
    other = [(ids.copy(), n) for ids, n in documents]
    other[-1][0][-1] ^= 1
    assert write_shard(tmp_path / "other", other)["files"]["c/0"]["sha256"] != entry["files"]["c/0"]["sha256"]


# ---- from afar


class _Ranges(http.server.BaseHTTPRequestHandler):
    """Serves files of a folder, parts of them where asked to, as stores do; remembers what it served."""

    protocol_version = "HTTP/1.1"

    def __init__(self, served, root, *args):
        self._served, self._root = served, root
        super().__init__(*args)

    def do_GET(self):
        file = self._root / self.path.lstrip("/")
        if not file.exists():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        data, asked = file.read_bytes(), self.headers.get("Range")
        part = data
        if asked:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", asked).groups()
            start = int(first) if first else len(data) - int(last)
            stop = int(last) + 1 if first and last else len(data)
            part = data[start:stop]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self._served.append((self.path, len(part)))
        self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def served(large):
    """(URL of the large shard over HTTP, list of (path, bytes) served so far)."""
    served = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Ranges, served, large[0]))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", served
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_row_from_afar_costs_the_blocks_it_lies_in(large, served):
    _, documents, entry = large
    url, log = served
    shard, whole = RemoteShard(url, entry["tokens"], "uint16"), np.concatenate([ids for ids, _ in documents])
    assert np.array_equal(shard.wait(shard.read(2 * BLOCK - 5, 2 * BLOCK + 6)), whole[2 * BLOCK - 5 : 2 * BLOCK + 6])
    tokens = [n for path, n in log if path == "/c/0"]
    block = 2 * BLOCK + 4
    assert 2 * block <= sum(tokens) < 2 * block + 1000  # two blocks, and the index
    before = len(log)
    assert np.array_equal(shard.wait(shard.read(0, 9)), whole[:9])
    assert log[before:] == [("/c/0", block)]  # the index is known
    assert np.array_equal(shard.wait(shard.read(BLOCK - 9, BLOCK)), whole[BLOCK - 9 : BLOCK]) and len(log) == before + 1


def test_many_rows_from_afar_are_equal_to_mapped_ones(large, served):
    folder, documents, entry = large
    start_B = np.random.default_rng(0).integers(0, entry["tokens"], 40)
    far, near = (
        Tokens([shard(place, entry["tokens"], "uint16")])
        for shard, place in zip((RemoteShard, MappedShard), (served[0], folder))
    )
    np.testing.assert_array_equal(far.read(start_B, 65), near.read(start_B, 65))


# ---- what was altered


@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_bit_flipped_in_a_block_is_found_when_the_block_is_read_and_not_before(copy, block, prefix):
    folder, documents = copy
    whole = np.concatenate([ids for ids, _ in documents])
    data = bytearray((folder / "c" / "0").read_bytes())
    data[block * (2 * BLOCK + 4) + 777] ^= 16
    (folder / "c" / "0").write_bytes(data)
    shard = open_shard(f"{prefix}{folder}", len(whole), "uint16")
    for other in {0, 1, 2, 3} - {block}:
        assert np.array_equal(shard.wait(shard.read(other * BLOCK, other * BLOCK + 9)), whole[other * BLOCK :][:9])
    for _ in range(2):
        with pytest.raises(UserError, match="was altered after it was written .*; make it again") as error:
            shard.wait(shard.read(block * BLOCK + 3, block * BLOCK + 5))
        assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_flipped_crc_is_found_too(copy):
    folder, documents = copy
    data = bytearray((folder / "c" / "0").read_bytes())
    data[2 * BLOCK] ^= 1
    (folder / "c" / "0").write_bytes(data)
    with pytest.raises(UserError, match="block 0 of c/0 has another CRC"):
        MappedShard(folder, sum(LENGTHS), "uint16").read(0, 1)


WAYS = [(damage, prefix) for damage in ("gone", "short", "empty") for prefix in ("", "file://")]


@pytest.mark.parametrize("damage, prefix", [*WAYS, ("no metadata", "file://")])
def test_files_that_vanish_or_shrink_while_a_run_goes_on_are_one_line_and_never_zeros(copy, damage, prefix):
    folder, documents = copy
    shard = open_shard(f"{prefix}{folder}", sum(LENGTHS), "uint16")
    file = folder / ("zarr.json" if damage == "no metadata" else "c/0")
    if damage in ("gone", "no metadata"):
        file.unlink()
    else:
        file.write_bytes(b"" if damage == "empty" else file.read_bytes()[:BLOCK])
    with pytest.raises(UserError) as error:
        shard.wait(shard.read(5, 9))
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


# ---- many shards are one


@st.composite
def cut_documents(draw):
    """(documents, where they are cut into shards, dtype)."""
    lengths = draw(st.lists(st.integers(0, 9), min_size=1, max_size=25).filter(sum))
    cuts = sorted(draw(st.lists(st.integers(0, len(lengths)), max_size=5)))
    dtype = draw(st.sampled_from(["uint16", "uint32"]))
    return random_documents(lengths, 2 ** (16 if dtype == "uint16" else 32), draw(st.integers(0, 99))), cuts, dtype


@settings(max_examples=25, deadline=None)
@given(cut_documents(), st.data())
def test_many_shards_are_as_one(tmp_path_factory, drawn, data):
    documents, cuts, dtype = drawn
    folder = tmp_path_factory.mktemp("shards")
    shards = []
    for i, (a, b) in enumerate(zip([0, *cuts], [*cuts, len(documents)])):
        entry = write_shard(folder / str(i), documents[a:b], np.dtype(dtype))
        place = f"file://{folder / str(i)}" if data.draw(st.booleans()) else folder / str(i)
        shards.append(open_shard(place, entry["tokens"], dtype))
    many, one = Tokens(shards), Tokens([memory(documents)])
    assert (many.n_tokens, many.n_documents) == (one.n_tokens, one.n_documents) == (one.n_tokens, len(documents))
    position_B = np.arange(one.n_tokens)
    for length in (1, 5, one.n_tokens + 3):
        np.testing.assert_array_equal(many.read(position_B, length), one.read(position_B, length))
    for got, wanted in zip(many.document_at(position_B), one.document_at(position_B)):
        np.testing.assert_array_equal(got, wanted)
    number_D = np.array(data.draw(st.lists(st.integers(0, len(documents) - 1))), np.int64)
    np.testing.assert_array_equal(many.document_starts(number_D), one.document_starts(number_D))
    first = data.draw(st.integers(0, len(documents)))
    for stop in range(first, len(documents) + 1):
        for got, wanted in zip(many.documents(first, stop), one.documents(first, stop)):
            np.testing.assert_array_equal(got, wanted)
    again = pickle.loads(pickle.dumps(many))
    np.testing.assert_array_equal(again.read(position_B, 4), one.read(position_B, 4))


def test_one_shard_is_as_the_arrays():
    documents = random_documents([3, 0, 4, 2, 0])
    tokens, ids = Tokens([memory(documents)]), np.concatenate([ids for ids, _ in documents]).astype(np.int32)
    assert tokens.read(np.array([0, 5, 8, 100]), 3).tolist() == [
        ids[:3].tolist(),
        ids[5:8].tolist(),
        [ids[8]] * 3,
        [ids[8]] * 3,
    ]
    number_B, start_B = tokens.document_at(np.arange(9))
    assert number_B.tolist() == [0, 0, 0, 2, 2, 2, 2, 3, 3] and start_B.tolist() == [0, 0, 0, 3, 3, 3, 3, 7, 7]
    span_D2, bytes_D = tokens.documents(1, 5)
    assert span_D2.tolist() == [[3, 3], [3, 7], [7, 9], [9, 9]] and bytes_D.tolist() == [n for _, n in documents[1:]]


def test_a_writer_holds_no_more_than_a_block_and_a_document(tmp_path):
    import tracemalloc

    document = np.arange(1000, dtype=np.uint32)
    tracemalloc.start()
    writer = ShardWriter(tmp_path, np.uint32)
    for _ in range(4000):
        writer.add(document, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    writer.close()
    assert pathlib.Path(tmp_path / "c" / "0").stat().st_size > 16_000_000 > 20 * peak


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_an_altered_table_of_documents_is_found_when_it_is_read(tmp_path, prefix):
    writer = ShardWriter(tmp_path / "shard", np.uint16)
    writer.add(np.arange(5), 5)
    writer.add(np.arange(3), 3)
    sha256 = writer.close()["files"]["documents.bin"]["sha256"]
    path = f"{prefix}{tmp_path / 'shard'}"
    assert open_shard(path, 8, "uint16", sha256).document_start.tolist() == [0, 5]
    table = np.fromfile(tmp_path / "shard" / "documents.bin", "<i8")
    table[2] = 4
    table.tofile(tmp_path / "shard" / "documents.bin")
    with pytest.raises(UserError, match="shard was altered .*documents.bin has another SHA-256"):
        open_shard(path, 8, "uint16", sha256).document_start  # noqa: B018
