"""An index of passages: by words (BM25, of bm25s), by vectors, or both.

With both, the two orders are joined by reciprocal rank fusion (Cormack, Clarke and Buettcher 2009): a passage's score is the sum
of 1 / (60 + its rank). Scores of the two kinds are on scales of their own, and are never added.

    index.json       what made the vectors, and how many passages there are
    passages.jsonl   text, source, line
    words/           as bm25s saves it
    vectors.npy      float32 [N, D], of length 1
"""

import json
import pathlib
import re
import typing

import numpy as np

from gptjax.applications import vectors
from gptjax.applications.documents import Passage
from gptjax.config.extras import library
from gptjax.errors import UserError

FUSION = 60  # the constant of the paper
CANDIDATES = 50  # of each order that are joined
# A word, or one character of a script that has no spaces between words.
_WORDS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")


class Index:
    """search(question, count) is the best passages. embedder: a function from texts to float32 [N, D]; None: by words alone."""

    def __init__(self, passages: list[Passage], words, vector_ND=None, embedder=None):
        self.passages, self._words, self._vector_ND, self._embedder = passages, words, vector_ND, embedder

    def search(self, question: str, count: int) -> list[Passage]:
        """The best passages, `count` at most, the best first; by words alone, only those that share a word with the question."""
        orders = [self._by_words(question)]
        if self._vector_ND is not None:
            orders.append(self._by_vectors(question))
        return [self.passages[i] for i in fused(orders)[:count]]

    def _by_words(self, question: str) -> list[int]:
        score_N = self._words.get_scores(words_of(question)) if words_of(question) else np.zeros(len(self.passages))
        return [int(i) for i in np.argsort(-score_N, kind="stable")[:CANDIDATES] if score_N[i] > 0]

    def _by_vectors(self, question: str) -> list[int]:
        similarity_N = self._vector_ND @ self._embedder([question])[0]
        return np.argsort(-similarity_N, kind="stable")[:CANDIDATES].tolist()


def words_of(text: str) -> list[str]:
    """Lower-case words."""
    return _WORDS.findall(text.lower())


def fused(orders: list[list[int]]) -> list[int]:
    """Numbers of passages, the best first, of several orders of them; of equal ones the lower number."""
    score: dict[int, float] = {}
    for order in orders:
        for rank, i in enumerate(order, start=1):
            score[i] = score.get(i, 0.0) + 1 / (FUSION + rank)
    return sorted(score, key=lambda i: (-score[i], i))


def build(passages: list[Passage], folder: str, embeddings: str | None = None, progress=lambda done, of: None) -> Index:
    """Writes an index and returns it. embeddings: as vectors.embedder; None: by words alone. Raises UserError: the folder is
    there and is no index, or a passage is too long for what makes the vectors."""
    target = pathlib.Path(folder)
    if target.exists() and any(target.iterdir()) and not (target / "index.json").exists():
        raise UserError(f"--out={folder} is there and is no index; use a new folder.")
    words = library("bm25s", "an index").BM25()
    words.index([words_of(one.text) for one in passages], show_progress=False)
    embedder = None if embeddings is None else vectors.embedder(embeddings)
    vector_ND = None if embedder is None else vectors.of_texts(embedder, [one.text for one in passages], progress)
    target.mkdir(parents=True, exist_ok=True)
    for stale in (target / "index.json", target / "vectors.npy"):  # an index that is half written is none
        stale.unlink(missing_ok=True)
    words.save(str(target / "words"), show_progress=False)
    with open(target / "passages.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in passages)
    if vector_ND is not None:
        np.save(target / "vectors.npy", vector_ND)
    (target / "index.json").write_text(json.dumps({"passages": len(passages), "embeddings": embeddings}) + "\n")
    return Index(passages, words, vector_ND, embedder)


def load(folder: str) -> Index:
    """Raises UserError: there is no index, or its parts are not of one another."""
    source = pathlib.Path(folder)
    try:
        facts = json.loads((source / "index.json").read_text())
        lines = (source / "passages.jsonl").read_text(encoding="utf-8").splitlines()
        passages = [Passage(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--index={folder} holds no index ({error}); make one with gptjax index --out={folder} FILES."
        ) from error
    words = library("bm25s", "an index").BM25.load(str(source / "words"))
    embeddings = typing.cast(str | None, facts["embeddings"])
    vector_ND = None if embeddings is None else np.load(source / "vectors.npy")
    if facts["passages"] != len(passages) or (vector_ND is not None and len(vector_ND) != len(passages)):
        raise UserError(f"--index={folder} has parts of different indexes; make it anew with gptjax index.")
    return Index(passages, words, vector_ND, None if embeddings is None else vectors.embedder(embeddings))
