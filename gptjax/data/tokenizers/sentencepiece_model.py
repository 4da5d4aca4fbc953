"""SentencePiece's model files, taken apart into pieces and put together from them."""

import typing

# Of a piece (sentencepiece_model.proto, ModelProto.SentencePiece.Type), and of how a model cuts texts (TrainerSpec).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE = 1, 2


class Piece(typing.NamedTuple):
    text: str  # with U+2581 for a space
    score: float  # of bpe: the highest is merged first; of unigram: its log-probability
    type: int


def parsed(model: bytes):
    """The file as a ModelProto. Raises google.protobuf.message.DecodeError: it is none."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    return proto.ModelProto.FromString(model)


def pieces(model) -> list[Piece]:
    """Of a ModelProto."""
    return [Piece(each.piece, each.score, each.type) for each in model.pieces]


def written(pieces: list[Piece], kind: int, charsmap: bytes = b"", **normalizer: bool) -> bytes:
    """A model file. kind: UNIGRAM or BPE. charsmap: how characters are changed first. normalizer: add_dummy_prefix and
    remove_extra_whitespaces, which are off where they are not named."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    for text, score, piece_type in pieces:
        model.pieces.add(piece=text, score=score, type=piece_type)
    model.trainer_spec.model_type = kind
    model.trainer_spec.vocab_size = len(pieces)
    model.trainer_spec.byte_fallback = any(piece.type == BYTE for piece in pieces)
    model.trainer_spec.unk_id = next(i for i, piece in enumerate(pieces) if piece.type == UNKNOWN)
    model.normalizer_spec.name = "user_defined" if charsmap else "identity"
    model.normalizer_spec.precompiled_charsmap = charsmap
    model.normalizer_spec.add_dummy_prefix = normalizer.get("add_dummy_prefix", False)
    model.normalizer_spec.remove_extra_whitespaces = normalizer.get("remove_extra_whitespaces", False)
    model.normalizer_spec.escape_whitespaces = True
    return model.SerializeToString(deterministic=True)
