"""A tiny BERT with a tokenizer, and vectors of texts by transformers: python tests/golden/sentence_encoder/make.py

Made with transformers 5.24.0, torch 2.13.0, tokenizers 0.23."""

import json
import pathlib

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

HERE = pathlib.Path(__file__).parent
TEXTS = ["a cat", "The cat sat on a mat.", "mat", "a dog ate the cat on the mat and the dog sat on a mat " * 4]

words = "the a cat sat on mat dog ate and . ##s c d m".split()
vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
ends = [("[CLS]", 2), ("[SEP]", 3)]
tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
tokenizer.save(str(HERE / "tokenizer.json"))

config = BertConfig(
    vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
    max_position_embeddings=32, initializer_range=0.5,
)  # fmt: skip
torch.manual_seed(0)
model = BertModel(config, add_pooling_layer=False).eval()
for parameter in model.parameters():  # none at its initial zero or one, which would hide mistakes
    parameter.data += 0.2 * torch.randn_like(parameter)
model.save_pretrained(HERE)
(HERE / "sentence_bert_config.json").write_text('{"max_seq_length": 20}\n')
vectors = []
for text in TEXTS:  # each alone: no padding
    ids = tokenizer.encode(text).ids
    ids = ids if len(ids) <= 20 else [*ids[:19], 3]
    with torch.no_grad():
        mean = model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    vectors.append((mean / mean.norm()).tolist())
(HERE / "expected.json").write_text(json.dumps({"texts": TEXTS, "vectors": vectors}) + "\n")
