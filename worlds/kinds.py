"""worlds/kinds.py: the kinds of requirement in the checked world.

In: a Random, and texts.  Out: for each kind its sentences, its check, and two edits: one makes a
text keep the requirement, the other makes it break it.
A text that keeps one requirement must be able to keep another. So every kind has a place, a prompt
asks for one kind of a place at most, and edits are made in the order of PLACES.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from worlds.requirements import (
    capital_words,
    ends_with,
    has_keywords,
    has_postscript,
    has_title,
    is_lower,
    is_quoted,
    is_upper,
    keyword_frequency,
    lacks_commas,
    lacks_words,
    number_of_bullets,
    number_of_highlights,
    number_of_paragraphs,
    number_of_placeholders,
    number_of_sections,
    number_of_words,
    two_responses,
)

PLACES = ("length", "words", "layout", "marks", "end", "start", "case")
NOUNS = """garden river window morning letter music bridge winter market teacher island
    mirror engine forest pocket summer kitchen village story paper""".split()  # noqa: SIM905
PLAIN_WORDS = ("very", "make", "new", "use", "well")
NAMES = "Anna Boris Carla David Elif Farid Greta Hugo Irene Jonas".split()  # noqa: SIM905
OPENINGS = ("Of course", "Here is my answer", "Let me see", "In short", "My view is this")
CLOSINGS = (
    "That is all.",
    "Hope this helps.",
    "Thank you for asking.",
    "Have a nice day.",
    "Tell me what you think.",
    "I am glad to help.",
)
FILLERS = (
    "There is more to say about it.",
    "This is what matters most here.",
    "Many people would say the same.",
    "It is a good place to begin.",
    "Everything else follows from that.",
)


@dataclass(frozen=True)
class Kind:
    """One kind of requirement. `check` and the edits take its arguments by name."""

    name: str
    place: str  # one of PLACES
    check: Callable[..., bool]  # (text, **arguments)
    keep: Callable[..., str]  # (text, rng, **arguments): an edit after which the check holds
    spoil: Callable[..., str]  # the same; the check fails
    values: dict[str, Sequence] = field(default_factory=dict)  # what arguments are drawn from

    @property
    def sentences(self) -> list[str]:
        """Ways to ask for it, with {arguments}."""
        return SENTENCES[self.name]


def sentences_of(text: str) -> dict[str, list[str]]:
    """For example "a: x | y" -> {"a": ["x", "y"]}. Lines of one name make one list."""
    table: dict[str, list[str]] = {}
    for line in text.strip().splitlines():
        name, sentences = line.split(": ", 1)
        table.setdefault(name, []).extend(sentences.split(" | "))
    return table


# ---- what the edits share ----


def sentences_in(text: str) -> list[str]:
    """A mark ends a sentence where a gap follows it: not in "3.5", "U.S." or "Why?" in quotes."""
    return re.findall(r"\S.*?(?:[.!?]+(?=\s)|$)", text.strip(), re.DOTALL)


def joined_lines(text: str) -> str:
    """Without line breaks, and without the marks of lists and of parts."""
    text = re.sub(r"\*{3,}|section \d+", "", text, flags=re.IGNORECASE)
    lines = [re.sub(r"^\s*(?:[-*]|\d+[.)])\s+", "", line) for line in text.splitlines()]
    return " ".join(line.strip() for line in lines if line.strip())


def in_parts(text: str, n: int) -> list[str]:
    """The text in n parts: whole sentences where there are enough of them, else words."""
    line = joined_lines(text)
    pieces = sentences_in(line)
    if len(pieces) < n:
        words = line.split()
        pieces = (words * n)[: max(n, len(words))]
    size = len(pieces)
    return [" ".join(pieces[size * i // n : size * (i + 1) // n]) for i in range(n)]


def other_number(rng: Random, n: int) -> int:
    return rng.choice([n - 1, n + 1]) if n > 2 else n + 1


def plain(text: str, rng: Random, **_) -> str:
    """The edit that makes lists and parts one line."""
    return joined_lines(text)


# ---- length ----


def fewer_words(text: str, *, n: int) -> bool:
    return number_of_words(text, num_words=n, relation="less than")


def enough_words(text: str, *, n: int) -> bool:
    return number_of_words(text, num_words=n, relation="at least")


def cut(text: str, rng: Random, *, n: int) -> str:
    """A third of what is allowed, so that other edits can add something."""
    words = list(re.finditer(r"\w+", text))
    return text if len(words) <= n // 3 else text[: words[n // 3 - 1].end()] + "."


def stretch(text: str, rng: Random, *, n: int) -> str:
    while not enough_words(text, n=n):
        text = f"{text} {rng.choice(FILLERS)}"
    return text


# ---- words ----


def mention(text: str, rng: Random, *, word: str, n: int = 1) -> str:
    """The word n times more, between two sentences."""
    frames = ("I thought of a {}.", "Think of the {}.", "It is like a {}.", "The {} comes to mind.")
    added = [rng.choice(frames).format(word) for _ in range(n)]
    first, *rest = sentences_in(text)
    return " ".join([first.strip(), *added, *(part.strip() for part in rest)])


def omit(text: str, rng: Random, *, word: str, n: int = 1) -> str:
    return re.sub(re.escape(word), "thing", text, flags=re.IGNORECASE)


def mentions(text: str, *, word: str) -> bool:
    return has_keywords(text, keywords=[word])


def mentions_often(text: str, *, word: str, n: int) -> bool:
    return keyword_frequency(text, keyword=word, frequency=n, relation="at least")


def mention_once(text: str, rng: Random, *, word: str, n: int) -> str:
    """Too seldom."""
    return mention(omit(text, rng, word=word), rng, word=word)


def avoids(text: str, *, word: str) -> bool:
    return lacks_words(text, forbidden_words=[word])


# ---- layout ----


def bullets(text: str, *, n: int) -> bool:
    return number_of_bullets(text, num_bullets=n)


def as_bullets(text: str, rng: Random, *, n: int) -> str:
    return "\n".join(f"- {part}" for part in in_parts(text, n))


def other_bullets(text: str, rng: Random, *, n: int) -> str:
    return as_bullets(text, rng, n=other_number(rng, n))


def numbered(text: str, *, n: int) -> bool:
    found = re.findall(r"^\s*(\d+)[.)]\s", text, re.MULTILINE)
    return found == [str(i) for i in range(1, n + 1)]


def as_numbers(text: str, rng: Random, *, n: int) -> str:
    return "\n".join(f"{i}. {part}" for i, part in enumerate(in_parts(text, n), 1))


def other_numbers(text: str, rng: Random, *, n: int) -> str:
    return as_numbers(text, rng, n=other_number(rng, n))


def paragraphs(text: str, *, n: int) -> bool:
    return number_of_paragraphs(text, num_paragraphs=n)


def as_paragraphs(text: str, rng: Random, *, n: int) -> str:
    return "\n***\n".join(in_parts(text, n))


def other_paragraphs(text: str, rng: Random, *, n: int) -> str:
    return as_paragraphs(text, rng, n=other_number(rng, n))


def sections(text: str, *, n: int) -> bool:
    return number_of_sections(text.lower(), section_spliter="section", num_sections=n)


def as_sections(text: str, rng: Random, *, n: int) -> str:
    return "\n".join(f"Section {i}: {part}" for i, part in enumerate(in_parts(text, n), 1))


def as_two_answers(text: str, rng: Random) -> str:
    return f"{text}\n******\n{rng.choice(FILLERS)}"


def has_no_breaks(text: str) -> bool:
    return "\n" not in text.strip()


def broken_up(text: str, rng: Random) -> str:
    return "\n".join(in_parts(text, rng.choice((2, 3))))


# ---- marks ----


def drop_commas(text: str, rng: Random) -> str:
    return text.replace(",", "")


def add_comma(text: str, rng: Random) -> str:
    spaces = [match.start() for match in re.finditer(r"(?<=\w) (?=\w)", text)]
    if not spaces:
        return text + ", yes"
    place = rng.choice(spaces)
    return f"{text[:place]},{text[place:]}"


def exclaims(text: str) -> bool:
    return "!" in text


def exclaim(text: str, rng: Random) -> str:
    return re.sub(r"[.!?]?\s*$", "!", text, count=1)


def calm_down(text: str, rng: Random) -> str:
    return text.replace("!", ".")


def has_digit(text: str) -> bool:
    return re.search(r"\d", text) is not None


def add_digit(text: str, rng: Random) -> str:
    return f"{text} I would give it {rng.randint(2, 9)} points."


def drop_digits(text: str, rng: Random) -> str:
    return re.sub(r"\d+", "some", text)


def has_brackets(text: str) -> bool:
    return re.search(r"\([^()\n]+\)", text) is not None


def add_brackets(text: str, rng: Random) -> str:
    return mark_words(text, rng, "({})", 1)


def drop_brackets(text: str, rng: Random) -> str:
    return re.sub(r"[()]", "", text)


def placeholders(text: str, *, n: int) -> bool:
    return number_of_placeholders(text, num_placeholders=n)


def mark_words(text: str, rng: Random, form: str, n: int) -> str:
    """Marks n words that stand inside a line; where there are too few, words are added."""
    inside = list(re.finditer(r"(?<=\w )[A-Za-z]{3,}(?![\w*\])])", text))
    chosen = rng.sample(inside, min(n, len(inside)))
    for match in sorted(chosen, key=lambda match: -match.start()):
        marked = form.format(match[0])
        text = text[: match.start()] + marked + text[match.end() :]
    return text + "".join(" " + form.format("indeed") for _ in range(n - len(chosen)))


def add_placeholders(text: str, rng: Random, *, n: int) -> str:
    return mark_words(text, rng, "[{}]", n)


def drop_placeholders(text: str, rng: Random, *, n: int) -> str:
    return re.sub(r"[\[\]]", "", text)


def highlights(text: str, *, n: int) -> bool:
    return number_of_highlights(text, num_highlights=n)


def add_highlights(text: str, rng: Random, *, n: int) -> str:
    return mark_words(drop_highlights(text, rng, n=n), rng, "*{}*", n)


def drop_highlights(text: str, rng: Random, *, n: int) -> str:
    return re.sub(r"(?<!\*)\*{1,2}(?!\*)", "", text)


# ---- start ----


def add_title(text: str, rng: Random) -> str:
    return f"<<The {rng.choice(NOUNS)}>>{line_end(text)}{text}"


def line_end(text: str) -> str:
    """What parts a beginning from a text: a text of several lines, such as a list, keeps them."""
    return "\n" if "\n" in text else " "


def drop_title(text: str, rng: Random) -> str:
    return re.sub(r"<<|>>", "", text)


def quote(text: str, rng: Random) -> str:
    gap = line_end(text).strip(" ")
    return f'"{gap}{text.strip()}"'


def unquote(text: str, rng: Random) -> str:
    return text.strip().strip('"')


def begins_with(text: str, *, phrase: str) -> bool:
    return text.strip().lower().startswith(phrase.lower())


def put_first(text: str, rng: Random, *, phrase: str) -> str:
    return f"{phrase}:{line_end(text)}{text}"


def other_start(text: str, rng: Random, *, phrase: str) -> str:
    if begins_with(text, phrase=phrase):
        return text[len(phrase) :].lstrip(" :.,;") or "Well."
    return text


# ---- end ----


def ends_in(text: str, *, phrase: str) -> bool:
    return ends_with(text, end_phrase=phrase)


def put_last(text: str, rng: Random, *, phrase: str) -> str:
    return f"{text} {phrase}"


def other_end(text: str, rng: Random, *, phrase: str) -> str:
    """Another closing, or the right one too early."""
    others = [closing for closing in CLOSINGS if closing != phrase]
    return rng.choice((f"{text} {rng.choice(others)}", f"{phrase} {text} So it is.", text + " So."))


def has_ps(text: str) -> bool:
    return has_postscript(text, postscript_marker="P.S.")


def add_ps(text: str, rng: Random) -> str:
    return f"{text} P.S. {rng.choice(FILLERS)}"


def drop_ps(text: str, rng: Random) -> str:
    return re.sub(r"p\.\s?s\.", "", text, flags=re.IGNORECASE)


def ends_with_question(text: str) -> bool:
    return text.strip().strip('"').endswith("?")


def ask_last(text: str, rng: Random) -> str:
    return f"{text} {rng.choice(('Is that clear?', 'What do you think?', 'Does it help?'))}"


def ask_first(text: str, rng: Random) -> str:
    """A question in the wrong place, or none."""
    return rng.choice((f"Is that clear? {text} So it is.", text.rstrip('?" ') + "."))


def is_signed(text: str, *, name: str) -> bool:
    return ends_with(text, end_phrase=f"Signed {name}")


def sign(text: str, rng: Random, *, name: str) -> str:
    return f"{text} Signed {name}"


def sign_otherwise(text: str, rng: Random, *, name: str) -> str:
    other = rng.choice([one for one in NAMES if one != name])
    return rng.choice((f"{text} Signed {other}", f"Signed {name} {text} So it is.", text + " So."))


def has_last_tag(text: str) -> bool:
    return re.search(r"#\w+\W*$", text) is not None


def add_tag(text: str, rng: Random) -> str:
    return f"{text} #{rng.choice(NOUNS)}"


def drop_tags(text: str, rng: Random) -> str:
    return text.replace("#", "") + " So it is."


# ---- case ----


def lower(text: str, rng: Random, **_) -> str:
    return text.lower()


def upper(text: str, rng: Random) -> str:
    return text.upper()


def some_capitals(text: str, rng: Random) -> str:
    """One word in capitals among small letters, or small letters among capitals: neither is all."""
    words = text.split(" ")
    place = rng.randrange(len(words))
    words[place] = words[place].swapcase() if words[place].isupper() else words[place].upper()
    return " ".join(words) + " Yes"


def loud_words(text: str, *, n: int) -> bool:
    return capital_words(text, capital_frequency=n, capital_relation="at least")


def add_loud_words(text: str, rng: Random, *, n: int) -> str:
    """Inside the text, so that its beginning and its end stay."""
    inside = list(re.finditer(r"(?<=\w )[A-Za-z]*[a-z]{3,}(?=[.,!?]?(?:\s|$))", text))
    chosen = rng.sample(inside, min(n, len(inside)))
    for match in chosen:
        text = text[: match.start()] + match[0].upper() + text[match.end() :]
    return text + " INDEED" * (n - len(chosen))


SENTENCES = sentences_of("""
few words: Use fewer than {n} words. | Stay below {n} words. | Write less than {n} words.
many words: Use at least {n} words. | Write {n} words or more. | Do not stop before {n} words.
keyword: Use the word {word}. | Let the word {word} occur. | Make sure that {word} is named.
keyword often: Use the word {word} at least {n} times. | Say {word} {n} times or more.
word avoided: Avoid the word {word}. | Do not say {word}. | The word {word} is forbidden.
bullets: Give exactly {n} bullet points that begin with a dash.
bullets: Answer as a list of exactly {n} bullets (- like this).
bullets: Write exactly {n} lines that begin with a dash.
numbered list: Number your points from 1. to {n}. | Give a numbered list with exactly {n} items.
paragraphs: Write exactly {n} paragraphs with *** between them. | Separate exactly {n} parts by ***.
paragraphs: Divide your answer into exactly {n} parts by a line of ***.
sections: Mark {n} sections as Section 1 and so on. | Write Section 1 to Section {n}.
two answers: Give two different answers with ****** between them. | Separate two answers by ******.
one line: Write a single line. | Use no line breaks. | Put everything on one line.
no commas: Use no commas. | Do without commas. | Write no comma at all.
exclamation: Use an exclamation mark. | Write at least one exclamation mark. | Exclaim something!
digits: Use a number written in digits. | Write at least one digit. | Let a digit occur.
brackets: Put something in round brackets. | Use round brackets (like these).
placeholders: Use at least {n} placeholders in square brackets such as [name].
placeholders: Leave {n} or more gaps such as [date]. | Write at least {n} words in square brackets.
highlights: Highlight at least {n} words with asterisks such as *this*.
highlights: Emphasise {n} or more words *like this*. | Put asterisks around at least {n} words.
title: Give it a title in double angle brackets such as <<title>>.
title: Begin with a title such as <<my title>>. | Add a title between << and >>.
quotation marks: Put the whole answer in double quotation marks.
quotation marks: Wrap your answer in double quotes. | Begin and end with a double quotation mark.
opening phrase: Begin with the exact phrase "{phrase}". | Start with "{phrase}".
opening phrase: The first words must be "{phrase}".
end phrase: End with the exact phrase "{phrase}" | Finish with the words "{phrase}"
end phrase: The last words must be "{phrase}"
postscript: Add a postscript that begins with P.S. | Close with a P.S. | Include a P.S. line.
question: End with a question. | Let the last sentence be a question. | Finish by asking.
signature: End with "Signed {name}". | Close with the words "Signed {name}".
hashtag: End with a hashtag such as #topic. | Let a hashtag be the last word.
lower case: Use small letters only. | Write no capital letters. | Write all in lower case.
capitals: Use capital letters only. | Write everything in capitals. | Write all in upper case.
capital words: Write at least {n} words in capitals. | Let {n} or more words be ALL CAPITALS.
""")

FEW_WORDS = Kind("few words", "length", fewer_words, cut, stretch, {"n": (30, 40, 50)})
MANY_WORDS = Kind("many words", "length", enough_words, stretch, cut, {"n": (20, 30, 40)})
KEYWORD = Kind("keyword", "words", mentions, mention, omit, {"word": NOUNS})
KEYWORD_OFTEN = Kind(
    "keyword often", "words", mentions_often, mention, mention_once, {"word": NOUNS, "n": (2, 3)}
)
WORD_AVOIDED = Kind("word avoided", "words", avoids, omit, mention, {"word": PLAIN_WORDS})
BULLETS = Kind("bullets", "layout", bullets, as_bullets, other_bullets, {"n": (2, 3, 4)})
NUMBERED_LIST = Kind(
    "numbered list", "layout", numbered, as_numbers, other_numbers, {"n": (2, 3, 4)}
)
PARAGRAPHS = Kind(
    "paragraphs", "layout", paragraphs, as_paragraphs, other_paragraphs, {"n": (2, 3)}
)
SECTIONS = Kind("sections", "layout", sections, as_sections, plain, {"n": (2, 3)})
TWO_ANSWERS = Kind("two answers", "layout", two_responses, as_two_answers, plain)
ONE_LINE = Kind("one line", "layout", has_no_breaks, plain, broken_up)
NO_COMMAS = Kind("no commas", "marks", lacks_commas, drop_commas, add_comma)
EXCLAMATION = Kind("exclamation", "marks", exclaims, exclaim, calm_down)
DIGITS = Kind("digits", "marks", has_digit, add_digit, drop_digits)
BRACKETS = Kind("brackets", "marks", has_brackets, add_brackets, drop_brackets)
PLACEHOLDERS = Kind(
    "placeholders", "marks", placeholders, add_placeholders, drop_placeholders, {"n": (1, 2)}
)
HIGHLIGHTS = Kind(
    "highlights", "marks", highlights, add_highlights, drop_highlights, {"n": (1, 2, 3)}
)
TITLE = Kind("title", "start", has_title, add_title, drop_title)
QUOTATION_MARKS = Kind("quotation marks", "start", is_quoted, quote, unquote)
OPENING_PHRASE = Kind(
    "opening phrase", "start", begins_with, put_first, other_start, {"phrase": OPENINGS}
)
END_PHRASE = Kind("end phrase", "end", ends_in, put_last, other_end, {"phrase": CLOSINGS})
POSTSCRIPT = Kind("postscript", "end", has_ps, add_ps, drop_ps)
QUESTION = Kind("question", "end", ends_with_question, ask_last, ask_first)
SIGNATURE = Kind("signature", "end", is_signed, sign, sign_otherwise, {"name": NAMES})
HASHTAG = Kind("hashtag", "end", has_last_tag, add_tag, drop_tags)
LOWER_CASE = Kind("lower case", "case", is_lower, lower, some_capitals)
CAPITALS = Kind("capitals", "case", is_upper, upper, some_capitals)
CAPITAL_WORDS = Kind("capital words", "case", loud_words, add_loud_words, lower, {"n": (2, 3)})

SEEN = (
    FEW_WORDS,
    MANY_WORDS,
    KEYWORD,
    KEYWORD_OFTEN,
    BULLETS,
    PARAGRAPHS,
    ONE_LINE,
    NO_COMMAS,
    EXCLAMATION,
    DIGITS,
    PLACEHOLDERS,
    HIGHLIGHTS,
    TITLE,
    QUOTATION_MARKS,
    OPENING_PHRASE,
    END_PHRASE,
    POSTSCRIPT,
    QUESTION,
    SIGNATURE,
    LOWER_CASE,
    CAPITALS,
)
# In the exam only, never in training:
UNSEEN = (WORD_AVOIDED, NUMBERED_LIST, SECTIONS, TWO_ANSWERS, BRACKETS, HASHTAG, CAPITAL_WORDS)
KINDS = SEEN + UNSEEN
