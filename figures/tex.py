r"""Tables as LaTeX that fits a page of 5.5 inches and needs no package: \input it, \ref{tab:proactive}."""

import re
from collections.abc import Sequence

LETTERS, GAP = 98, 1.6  # of a line of 5.5 inches at \footnotesize; between two columns at a \tabcolsep of 3 points
SIGNS = {"\\": r"\textbackslash{}", "±": r"$\pm$", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
         "†": r"$\dagger$", "×": r"$\times$", "“": "``", "”": "''"} | {sign: "\\" + sign for sign in "&%$#_{}"}  # fmt: skip


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped; a mean and its deviation stay on one line, `code` is a typewriter's."""
    parts = ["".join(SIGNS.get(sign, sign) for sign in part).replace(r" $\pm$ ", r"\,$\pm$\,") for part in text.split("`")]
    return "".join(rf"\texttt{{{part}}}" if k % 2 else part for k, part in enumerate(parts))


def label(name: str) -> str:
    r"""tab2_proactive: tab:proactive, for \ref."""
    return f"tab:{name.partition('_')[2]}"


def caption(title: str) -> str:
    """A title without "Table 2.", since LaTeX counts for itself."""
    return re.sub(r"^Table \d+\. |^Ours\. ", "", title)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A column specification each: l where whole rows fit the page; else p, where narrow columns keep their lines whole and wide ones break."""
    cells = [[text.replace(" ± ", "+-+") for text in column] for column in zip(header, *rows)]
    if sum(max(map(len, column)) for column in cells) + GAP * len(cells) <= LETTERS:
        return ["l"] * len(cells)
    least = [2.5 + max(len(word) for text in column for word in text.split() or [""]) for column in cells]
    whole = [max(low, 2.5 + max(map(len, column[1:]), default=0)) for low, column in zip(least, cells)]  # headers may break
    room, cap = LETTERS - GAP * len(cells), 1.0
    while sum(widths := [min(high, max(low, cap)) for low, high in zip(least, whole)]) < room and cap < LETTERS:
        cap += 0.5
    return [rf"p{{{width / max(sum(widths), room) * room / LETTERS:.3f}\linewidth}}" for width in widths]
