"""core/batches.py: examples -> rows of one tensor.

In: token ids of different lengths.  Out: padded tensors, and lists of what goes through the model
together. What several examples begin with is read once: a *group* of examples is one row, which
branches where they part. A preference pair is a group of two, with one prompt and two responses:

    chosen      x1 x2 x3 a1 a2 EOS
    rejected    x1 x2 x3 b1 EOS

    ids         x1 x2   x3 a1 a2 EOS   x3 b1 EOS
    mask         .  .    .  #  #  #     .  #  #      the tokens of the responses
    branch       0  0    1  1  1  1     2  2  2      0 is the beginning that all share
    position     0  1    2  3  4  5     2  3  4      each branch counts on from the beginning

A token sees the beginning and its own branch (dpo.sequence_logps). The last token of a prompt stays
in each branch: the first token of the response is predicted there, and it differs. A group of one
example is an ordinary row.

Shapes: B rows, T tokens (right-padded).
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from core.records import Example


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all prompts share, but for the last token of each prompt."""
    # What the first and the last prompt in lexicographic order share, all share.
    first = min(prompts)
    last = max(prompts)
    size = max(0, min(len(prompt) for prompt in prompts) - 1)
    for i in range(size):
        if first[i] != last[i]:
            return i
    return size


def row_length(group: Sequence[Example]) -> int:
    """Tokens of the row that these examples make together."""
    tokens = sum(len(example.prompt) + len(example.response) for example in group)
    return tokens - (len(group) - 1) * shared_prefix([example.prompt for example in group])


def drop_long(examples: Sequence[Example], limit: int, say: Callable[[str], None]) -> list[Example]:
    """The examples that fit into `limit` tokens. How many do not is printed; none is cut."""
    fitting = [example for example in examples if row_length([example]) <= limit]
    dropped = len(examples) - len(fitting)
    if dropped:
        say(
            f"{dropped} of {len(examples)} examples are longer than {limit} tokens and were left "
            f"out"
        )
    return fitting


def group_alike(examples: Sequence[Example], rows: Sequence[int], tokens: int) -> list[list[int]]:
    """Groups of up to four examples that begin alike, such as verdicts on the same rubric.

    `rows` are the numbers of the examples to group. The shared beginning is at least a third of a
    member's length on average, and no group of several examples is longer than `tokens`.
    """
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: examples[row].prompt):
        if groups and worth_joining([examples[i] for i in (*groups[-1], row)], tokens):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def worth_joining(members: Sequence[Example], tokens: int) -> bool:
    if len(members) > 4 or row_length(members) > tokens:
        return False
    shared = shared_prefix([example.prompt for example in members])
    alone = sum(row_length([example]) for example in members)
    return 3 * len(members) * shared >= alone


def collate(
    groups: Sequence[Sequence[Example]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Groups of examples -> ids, mask, branch, position, (B,T) each. See the picture above."""
    rows = []
    for group in groups:
        start = shared_prefix([example.prompt for example in group])
        row = [(token, False, 0, i) for i, token in enumerate(group[0].prompt[:start])]
        for branch, (prompt, response) in enumerate(group, 1):
            tokens = prompt + response
            for i in range(start, len(tokens)):
                row.append((tokens[i], i >= len(prompt), branch, i))
        rows.append(torch.tensor(row))  # (T,4)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)  # (B,T,4)
    ids, mask, branch, position = padded.unbind(-1)
    return ids, mask.bool(), branch, position


def branch_view(branch: Tensor, position: Tensor) -> dict[str, Tensor]:
    """What GPT.forward needs to read rows with branches: {} where every row is one text.

    A token sees the shared beginning (branch 0) and its own branch. `tril` hides all that stands to
    the right, and so the pads, which are branch 0 too.
    """
    if int(branch.max()) < 2:
        return {}
    same_branch = branch[:, :, None] == branch[:, None, :]  # (B,T,T)
    beginning = branch[:, None, :] == 0  # (B,1,T)
    return {"positions": position, "seen": (same_branch | beginning).tril()}


def micro_batches(
    ids: Iterable[int], lengths: Sequence[int], budget: int, most: int | None = None
) -> list[list[int]]:
    """Sorts rows by length and cuts them into batches, shortest first.

    Rows x longest row stays within `budget` tokens, and no batch has more than `most` rows. A row
    that is longer than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    for i in sorted(ids, key=lambda i: lengths[i]):
        fits = batches and lengths[i] * (len(batches[-1]) + 1) <= budget
        if fits and len(batches[-1]) != most:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
