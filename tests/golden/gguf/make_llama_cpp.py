"""Makes llama_cpp.json beside this file: what llama.cpp says of files that gptjax exported. For each tokenizer of
tests/support/gguf_kinds.py the ids of its texts, and the tokens that a tiny random model goes on with.

pip install xllamacpp==2026.10.11549 && PYTHONPATH=.:tests/support python tests/golden/gguf/make_llama_cpp.py
"""

import json
import pathlib
import tempfile
import urllib.request

import gguf_kinds
import xllamacpp

import gptjax
from gptjax.data.tokenizers import save_tokenizer
from gptjax.gguf import exporting
from gptjax.huggingface import importing

HERE = pathlib.Path(__file__).parent
PROMPT, LENGTH = "Alle Menschen", 24


def server(path: pathlib.Path):
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 256, 1, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def ask(running, address: str, question: dict) -> dict:
    body = json.dumps(question).encode()
    request = urllib.request.Request(running.listening_address + address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def said_of(name: str, base: pathlib.Path) -> dict:
    tokenizer = gguf_kinds.tokenizer(name)
    gguf_kinds.write_folder(base / "hf", tokenizer.vocab_size)
    save_tokenizer(tokenizer, base / "tokenizer")
    importing.import_folder(str(base / "hf"), str(base / "run"), str(base / "tokenizer"))
    loaded = gptjax.load(base / "run")
    exporting.export_run(loaded, str(base / "model.gguf"))
    running = server(base / "model.gguf")
    ids = [
        ask(running, "/tokenize", {"content": text, "add_special": False, "parse_special": False})["tokens"]
        for text in gguf_kinds.TEXTS
    ]
    prompt = tokenizer.encode(PROMPT).tolist()
    question = {"prompt": prompt, "n_predict": LENGTH, "temperature": 0, "top_k": 1, "ignore_eos": True}
    written = ask(running, "/completion", question | {"return_tokens": True, "cache_prompt": False})["tokens"]
    return {"ids": ids, "prompt": prompt, "written": written}


if __name__ == "__main__":
    said = {}
    for name in gguf_kinds.NAMES:
        with tempfile.TemporaryDirectory() as folder:
            said[name] = said_of(name, pathlib.Path(folder))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in said.items())
    (HERE / "llama_cpp.json").write_text(f"{{\n{lines}\n}}\n")
