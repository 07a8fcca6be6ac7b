"""Ours: the same rollouts under the paper's reward and under the released code's: rewards, advantages, rankings."""

from itertools import combinations

import numpy as np
from matplotlib.figure import Figure

import drawings
import style
import tables

TERMS = ("pauc", "rep", "in_span", "pfx")
NAMES = {"paper": "the paper's reward", "upstream": "the released code's"}
WHOSE = {"paper": "paper", "upstream": "code"}


@drawings.figure("ours2_variants", "Ours. The same rollouts under the paper's reward and the released code's")
def draw(run):
    """Left: each rollout's advantage within its group under both; right: how far each weighted term moves it."""
    rows = run.need("variants.csv")
    paper, code = (_advantages(tables.select(rows, variant=variant)) for variant in ("paper", "upstream"))
    pairs = [(a, b) for group in {key[0] for key in paper} for a, b in combinations([k for k in paper if k[0] == group], 2)]
    decided = [(a, b) for a, b in pairs if abs(paper[a] - paper[b]) > 1e-9 and abs(code[a] - code[b]) > 1e-9]
    flipped = sum((paper[a] - paper[b]) * (code[a] - code[b]) < 0 for a, b in decided)
    x, y = (np.array([found[key] for key in paper]) for found in (paper, code))
    figure = Figure(figsize=(style.WIDTH, 2.75), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.axline((0, 0), slope=1, color=style.GREY, linewidth=0.8, linestyle="--")
    opposite = x * y < 0
    left.plot(x[~opposite], y[~opposite], "o", color=style.BLUE, markersize=3, label="same sign")
    left.plot(x[opposite], y[opposite], "X", color=style.ORANGE, markersize=5, label="opposite sign")
    left.set(xlabel="advantage, paper's reward", ylabel="advantage, released code's", title="a point is a rollout")
    shown = []
    for place, (variant, colour, hatch) in enumerate((("paper", style.BLUE, ""), ("upstream", style.ORANGE, "//"))):
        mine = tables.select(rows, variant=variant)
        spread = [_within(mine, f"weighted_{term}") for term in TERMS]
        right.bar(np.arange(4) + 0.4 * place - 0.2, spread, 0.4, color=colour, hatch=hatch, edgecolor="white", linewidth=0, label=NAMES[variant])
        shown += [{"variant": variant, "term": term, "deviation_within_groups": round(value, 4)}
                  for term, value in zip(TERMS, spread)]  # fmt: skip
    right.set(xticks=range(4), xticklabels=["r_PAUC", "r_rep", "r_in_span", "r_pfx"], ylabel="deviation within groups", title="how far a weighted term moves it")
    known = [axes.get_legend_handles_labels() for axes in (left, right)]
    figure.legend(sum((marks for marks, _ in known), []), sum((names for _, names in known), []), loc="outside upper center", ncols=4)
    alike = f"{np.corrcoef(x, y)[0, 1]:.2f}" if x.std() and y.std() else "not defined"
    told = (f"{len(paper)} rollouts of {len({key[0] for key in paper})} prompts: of {len(decided)} pairs of siblings that both "
            f"rewards tell apart, {flipped} change places; {int(opposite.sum())} advantages change their sign; the advantages' "
            f"correlation is {alike}.")  # fmt: skip
    drawings.source(figure, run.line(rows), "Advantage: a rollout's reward above its group's mean, in the group's deviations.")
    return figure, told, shown


def flips(rows: list[dict]) -> list[dict]:
    """Of each prompt the two siblings that the two rewards rank otherwise and farthest apart: their rewards and advantages under
    both, and the term whose difference between the two moves most."""
    of = {(row["variant"], row["group"], row["rollout"]): row for row in rows}
    both = {variant: _advantages(tables.select(rows, variant=variant)) for variant in NAMES}
    found = []
    for a, b in (pair for pair in combinations(both["paper"], 2) if pair[0][0] == pair[1][0]):
        far = [both[variant][a] - both[variant][b] for variant in NAMES]
        if far[0] * far[1] < -1e-9:
            def differs(variant, term, pair=(a, b)):
                return np.subtract(*(float(of[variant, *key][f"weighted_{term}"]) for key in pair))

            two = {variant: [(float(of[variant, *key]["total"]), both[variant][key]) for key in (a, b)] for variant in NAMES}
            term = max(TERMS, key=lambda name: abs(differs("upstream", name) - differs("paper", name)))
            found.append((min(map(abs, far)), {"prompt": int(a[0]) + 1, "rollouts": f"{int(a[1]) + 1}, {int(b[1]) + 1}"}
                          | {f"reward, {who}": ", ".join(f"{one:.2f}" for one, _ in two[variant]) for variant, who in WHOSE.items()}
                          | {f"advantage, {who}": ", ".join(f"{one:+.2f}" for _, one in two[variant]) for variant, who in WHOSE.items()}
                          | {"by": f"r_{term}".replace("pauc", "PAUC")}))  # fmt: skip
    farthest = {row["prompt"]: row for _, row in sorted(found, key=lambda one: one[0])}  # the last of a prompt stays
    return sorted(farthest.values(), key=lambda row: row["prompt"])


def _groups(rows: list[dict], column: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(float(row[column]))
    return found


def _within(rows: list[dict], column: str) -> float:
    """Root of the mean variance within groups."""
    return float(np.sqrt(np.mean([np.var(values) for values in _groups(rows, column).values()])))


def _advantages(rows: list[dict]) -> dict[tuple[str, str], float]:
    """{(group, rollout): advantage}."""
    found = {group: iter(tables.advantages(totals)) for group, totals in _groups(rows, "total").items()}
    return {(row["group"], row["rollout"]): next(found[row["group"]]) for row in rows}


if __name__ == "__main__":
    drawings.main(draw)
