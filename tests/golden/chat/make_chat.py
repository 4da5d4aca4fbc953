"""Makes the golden files of chat formats: what transformers' apply_chat_template gives for many conversations.

    python tests/golden/chat/make_chat.py      # transformers 5.24.0, tokenizers 0.23

gpt.json, llama.json     two small tokenizers, with the splits of text of GPT-2 and of Llama 3
ids.json                 {tokenizer: {format: [{ids, mask, prompt} of each of conversations.json]}}; mask: of the
                         template that gptjax writes at export, with {% generation %}; None: the template refuses it
The templates are those that models of these formats carry, without {% generation %}.
"""

import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gptjax.data.chat import chat_format

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[2]
SPECIAL = {
    "gpt": [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|system|>",
        "<|user|>",
        "<|assistant|>",
        "<|tool|>",
        "<|end|>",
    ],
    "llama": ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
ENDS = {"gpt": ("<|endoftext|>", "<|endoftext|>"), "llama": ("<|begin_of_text|>", "<|end_of_text|>")}
LLAMA_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '\n' if false }}{{ m.content }}<|im_end|>{{ '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}",
    "smollm2": "{% if messages[0].role != 'system' %}<|im_start|>system{{ '\n' }}You are a helpful AI assistant named SmolLM,"
    " trained by Hugging Face<|im_end|>{{ '\n' }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}{{ '\n' }}"
    "{{ m.content }}<|im_end|>{{ '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{{ '\n' }}{% endif %}",
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\n\n' }}"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant"
    "<|end_header_id|>{{ '\n\n' }}{% endif %}",
    "gptjax": None,  # ours alone: the exported one
    "template:macros.jinja": (FOLDER / "macros.jinja").read_text(),
}
FORMATS = {
    "gpt": ["chatml", "smollm2", "gptjax", "template:macros.jinja"],
    "llama": ["llama3"],
}


def made_tokenizer(name: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "gpt")
    first = (
        pre_tokenizers.Digits(individual_digits=True)
        if name == "gpt"
        else pre_tokenizers.Split(Regex(LLAMA_SPLIT), "isolated")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, split])
    tokenizer.decoder = decoders.ByteLevel()
    text = (ROOT / "README.md").read_text() + "\n\n  \n\n\n\t " * 200
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[name]])
    return tokenizer


def main() -> None:
    conversations = json.loads((FOLDER / "conversations.json").read_text())
    golden = {}
    for name in SPECIAL:
        made = made_tokenizer(name)
        (FOLDER / f"{name}.json").write_text(json.dumps(json.loads(made.to_str()), ensure_ascii=False) + "\n")
        bos, eos = ENDS[name]
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos)
        golden[name] = {f: [rendered(tokenizer, f, messages) for messages in conversations] for f in FORMATS[name]}
    (FOLDER / "ids.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")


def rendered(tokenizer, form: str, messages: list[dict]) -> dict | None:
    written = TEMPLATES[form] if form.startswith("template:") else chat_format(form).template
    plain = TEMPLATES[form] or written
    options = dict(tokenize=True, return_dict=True)
    try:
        whole = tokenizer.apply_chat_template(messages, chat_template=plain, **options)
    except Exception as error:
        assert "has to" in str(error), error
        return None
    masked = tokenizer.apply_chat_template(
        messages, chat_template=written, return_assistant_tokens_mask=True, **options
    )
    assert masked["input_ids"] == whole["input_ids"], (form, messages)
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    prompt = tokenizer.apply_chat_template(messages[:last], chat_template=plain, add_generation_prompt=True, **options)
    mask = "".join(map(str, masked["assistant_masks"]))
    return {"ids": whole["input_ids"], "mask": mask, "prompt": prompt["input_ids"]}


if __name__ == "__main__":
    main()
