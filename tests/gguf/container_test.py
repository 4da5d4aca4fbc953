"""GGUF files and their blocks: golden files that llama.cpp's own package made (golden/gguf/make.py), damage, the way back."""

import io
import resource
import struct

import numpy as np
import pytest
from places import ROOT

from gptjax.errors import UserError
from gptjax.gguf import blocks, container
from gptjax.gguf.container import F32, U32, Value

GOLDEN = ROOT / "tests" / "golden" / "gguf"
BLOCKS = dict(np.load(GOLDEN / "blocks.npz"))
DECODED = [name.removesuffix("_decoded") for name in BLOCKS if name.endswith("_decoded")]
ENCODED = [name.removesuffix("_encoded") for name in BLOCKS if name.endswith("_encoded")]
BLOCK_TYPES = [name for name, kind in blocks.TYPES.items() if kind.values > 1]


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, np.float32).tobytes()


@pytest.mark.parametrize("name", DECODED)
def test_blocks_decode_to_the_bits_of_llama_cpps_package(name):
    data, expected = BLOCKS[f"{name}_data"], BLOCKS[f"{name}_decoded"]
    assert bits(blocks.decoded(data.reshape(-1), blocks.TYPES[name], expected.shape)) == bits(expected)


@pytest.mark.parametrize("name", ENCODED)
def test_arrays_become_the_blocks_of_llama_cpps_package(name):
    made = b"".join(blocks.encoded(BLOCKS["values"], blocks.TYPES[name]))
    assert made == BLOCKS[f"{name}_encoded"].tobytes()


@pytest.mark.parametrize("name", blocks.TYPES)
def test_random_blocks_decode_to_the_bits_of_the_installed_package(name):
    pytest.importorskip("gguf.quants")
    import gguf

    kind, their_type = blocks.TYPES[name], gguf.GGMLQuantizationType[name.upper()]
    data = np.random.default_rng(1).integers(0, 256, (2000, kind.bytes), np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(data, their_type)
        ours = blocks.decoded(data.reshape(-1), kind, (2000, kind.values))
    finite = np.isfinite(ours)
    assert gguf.GGML_QUANT_SIZES[their_type] == (kind.values, kind.bytes)
    assert bits(ours[finite]) == bits(np.asarray(theirs, np.float32).reshape(ours.shape)[finite])


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_tensor_decoded_in_parts_is_the_whole(name, monkeypatch):
    kind = blocks.TYPES[name]
    data = np.tile(BLOCKS[f"{name}_data"].reshape(-1), 5)
    shape = (len(data) // kind.bytes, kind.values)
    whole = blocks.decoded(data, kind, shape)
    monkeypatch.setattr(blocks, "_AT_ONCE", 7 * kind.values)
    assert bits(blocks.decoded(data, kind, shape)) == bits(whole)


# ---- written and read


VALUES = {
    "general.architecture": "llama",
    "a.flag": True,
    "a.number": Value(2**31, U32),
    "a.ratio": Value(1e-5, F32),
    "a.list": ["", "Ü中", "a b"],
    "an.array": Value(np.arange(5), container.I32),
}
ARRAYS = {
    "matrix": np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32),
    "vector": np.arange(7, dtype=np.float32),
}


def written(kind: str = "f32", arrays=ARRAYS, metadata=VALUES) -> bytes:
    file = io.BytesIO()
    types = {name: blocks.TYPES[kind if array.ndim > 1 else "f32"] for name, array in arrays.items()}
    writer = container.Writer(file, metadata, {name: (a.shape, types[name]) for name, a in arrays.items()})
    for name, array in arrays.items():
        writer.write(name, array)
    writer.finish()
    return file.getvalue()


def read(tmp_path, content: bytes) -> container.Reader:
    (tmp_path / "model.gguf").write_bytes(content)
    return container.Reader(str(tmp_path / "model.gguf"))


@pytest.mark.parametrize("kind", blocks.WRITTEN)
def test_what_is_written_is_read_back(kind, tmp_path):
    with read(tmp_path, written(kind)) as reader:
        assert reader.metadata["a.flag"] is True and reader.metadata["a.list"] == VALUES["a.list"]
        assert reader.metadata["a.number"] == 2**31 and reader.metadata["an.array"].tolist() == [0, 1, 2, 3, 4]
        assert reader.metadata["a.ratio"] == np.float32(1e-5)
        assert bits(reader.read("vector")) == bits(ARRAYS["vector"])
        again = b"".join(blocks.encoded(reader.read("matrix"), blocks.TYPES[kind]))
        assert again == b"".join(blocks.encoded(ARRAYS["matrix"], blocks.TYPES[kind]))
        largest = np.abs(ARRAYS["matrix"]).max()
        assert (
            np.abs(reader.read("matrix") - ARRAYS["matrix"]).max()
            < {"q4_0": 0.08, "q4_1": 0.08}.get(kind, 5e-3) * largest
        )


@pytest.mark.parametrize("kind", blocks.WRITTEN)
def test_llama_cpps_package_reads_what_is_written(kind, tmp_path):
    pytest.importorskip("gguf.quants")
    import gguf

    (tmp_path / "model.gguf").write_bytes(written(kind))
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert [tensor.name for tensor in reader.tensors] == list(ARRAYS)
    assert reader.fields["a.list"].contents() == VALUES["a.list"]
    for tensor, array in zip(reader.tensors, ARRAYS.values()):
        assert tensor.shape.tolist() == list(array.shape[::-1])
        expected = array if array.ndim == 1 else gguf.quants.quantize(array, gguf.GGMLQuantizationType[kind.upper()])
        assert tensor.data.tobytes() == expected.tobytes()


# ---- damage


def test_a_file_cut_off_anywhere_is_refused_in_one_line(tmp_path):
    content = written("q8_0")
    content = content[: -len(content) % container.ALIGNMENT or None]
    for size in range(len(content) - container.ALIGNMENT):
        with pytest.raises(UserError) as refused:
            with read(tmp_path, content[:size]) as reader:
                reader.read("matrix")
        assert "\n" not in str(refused.value)


def test_a_file_with_any_byte_changed_is_read_or_refused_and_costs_no_memory(tmp_path):
    """Lengths, counts, types, offsets, dimensions: each byte of the head as others."""
    content, before = written("q8_0"), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = content.index(b"vector") + 40
    for at in range(head):
        for byte in (0, 1, 0x7F, 0xFF, content[at] ^ 0x10):
            try:
                with read(tmp_path, content[:at] + bytes([byte]) + content[at + 1 :]) as reader:
                    for name in reader.tensors:
                        reader.read(name)
            except UserError as error:
                assert "\n" not in str(error)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def entries(*pairs) -> bytes:
    """The head of a file of these metadata and no tensors; each (name, type, bytes)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
    return head + b"".join(struct.pack("<Q", len(n)) + n + struct.pack("<I", t) + value for n, t, value in pairs)


HOSTILE = {
    "count of an array": (entries((b"a", 9, struct.pack("<IQ", 4, 2**61))), "more than its"),
    "count of texts": (entries((b"a", 9, struct.pack("<IQ", 8, 2**40))), "more than its"),
    "length of a text": (entries((b"a", 8, struct.pack("<Q", 2**63))), "more than its"),
    "nesting": (entries((b"a", 9, struct.pack("<IQ", 9, 1) * 20)), "nests more than 8 arrays"),
    "type of a value": (entries((b"a", 77, b"")), "has a value of type 77"),
    "twice": (entries((b"a", 7, b"\1"), (b"a", 7, b"\0")), "has 'a' twice"),
    "alignment": (entries((b"general.alignment", 4, struct.pack("<I", 0))), "alignment=0; expected a power of two"),
    "tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**50, 0), "tensors, more than"),
    "version": (b"GGUF" + struct.pack("<IQQ", 9, 0, 0), "is of version 9"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian"),
    "another": (b"PK\3\4" + bytes(40), "begins with b'PK"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_by_what_they_say(name, tmp_path):
    content, message = HOSTILE[name]
    with pytest.raises(UserError, match=message):
        read(tmp_path, content)


def test_a_type_that_is_not_read_is_named(tmp_path):
    content = bytearray(written())
    at = content.index(b"vector") + 6 + 4 + 8
    content[at] = 21
    with pytest.raises(
        UserError, match="'vector' is of ggml's type 21, which gptjax does not read; expected one of f32"
    ):
        read(tmp_path, bytes(content))


def test_tensors_beyond_the_file_are_refused(tmp_path):
    content = bytearray(written())
    at = content.index(b"vector") + 6 + 4 + 8 + 4
    content[at : at + 8] = struct.pack("<Q", 2**62)
    with pytest.raises(UserError, match="'vector' lies in bytes"):
        read(tmp_path, bytes(content))


def test_no_file_and_a_folder_are_named(tmp_path):
    for path, message in ((tmp_path / "no.gguf", "is not there"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=message):
            container.Reader(str(path))
