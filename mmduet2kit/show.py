"""What the notebooks show: static pictures with alt text and their data as a table; a slider only on top of them."""

import base64
import html
import inspect
import io
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import matplotlib
import numpy as np
from IPython.display import HTML, display
from matplotlib.figure import Figure

from . import report
from .dialogue import NO_REPLY, Dialogue
from .files import read_csv
from .manifest import versions
from .profile import Profile, load_profile
from .report import style
from .report.tables import SMOKE
from .score import Reward, pauc

ROOT = Path(__file__).parents[1]
KIND = {"user": style.ORANGE, "assistant": style.BLUE, "silent": style.GREY, "system": "#333333"}


def begin(name: str) -> Profile:
    """Load a profile, go to the repository's folder (all paths are relative to it) and say what runs here."""
    os.chdir(ROOT)
    profile, found = load_profile(name), versions()
    matplotlib.rcParams.update(style.LOOK)
    print(f"Python {platform.python_version()},", ", ".join(
        f"{package} {found.get(package, 'not installed')}" for package in ("torch", "transformers", "trl", "av", "numpy")))
    print(f"Profile {profile.name}: {profile.purpose}. Seeds: {', '.join(map(str, profile.seeds))}.")
    if not profile.meaningful:
        print(SMOKE)
    return profile


def table(rows: Sequence[Mapping], caption: str, most: int = 20) -> HTML:
    """Rows (dicts with the same keys) as a table with a caption; numbers to three digits, `most` rows at most."""
    def cell(value) -> str:
        return f"{value:.3g}" if isinstance(value, float) else html.escape(str(value))

    head = "".join(f'<th scope="col">{html.escape(str(key))}</th>' for key in (rows[0] if rows else ()))
    body = "".join("<tr>" + "".join(f'<td style="text-align:left">{cell(v)}</td>' for v in row.values()) + "</tr>"
                   for row in rows[:most])  # fmt: skip
    more = f" (the first {most} of {len(rows)} rows)" if len(rows) > most else ""
    return HTML(f"<table><caption>{html.escape(caption)}{more}</caption><tr>{head}</tr>{body}</table>")


def picture(figure: Figure, alt: str, rows: Sequence[Mapping] = (), kind: str = "svg") -> HTML:
    """A drawing with its alt text below it, and the rows it was drawn from, folded away."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
    return _image(buffer.getvalue(), alt, rows, kind)


def _image(data: bytes, alt: str, rows: Sequence[Mapping], kind: str) -> HTML:
    source = f"data:image/{'svg+xml' if kind == 'svg' else kind};base64,{base64.b64encode(data).decode()}"
    folded = f"<details><summary>The data as a table</summary>{table(rows, alt, 40).data}</details>" if rows else ""
    alt = html.escape(alt)
    return HTML(f'<figure style="margin:0"><img src="{source}" alt="{alt}" style="max-width:100%">'
                f"<figcaption>{alt}</figcaption>{folded}</figure>")  # fmt: skip


def figure(name: str, profile: Profile) -> HTML:
    """Draw a figure or table of the paper (a script of figures/) from the run's results files and show it."""
    draw = report.scripts()[name].draw
    paths = {path.suffix: path for path in draw(profile.results, profile.run_dir / "figures")}
    if ".svg" in paths:
        return _image(paths[".svg"].read_bytes(), paths[".txt"].read_text().strip(), read_csv(paths[".csv"]), "svg")
    made = draw.table(profile.results)
    keys = [header or " " * k for k, header in enumerate(made.header, 1)]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in made.notes)
    rows = [dict(zip(keys, row, strict=True)) for row in made.rows]
    return HTML(table(rows, made.title, len(rows)).data + f"<ul>{notes}</ul>")


def source(thing) -> HTML:
    """The source that ran, with the place where it stands."""
    lines, first = inspect.getsourcelines(thing)
    place = Path(inspect.getsourcefile(inspect.unwrap(thing))).relative_to(ROOT)
    return HTML(f"<details open><summary>{place}, from line {first}</summary>"
                f"<pre>{html.escape(''.join(lines))}</pre></details>")  # fmt: skip


def dialogue(shown: Dialogue, most: int = 40) -> HTML:
    """A dialogue as coloured rows, one a turn; silent turns in a row are one row. Roles stand in words, too."""
    events = []
    for time, turn in zip(shown.times(), shown.turns):
        if not (turn.frames and not turn.text and turn.reply == NO_REPLY):
            events.append((time, "user", f"[{len(turn.frames)} frames] {turn.text or ''}"))
        if turn.reply is not None:
            events.append((time, "silent" if turn.reply == NO_REPLY else "assistant", turn.reply))
    lines = [f'<tr style="color:{KIND["system"]}"><td></td><td>system</td><td>{html.escape(shown.system)}</td></tr>']
    for (silent, _), run in groupby(events, key=lambda e: (e[1] == "silent", e[1] != "silent" and e)):
        run = list(run)
        when = f"{run[0][0]:g}" + (f" to {run[-1][0]:g}" if len(run) > 1 else "")
        who, text = ("assistant", f"NO REPLY x {len(run)}") if silent else run[0][1:]
        lines.append(f'<tr style="color:{KIND[run[0][1]]}"><td>{when} s</td><td>{who}</td>'
                     f'<td style="text-align:left">{html.escape(text)}</td></tr>')  # fmt: skip
    return HTML(f"<table><caption>Dialogue {html.escape(shown.id)} ({shown.kind})</caption>"
                f"{''.join(lines[:most])}</table>")  # fmt: skip


def tokens(encoder, encoded, most: int = 400) -> HTML:
    """Encoded text of one dialogue; what is learned (has a label) is marked and stands in double brackets."""
    pieces = []
    pairs = list(zip(encoded.ids, [label >= 0 for label in encoded.labels], strict=True))[:most]
    for learned, run in groupby(pairs, key=lambda pair: pair[1]):
        text = html.escape(encoder.tokenizer.decode([token for token, _ in run]))
        pieces.append(f"<mark>⟦{text}⟧</mark>" if learned else text)
    return HTML(f'<pre style="white-space:pre-wrap">{"".join(pieces)}</pre>')


def strip(dataset, shown: Dialogue, caption: str, said: Sequence[tuple[float, str]] | None = None) -> HTML:
    """Frames over a timeline: when the user speaks, the gold spans, the turns and replies (`said`, or the dialogue's)."""
    end, pictures = max(shown.times()), 10
    drawing = Figure(figsize=(10, 2.6), layout="constrained")
    axes = drawing.subplots()
    indices = shown.frame_indices()[:: -(-len(shown.frame_indices()) // pictures)]
    for k, image in enumerate(dataset.frames(shown, indices)):
        axes.imshow(image, extent=((k + 0.04) * end / len(indices), (k + 0.96) * end / len(indices), 2.2, 4), aspect="auto")
    timed = list(zip(shown.times(), shown.turns))
    replies = [(t, turn.reply) for t, turn in timed if turn.reply not in (None, NO_REPLY)] if said is None else list(said)
    rows = [{"what": "user", "from": t, "to": t, "text": turn.text} for t, turn in timed if turn.text]
    rows += [{"what": "gold span", "from": g.start, "to": g.end, "text": g.text} for g in shown.gold]
    rows += [{"what": "reply", "from": t, "to": t, "text": text} for t, text in replies]
    axes.plot([t for t, turn in timed if turn.frames], [0.3] * sum(bool(t.frames) for _, t in timed), "|", color=style.GREY)
    for row in rows:
        if row["what"] == "gold span":
            axes.barh(1, row["to"] - row["from"], left=row["from"], height=0.45, color=style.GREEN, alpha=0.4,
                      edgecolor=style.GREEN)  # fmt: skip
        else:
            mark, color, y = ("v", style.ORANGE, 1.7) if row["what"] == "user" else ("D", style.BLUE, 0.3)
            axes.plot(row["from"], y, marker=mark, color=color, clip_on=False)
    axes.set(xlim=(0, end), ylim=(0, 4), yticks=[0.3, 1, 1.7, 3.1], xlabel="video time, s",
             yticklabels=["turns (|) and replies", "gold spans", "user speaks", "frames"])  # fmt: skip
    count = {what: sum(row["what"] == what for row in rows) for what in ("user", "gold span", "reply")}
    alt = (f"{caption} A strip of {len(indices)} frames over {end:g} s, with {count['user']} user texts, "
           f"{count['gold span']} gold spans and {count['reply']} replies.")  # fmt: skip
    return picture(drawing, alt, rows, "png")


def pauc_area(span, replies, max_score: float, omega: float = 0.0, initial: float = 0.5, title: str = "") -> HTML:
    """The step line of scores over a span and the area that PAUC is the share of; replies [(time, score)]."""
    value = pauc(span, replies, max_score, omega, initial)
    inside = sorted((span[0] + (t - span[0]) * (1 - omega), s) for t, s in replies if span[0] <= t <= span[1])
    times, scores = [span[0], *(t for t, _ in inside), span[1]], [initial, *(s for _, s in inside)]
    drawing = Figure(figsize=(3.2, 2.2), layout="constrained")
    axes = drawing.subplots()
    axes.fill_between(times, [*scores, scores[-1]], step="post", color=style.SKY, alpha=0.45, linewidth=0)
    axes.step(times, [*scores, scores[-1]], where="post", color=style.BLUE)
    axes.plot(times[1:-1], scores[1:], "o", color=style.BLUE, clip_on=False)
    axes.set(xlim=span, ylim=(0, max_score), xlabel="video time, s", ylabel="score", title=title)
    said = ", ".join(f"score {s:g} at {t:g} s" for t, s in replies) or "no reply"
    return picture(drawing, f"{title + ': ' if title else ''}{said}; PAUC {100 * value:.1f}.")


def reward_terms(rewards: Mapping[str, Reward], caption: str, **extra: Mapping[str, object]) -> HTML:
    """One row a rollout: the four terms, their weighted sum, and more columns by rollout name."""
    return table([{"rollout": name, "r_PAUC": r.pauc, "r_rep": r.rep, "r_in_span": r.in_span, "r_pfx": r.pfx,
                   "weighted sum": r.total} | {key: column[name] for key, column in extra.items()}
                  for name, r in rewards.items()], caption)  # fmt: skip


def group(rollouts: Sequence, caption: str) -> HTML:
    """One prompt's rollouts with rewards and advantages: (reward - group mean) / group deviation."""
    totals = np.array([r.reward.total for r in rollouts])
    advantages = (totals - totals.mean()) / (totals.std(ddof=1) + 1e-4)
    names = [f"rollout {k}" for k in range(1, len(rollouts) + 1)]
    said = ["; ".join(f"{t:g} s: {text}" for t, text in r.turns if text != NO_REPLY) or "NO REPLY at every turn"
            for r in rollouts]  # fmt: skip
    return reward_terms(dict(zip(names, (r.reward for r in rollouts))), caption,
                        advantage=dict(zip(names, map(float, advantages))), replies=dict(zip(names, said)))  # fmt: skip


def curves(paths: Mapping[str, Path], columns: Sequence[str], caption: str, x: str = "step") -> HTML:
    """Columns of CSV files over `x`, a panel a column and a line a file; files that are not there are left out."""
    found = {label: read_csv(path) for label, path in paths.items() if path.exists()}
    wide = min(len(columns), 4)
    high = -(-len(columns) // wide)
    drawing = Figure(figsize=(max(4.5, 3 * wide), 2.3 * high), layout="constrained")
    panels = drawing.subplots(high, wide, squeeze=False).flat
    ends = []
    for axes, column in zip(panels, columns):
        for k, (label, rows) in enumerate(found.items()):
            points = [(float(row[x]), float(row[column])) for row in rows if row.get(column)]
            if points:
                axes.plot(*zip(*points), label=label, **style.SERIES[k % 4] | {"marker": ""})
                ends.append({"line": label, "column": column, "first": points[0][1], "last": points[-1][1]})
        axes.set(title=column, xlabel=x)
    for axes in panels:
        axes.axis("off")
    if found and len(found) > 1:
        drawing.axes[0].legend()
    said = "; ".join(f"{e['column']} ({e['line']}) from {e['first']:.3g} to {e['last']:.3g}" for e in ends)
    return picture(drawing, f"{caption} {said or 'NOT RUN'}.", ends)


def interactive_or_static(fn: Callable, values: Sequence, default, interactive: bool) -> None:
    """Show fn(value) for the first value, the default and the last, always; with `interactive` a slider over all, too."""
    shown = "".join(f"<div>{fn(value).data}</div>" for value in dict.fromkeys((values[0], default, values[-1])))
    display(HTML(f'<div style="display:flex;flex-wrap:wrap;gap:1em">{shown}</div>'))
    if interactive:
        import ipywidgets

        ipywidgets.interact(fn, value=ipywidgets.SelectionSlider(options=list(values), value=default))


def check(answer, expected, hint: str) -> None:
    """Say in words how an exercise's answer stands; never an error, so that no exercise stops a run."""
    if answer is None:
        print("Not answered yet: replace None by your answer and run the cell again.")
    elif isinstance(answer, float | int) and isinstance(expected, float | int):
        print("Right." if abs(answer - expected) < 0.005 else f"Not yet. Your answer: {answer:g}. Hint: {hint}")
    else:
        print("Right." if answer == expected else f"Not yet. Your answer: {answer}. Hint: {hint}")
