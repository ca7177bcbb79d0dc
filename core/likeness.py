"""core/likeness.py: is a prompt too much like one that is known?

In: prompts.  Out: yes or no, according to ROUGE-L (Lin 2004) over lower-case words.
Thousands of prompts are compared in seconds: an index finds those that share enough words, and the
longest common subsequence is computed on bits.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence


class PromptText:
    """A prompt as lower-case words, with what makes a comparison fast."""

    def __init__(self, text: str):
        self.words = text.lower().split()
        self.line = " ".join(self.words)
        self.masks: dict[str, int] = {}  # word -> its places, as bits
        self.bag: set[tuple[str, int]] = set()  # (word, how often it came before): a multiset
        seen: Counter[str] = Counter()
        for place, word in enumerate(self.words):
            self.masks[word] = self.masks.get(word, 0) | 1 << place
            self.bag.add((word, seen[word]))
            seen[word] += 1


def common_subsequence(text: PromptText, words: Sequence[str]) -> int:
    """Length of the longest common subsequence of two prompts, by bit arithmetic (Hyyro 2004)."""
    everything = (1 << len(text.words)) - 1
    row = everything
    for word in words:
        matches = row & text.masks.get(word, 0)
        row = (row + matches) | (row - matches)
    return len(text.words) - (row & everything).bit_count()


class KnownPrompts:
    """The prompts so far. A new one must not be too much like any of them.

    `limit` is the ROUGE-L F1 with an earlier prompt at which a new one is refused; 1 refuses copies
    only. Of thousands of prompts, only those are compared that share enough words.
    """

    def __init__(self, texts: Iterable[str] = (), limit: float = 0.7):
        self.limit = limit
        self.texts: list[PromptText] = []
        self.lines: set[str] = set()
        self.holders: dict[tuple[str, int], list[int]] = defaultdict(list)  # of a word: prompts
        for text in texts:
            self.add(PromptText(text))

    def add(self, text: PromptText) -> None:
        for word in text.bag:
            self.holders[word].append(len(self.texts))
        self.texts.append(text)
        self.lines.add(text.line)

    def like(self, text: PromptText) -> bool:
        """Whether ROUGE-L F1 with a known prompt reaches the limit."""
        # count the words that each known prompt shares with this one
        shared_words: Counter[int] = Counter()
        for word in text.bag:
            shared_words.update(self.holders.get(word, ()))
        # compare those that share enough
        for i, shared in shared_words.items():
            other = self.texts[i]
            # F1 = 2 lcs / (words of one + words of the other), and lcs <= shared words
            least = self.limit * (len(text.words) + len(other.words)) / 2
            if shared >= least and common_subsequence(text, other.words) >= least:
                return True
        return False
