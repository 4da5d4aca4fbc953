"""Instructions that a program can check, as IFEval names them (Zhou et al. 2023, "Instruction-Following Evaluation for
Large Language Models", table 1).

A record says which: {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "at least",
"num_words": 20}]}, as IFEval's records do. Checks are ours, by the table CHECKS; languages are told by py3langid and
sentences end at . ! ? and their Chinese and Japanese kin, where IFEval has langdetect and NLTK.
"""

import dataclasses
import inspect
import math

from gptjax.errors import UserError, choose
from gptjax.posttrain.rewards import checks
from gptjax.posttrain.rewards.reward import Answer

CHECKS = {
    "keywords:existence": checks.keywords_there,
    "keywords:frequency": checks.keyword_frequency,
    "keywords:forbidden_words": checks.no_forbidden_words,
    "keywords:letter_frequency": checks.letter_frequency,
    "language:response_language": checks.language,
    "language:script": checks.script,  # ours
    "length_constraints:number_sentences": checks.number_of_sentences,
    "length_constraints:number_paragraphs": checks.number_of_paragraphs,
    "length_constraints:number_words": checks.number_of_words,
    "length_constraints:nth_paragraph_first_word": checks.first_word_of_paragraph,
    "detectable_content:number_placeholders": checks.placeholders,
    "detectable_content:postscript": checks.postscript,
    "detectable_format:number_bullet_lists": checks.bullets,
    "detectable_format:constrained_response": checks.one_of_the_options,
    "detectable_format:number_highlighted_sections": checks.highlights,
    "detectable_format:multiple_sections": checks.sections,
    "detectable_format:json_format": checks.is_json,
    "detectable_format:title": checks.title,
    "combination:two_responses": checks.two_responses,
    "combination:repeat_prompt": checks.repeats_prompt,
    "startend:end_checker": checks.ends_with,
    "startend:start_checker": checks.starts_with,  # ours
    "startend:quotation": checks.quoted,
    "change_case:capital_word_frequency": checks.capital_words,
    "change_case:english_capital": checks.upper_case,
    "change_case:english_lowercase": checks.lower_case,
    "punctuation:no_comma": checks.no_comma,
}


@dataclasses.dataclass(frozen=True)
class Instructions:
    """The share of the record's instructions that the answer follows; with all_of=True 1 where it follows all."""

    all_of: bool = False
    field: str = "instruction_id_list"
    parameters: str = "kwargs"

    def __call__(self, answer: Answer) -> float:
        names = answer.field(self.field)
        parameters = answer.fields.get(self.parameters) or [{}] * len(names)
        if len(parameters) != len(names) or not names:
            raise UserError(
                f"the record has {len(names)} instructions in {self.field!r} and {len(parameters)} sets of parameters in"
                f" {self.parameters!r}; expected one set for each."
            )
        follows = [followed(name, answer.text, values or {}) for name, values in zip(names, parameters)]
        return float(all(follows)) if self.all_of else math.fsum(follows) / len(follows)


def followed(name: str, text: str, parameters: dict) -> bool:
    """Whether a text follows an instruction. An empty one follows none. Parameters that are None are left out, as Parquet has
    one for each field of any record.

    Raises UserError: no such instruction, parameters that it does not take or that are missing.
    """
    check = choose(CHECKS, name, "instruction")
    values = {key: value for key, value in parameters.items() if value is not None}
    takes = inspect.signature(check).parameters
    needed = [key for key, each in takes.items() if key != "text" and each.default is each.empty]
    wrong = [key for key in values if key not in takes] + [key for key in needed if key not in values]
    if wrong:
        names = ", ".join(key for key in takes if key != "text") or "none"
        raise UserError(f"the instruction {name!r} has or lacks the parameter {wrong[0]!r}; it takes: {names}.")
    return bool(text.strip()) and bool(check(text, **values))
