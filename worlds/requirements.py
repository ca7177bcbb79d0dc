"""worlds/requirements.py: what a prompt can demand of an answer so that a program can check it.

In: an answer as text, and the arguments of a demand.  Out: whether the answer keeps it.
The checks are those of IFEval (Zhou et al. 2023, arXiv 2311.07911, instruction_following_eval) and
follow the published definitions, corner cases included, so figures compare with others'.
Where they differ on purpose:
- Keywords and other arguments are plain text; the reference reads them as regular expressions.
- All capitals and all lower case: only the case is checked. The reference also asks a language
  detector whether the text is English.
- A letter may be any character. For one outside a to z, the reference draws a random letter.
- Words in capitals: two patterns stand for the reference's tokenizer. On jumbled marks, such as
  "IT'S'TIS", the count can differ by one or two.
Left out on purpose: the kinds in LEFT_OUT, which need language tools.
"""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from core.errors import UserError
from core.files import is_text

RELATIONS = ("less than", "at least")
OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
LEFT_OUT = {
    "language:response_language": "needs a language detector",
    "length_constraints:number_sentences": "needs a trained sentence splitter",
}
# Words in capitals are counted as the Penn Treebank splits them: "I'M" is two words, "U.S." one.
WORD_BREAKS = re.compile(r"""[\s;@#$%&?!*()\[\]{}<>"`“”‘’«»„–—]|[:,](?!\d)|--|\.{2,}""")
SECOND_HALVES = re.compile(
    r"(?<=[^'\s])(?:'(?:s|m|d|ll|re|ve)|n't)(?![\w/]|-(?!-))"
    r"|(?<=\bcan)not\b|(?<=\b(?:gon|wan))na\b|(?<=\bgot)ta\b|(?<=\b(?:gim|lem))me\b",
    re.IGNORECASE,
)


# ---- what the checks share ----


def compares(count: int, relation: str, bound: int) -> bool:
    return count < bound if relation == "less than" else count >= bound


def parts_between(text: str, divider: str) -> list[str] | None:
    """The stripped parts of a text; None where one is empty that is not the first or the last."""
    parts = [part.strip() for part in text.split(divider)]
    if "" in parts[1:-1]:
        return None
    return [part for part in parts if part]


# ---- keywords ----


def has_keywords(text: str, *, keywords: list) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    return compares(text.lower().count(keyword.strip().lower()), relation, frequency)


def lacks_words(text: str, *, forbidden_words: list) -> bool:
    """Whole words: "bark" is not in "embarked"."""
    patterns = [rf"\b{re.escape(word)}\b" for word in forbidden_words]
    return not any(re.search(pattern, text, re.IGNORECASE) for pattern in patterns)


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compares(text.lower().count(letter.lower()), let_relation, let_frequency)


# ---- length ----


def number_of_words(text: str, *, num_words: int, relation: str) -> bool:
    return compares(len(re.findall(r"\w+", text)), relation, num_words)


def number_of_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Paragraphs with *** between them."""
    paragraphs = parts_between(text, "***")
    return paragraphs is not None and len(paragraphs) == num_paragraphs


def first_word_of_paragraph(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> bool:
    """Paragraphs with two line breaks between them; the nth begins with this word.

    As in the reference, empty paragraphs do not count, but they do when the nth is looked up.
    """
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n")]
    count = len(paragraphs) - paragraphs.count("")
    if count != num_paragraphs or not 1 <= nth_paragraph <= count:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    if not words:
        return False
    word = words[0].lstrip("'").lstrip('"')
    return re.split(r"[.,?!'\"]", word)[0].lower() == first_word.lower()


# ---- content and format ----


def number_of_placeholders(text: str, *, num_placeholders: int) -> bool:
    """Such as [address]."""
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def has_postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker anywhere. P.S. and P.P.S may hold spaces, and every case is good."""
    marker = postscript_marker.strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    pattern = patterns.get(marker, re.escape(marker))
    return re.search(pattern, text, re.IGNORECASE) is not None


def number_of_bullets(text: str, *, num_bullets: int) -> bool:
    """Lines that begin with "*" or "-". A line of bold text is none, a divider --- is one."""
    stars = re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^\s*-", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def has_an_option(text: str) -> bool:
    return any(option in text for option in OPTIONS)


def number_of_highlights(text: str, *, num_highlights: int) -> bool:
    """Markdown: *one* or **one**, within a line."""
    single = re.findall(r"\*([^\n*]*)\*", text)
    double = re.findall(r"\*\*([^\n*]*)\*\*", text)
    marked = [words for words in single + double if words.strip()]
    return len(marked) >= num_highlights


def number_of_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """Headings such as "Section 1"."""
    headings = re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)
    return len(headings) >= num_sections


def is_json(text: str) -> bool:
    """The whole text, which may stand in a markdown block."""
    content = re.sub(r"^```(?:json|Json|JSON)?", "", text.strip())
    try:
        json.loads(content.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    """Such as <<poem of joy>>, within a line."""
    titles = re.findall(r"<<([^\n]+)>>", text)
    return any(title.lstrip("<").rstrip(">").strip() for title in titles)


# ---- combinations, beginning and end ----


def two_responses(text: str) -> bool:
    """Two answers that differ, with ****** between them."""
    responses = parts_between(text, "******") or []
    return len(responses) == 2 and responses[0] != responses[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends_with(text: str, *, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def is_quoted(text: str) -> bool:
    stripped = text.strip()
    return len(stripped) > 1 and stripped[0] == stripped[-1] == '"'


# ---- case and punctuation ----


def capital_words(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    words = WORD_BREAKS.split(SECOND_HALVES.sub(r" \g<0>", text))
    return compares(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def is_upper(text: str) -> bool:
    return text.isupper()


def is_lower(text: str) -> bool:
    return text.islower()


def lacks_commas(text: str) -> bool:
    return "," not in text


# Each check takes the text, and the arguments that a prompt's "kwargs" must have, by name and type.
CHECKS_OF_CONTENT = {
    "keywords:existence": has_keywords,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": lacks_words,
    "keywords:letter_frequency": letter_frequency,
    "length_constraints:number_words": number_of_words,
    "length_constraints:number_paragraphs": number_of_paragraphs,
    "length_constraints:nth_paragraph_first_word": first_word_of_paragraph,
    "detectable_content:number_placeholders": number_of_placeholders,
    "detectable_content:postscript": has_postscript,
}
CHECKS_OF_FORM = {
    "detectable_format:number_bullet_lists": number_of_bullets,
    "detectable_format:constrained_response": has_an_option,
    "detectable_format:number_highlighted_sections": number_of_highlights,
    "detectable_format:multiple_sections": number_of_sections,
    "detectable_format:json_format": is_json,
    "detectable_format:title": has_title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeats_prompt,
    "startend:end_checker": ends_with,
    "startend:quotation": is_quoted,
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": is_upper,
    "change_case:english_lowercase": is_lower,
    "punctuation:no_comma": lacks_commas,
}
CHECKS: dict[str, Callable[..., bool]] = CHECKS_OF_CONTENT | CHECKS_OF_FORM


# ---- one requirement, one answer ----


@dataclass(frozen=True)
class Requirement:
    """One demand of a prompt. `kind` is an id of IFEval, `arguments` are those of its check."""

    kind: str
    arguments: dict

    def met(self, text: str) -> bool:
        """Strict: by the text as it is. An empty text meets nothing."""
        return text.strip() != "" and CHECKS[self.kind](text, **self.arguments)

    def met_loosely(self, text: str) -> bool:
        """By one of the eight variants of the text."""
        return any(self.met(variant) for variant in loose_variants(text))


def loose_variants(text: str) -> list[str]:
    """The text; without its first line, its last, and both; and these four without asterisks."""
    lines = text.split("\n")
    cuts = [lines[1:], lines[:-1], lines[1:-1]]
    variants = [text, *("\n".join(cut).strip() for cut in cuts)]
    return variants + [variant.replace("*", "") for variant in variants]


# ---- requirements in a file ----


def read_requirement(place: str, kind: object, arguments: object) -> Requirement:
    """Raises UserError for an unknown kind, and for arguments that its check does not take."""
    if not isinstance(kind, str) or kind not in CHECKS.keys() | LEFT_OUT.keys():
        raise UserError(f"{place}: {kind!r} is not a kind of requirement that IFEval has.")
    if not isinstance(arguments, dict):
        raise UserError(f"{place}: 'kwargs' must hold one object for each requirement.")
    arguments = {name: value for name, value in arguments.items() if value is not None}
    wanted = wanted_arguments(kind) if kind in CHECKS else None
    if wanted is not None and not arguments_fit(arguments, wanted):
        signature = ", ".join(f"{name} ({type_.__name__})" for name, type_ in wanted.items())
        raise UserError(
            f"{place}: {kind} takes {signature or 'no arguments'}; 'kwargs' has "
            f"{json.dumps(arguments)}."
        )
    return Requirement(kind, arguments)


def wanted_arguments(kind: str) -> dict[str, type]:
    types = inspect.get_annotations(CHECKS[kind])
    return {name: types[name] for name in types if name not in ("text", "return")}


def arguments_fit(arguments: dict, wanted: dict[str, type]) -> bool:
    if arguments.keys() != wanted.keys():
        return False
    return all(argument_fits(name, arguments[name], type_) for name, type_ in wanted.items())


def argument_fits(name: str, value: object, wanted: type) -> bool:
    if wanted is list:
        return isinstance(value, list) and value != [] and all(map(is_text, value))
    if wanted is str:
        return is_text(value) and (not name.endswith("relation") or value in RELATIONS)
    return isinstance(value, int)
