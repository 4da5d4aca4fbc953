"""Makes ifeval.json: what lm-eval's implementation of IFEval says of texts and instructions that it can check offline.

pip install lm-eval langdetect immutabledict && python tests/golden/make_ifeval.py
"""

import json
import pathlib

from lm_eval.tasks.ifeval import instructions_registry

TEXTS = [
    "Hello, world. This is GOOD. Is it?",
    "* one\n* two\n- three",
    "*hi* and **bold** text",
    "<<title>> x [name] [place]",
    "P.S. bye",
    "My answer is yes.",
    '{"a": 1}',
    "```json\n[1]\n```",
    "first part\n***\nsecond part",
    "one\n\ntwo words\n\nthree",
    "A ****** B",
    "A******B",
    '"quoted text"',
    "ALL CAPS HERE",
    "all lower here",
    "Section 1 abc Section 2 def",
    "SECTION 1\nxx",
    "the end phrase",
    "repeat me please. Yes",
    "x, y",
    "don't stop\n\nno",
    "p. s. late",
    "P.P.S more",
    "***\nonly\n***",
    "**",
    "word " * 30,
]
BOTH = ("at least", "less than")
INSTRUCTIONS = {
    "keywords:existence": [{"keywords": ["hello"]}, {"keywords": ["one", "two"]}],
    "keywords:frequency": [{"keyword": "a", "frequency": 3, "relation": each} for each in BOTH],
    "keywords:forbidden_words": [{"forbidden_words": ["one", "end"]}],
    "keywords:letter_frequency": [{"letter": "e", "let_frequency": 2, "let_relation": each} for each in BOTH],
    "length_constraints:number_paragraphs": [{"num_paragraphs": n} for n in (1, 2)],
    "length_constraints:number_words": [{"num_words": 4, "relation": each} for each in BOTH],
    "length_constraints:nth_paragraph_first_word": [
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "two"},
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "don"},
    ],
    "detectable_content:number_placeholders": [{"num_placeholders": n} for n in (1, 2, 3)],
    "detectable_content:postscript": [{"postscript_marker": each} for each in ("P.S.", "P.P.S")],
    "detectable_format:number_bullet_lists": [{"num_bullets": n} for n in (1, 2, 3)],
    "detectable_format:constrained_response": [{}],
    "detectable_format:number_highlighted_sections": [{"num_highlights": n} for n in (1, 2, 3)],
    "detectable_format:multiple_sections": [
        {"section_spliter": each, "num_sections": n} for each in ("Section", "SECTION") for n in (1, 2)
    ],
    "detectable_format:json_format": [{}],
    "detectable_format:title": [{}],
    "combination:two_responses": [{}],
    "combination:repeat_prompt": [{"prompt_to_repeat": "repeat me"}],
    "startend:end_checker": [{"end_phrase": "end phrase"}],
    "startend:quotation": [{}],
    "punctuation:no_comma": [{}],
}


def followed(name: str, parameters: dict, text: str) -> bool:
    check = instructions_registry.INSTRUCTION_DICT[name](name)
    check.build_description(**parameters)
    return bool(check.check_following(text))


cases = [
    {"name": name, "parameters": parameters, "followed": [followed(name, parameters, text) for text in TEXTS]}
    for name, several in INSTRUCTIONS.items()
    for parameters in several
]
file = pathlib.Path(__file__).with_name("ifeval.json")
file.write_text(json.dumps({"texts": TEXTS, "cases": cases}) + "\n")
print(len(cases), "instructions of", len(TEXTS), "texts")
