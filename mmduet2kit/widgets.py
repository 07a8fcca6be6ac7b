"""What one can play with in the notebooks: a picture with its table first, also headless, and standard controls on top when live."""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from typing import TYPE_CHECKING

from IPython.display import HTML, display
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from . import show
from .corpus.video import address, frames
from .corpus.world import COLOURS, MOTIONS, SHAPES, sentence
from .dialogue import NO_REPLY, Dialogue, Gold, Segment, Turn
from .errors import UserError
from .files import read_jsonl
from .profile import Profile
from .score import FORMS, VARIANTS, get_judge, proactive_reward, score_question
from .score.pauc import not_late_worse

from tables import advantages  # isort: skip - of figures/, which show puts on the path

if TYPE_CHECKING:  # they bring torch, which takes seconds to import
    from .evaluate import Evaluator
    from .train.rollout import Rollout


def explore(draw: Callable[..., HTML], controls: Mapping[str, tuple], interactive: bool, button: str = "") -> None:
    """Show draw(*defaults), always; `interactive` puts a control for each value above it, and redraws in place.

    controls: {description: (default, options)}; options: a range (a slider with a play button), numbers (a slider), texts (a choice)
    or None (a text field). With `button` nothing is drawn anew before it is pressed. An error stands as its one sentence.
    """

    def drawn(values: Sequence) -> HTML:
        try:
            return draw(*values)
        except (UserError, OSError, RuntimeError) as error:
            return HTML(f'<p role="alert">{escape((str(error).splitlines() or [repr(error)])[0])}</p>')

    made, parts = [], []
    if interactive:
        import ipywidgets

        for name, (default, options) in controls.items():
            common = {"description": name, "style": {"description_width": "initial"}, "layout": {"width": "26em", "max_width": "100%"}}
            if options is None:
                made.append(ipywidgets.Text(default, continuous_update=False, **common))
            elif isinstance(options[0], str):
                made.append(ipywidgets.Dropdown(options=options, value=default, **common))
            else:
                made.append(ipywidgets.SelectionSlider(options=list(options), value=default, continuous_update=False, **common))
            if isinstance(options, range):
                parts.append(ipywidgets.Play(max=len(options) - 1, value=made[-1].index, interval=1000))
                ipywidgets.jslink((parts[-1], "value"), (made[-1], "index"))
            parts.append(made[-1])
        pressed = ipywidgets.Button(description=button, button_style="primary")
        display(ipywidgets.Box([*parts, *([pressed] if button else [])], layout={"flex_flow": "row wrap", "align_items": "center"}))
    place = display(drawn([default for default, _ in controls.values()]), display_id=True)
    if interactive:

        def redraw(_) -> None:
            if button:  # what waits for a press takes its time
                place.update(HTML('<p role="status">Working …</p>'))
            place.update(drawn([one.value for one in made]))

        pressed.on_click(redraw)
        for one in made if not button else ():
            one.observe(redraw, "value")


def thing(k: int, motion: int = 0) -> str:
    """A sentence of the world that the exact judge understands: its k-th colour and shape."""
    return sentence(list(COLOURS)[k], list(SHAPES)[k], list(MOTIONS)[motion])


def joined(*parts: HTML) -> HTML:
    """One below the other."""
    return HTML("".join(part.data for part in parts))


def pauc_explorer(interactive: bool) -> None:
    """Up to three replies in a gold span of 10 s whose event lasts 7 s: the area under each form's scores, and its PAUC."""
    judge, gold, end = get_judge("exact"), thing(0), 10.0
    levels = {"right": gold, "half right (another motion)": thing(0, 1), "wrong": "", "no reply": NO_REPLY}

    def draw(*values) -> HTML:
        *replies, omega = values
        said = [(t, levels[what] or thing(1 + k)) for k, (t, what) in enumerate(zip(replies[::2], replies[1::2]))]
        pictures, rows = [], []
        for name, form in FORMS.items():
            (turn,) = score_question([(0.0, end, gold, 7.0)], said, judge, name, omega=omega)
            points = sorted((reply.time, reply.score) for reply in turn.replies)
            counted = not_late_worse(points, 7.0) if form.late_worse else points
            pictures.append(show.pauc_area((0.0, end), counted, form.max_score, name, omega=omega))
            rows.append({"form": name, "scores": ", ".join(f"{s:g} at {t:g} s" for t, s in points) or "none", "of": form.max_score,
                         "left out as late and worse": len(points) - len(counted), "100 x PAUC": f"{100 * turn.pauc:.1f}"})  # fmt: skip
        return joined(show.row(pictures), show.table(rows, f"The same replies in the three forms, omega {omega:g}; the event lasts until 7 s"))

    times, controls = [k / 2 for k in range(21)], {}
    for k, (at, what) in enumerate([(3.0, "right"), (6.0, "half right (another motion)"), (8.0, "wrong")], 1):
        controls |= {f"reply {k} at, s": (at, times), f"reply {k} is": (what, list(levels))}
    explore(draw, controls | {"omega": (0.5, [k / 10 for k in range(11)])}, interactive)


def reward_explorer(interactive: bool) -> None:
    """A rollout of ten turns over two gold spans: what it says at each, its four terms and their weighted sum under each variant."""
    judge, golds = get_judge("exact"), [thing(0), thing(1)]
    shown = Dialogue("explored", "", 2.0, tuple(Turn((k,)) for k in range(10)), (Gold(0, 8, golds[0]), Gold(10, 18, golds[1])))
    says = {NO_REPLY: NO_REPLY, "the first gold answer": golds[0], "the second gold answer": golds[1], "other text": ""}

    def draw(other: str, *chosen: str) -> HTML:
        turns = [(t, says[what] or other.strip() or NO_REPLY) for t, what in zip(shown.times(), chosen)]
        rewards = {name: proactive_reward(turns, [(g.start, g.end, g.text) for g in shown.gold], covered=judge.covered, variant=name,
                                          similarity=lambda gold, said: judge.correctness("", gold, said, 4)) for name in VARIANTS}  # fmt: skip
        return joined(show.timeline(shown, {"replies": [(t, text) for t, text in turns if text != NO_REPLY]}, "A rollout over two gold spans."),
                      show.reward_terms(rewards, "Its reward by variant; weights 3, 2, 0.5 and 2", "variant"))  # fmt: skip

    spoken = {4: "the first gold answer", 6: "the first gold answer", 14: "the second gold answer", 20: "other text"}
    turns = {f"at {t:g} s": (spoken.get(t, NO_REPLY), list(says)) for t in shown.times()}
    explore(draw, {"other text": ("A thing that nobody asked about.", None)} | turns, interactive)


def player(evaluator: "Evaluator", record: dict, interactive: bool) -> None:
    """A model watches a video: up to a turn, what it saw and said, and how probable it was that it spoke."""
    shown = evaluator.dialogue(record, evaluator.profile.video.test_interval)
    (watched,) = evaluator.watch([record], shown.interval)
    replies, images = dict(watched.replies), partial(evaluator.dataset.frames, shown)
    said = [replies.get(time, NO_REPLY) if turn.frames else None for time, turn in zip(shown.times(), shown.turns)]
    asked = [k for k, turn in enumerate(shown.turns) if turn.frames]

    def draw(number: int) -> HTML:
        k = asked[number - 1]
        now, seen = shown.times()[k], shown.turns[k].frames[-1]
        axes = (drawing := Figure(figsize=(2.4, 2.4), layout="constrained")).subplots()
        axes.imshow(images([seen])[0])
        axes.axis("off")
        chance = dict(watched.speaking).get(now)
        told = f"Turn {number} at {now:g} s, its last frame; " + (f"the probability of speaking is {chance:.3f}." if chance is not None else "no probability.")
        heard = replace(shown, turns=tuple(replace(turn, reply=reply) for turn, reply in zip(shown.turns[: k + 1], said)))
        reached = lambda which: [image if index <= seen else 0 * image + 225 for index, image in zip(which, images(which))]  # noqa: E731
        whole = show.timeline(shown, {"replies": [r for r in watched.replies if r[0] <= now]}, f"{shown.id}, up to {now:g} s.", reached,
                              speaking=[one for one in watched.speaking if one[0] <= now], now=now)  # fmt: skip
        return joined(whole, show.row([show.picture(drawing, told, kind="png"), show.dialogue(heard)]))

    explore(draw, {"turn": (len(asked), range(1, len(asked) + 1))}, interactive)


def sample_groups(evaluator: "Evaluator", segments: Sequence[Segment], seed: int, step: int = 0) -> "list[Rollout]":
    """A group of sampled rollouts for each segment, with their rewards; the same for the same seed and step."""
    from .model import encoder_for
    from .train.rollout import judge_rollouts, roll_out

    rl, dataset = evaluator.profile.rl, evaluator.dataset
    first, form = dataset.frames(segments[0].dialogue, [0]), getattr(evaluator.model.config, "chat_form", "turns")
    keys = [(seed, step, i, k) for i in range(len(segments)) for k in range(rl.group)]
    rollouts = roll_out(evaluator.engine, encoder_for(evaluator.processor, first, form), dataset, segments, rl.group, keys, rl)
    judge_rollouts(rollouts, [segment for segment in segments for _ in range(rl.group)], evaluator.judge, rl)
    return rollouts


def group(rollouts: "Sequence[Rollout]", segment: Segment, caption: str, tokenizer=None) -> HTML:
    """One prompt's rollouts side by side, behind their history: where each is pushed up or down, and its reward and advantage.

    With a tokenizer also each token that they sampled, with the way it is pushed.
    """
    d, replies = segment.dialogue, [[(t, text) for t, text in r.turns if text != NO_REPLY] for r in rollouts]
    pushes = {f"rollout {k} ({a:+.2f})": a for k, a in enumerate(advantages([r.reward.total for r in rollouts]), 1)}
    past = replace(d, id=f"{d.id}: the history, given and not sampled", turns=d.turns[: segment.first])
    given = [(t, turn.reply) for t, turn in zip(past.times(), past.turns) if turn.reply not in (None, NO_REPLY)]
    lanes = ({show.HISTORY: given} if past.turns else {}) | dict(zip(pushes, replies))
    shown, until = replace(d, turns=d.turns[: segment.last], gold=segment.gold), max(past.times(), default=0.0)
    told = f"{caption} All tokens that a rollout sampled, silence too, are pushed by its advantage; none of the history (grey)."
    drawn = show.timeline(shown, lanes, told, pushes=pushes, given=until)
    said = ["; ".join(f"{t:g} s: {text}" for t, text in mine) or "silent" for mine in replies]
    scored = show.reward_terms({f"{k}": r.reward for k, r in enumerate(rollouts, 1)}, caption, advantage=list(pushes.values()), replies=said)
    return joined(drawn, show.dialogue(past), scored, *([pushed(rollouts, pushes, tokenizer)] if tokenizer else []))


def pushed(rollouts: "Sequence[Rollout]", pushes: Mapping[str, float], tokenizer) -> HTML:
    """Turn by turn the tokens that each rollout sampled, with their sign; the highest advantage first."""
    rows = [{"turn, s": f"{t:g}"} for t, _ in rollouts[0].turns]
    for (name, push), r in sorted(zip(pushes.items(), rollouts), key=lambda one: -one[0][1]):
        way = (push > 0) - (push < 0)
        runs = [[t for t, _ in run] for sampled, run in groupby(zip(r.completion, r.mask), lambda pair: pair[1]) if sampled]
        for row, run in zip(rows, runs):
            signed = " ".join("-·+"[way + 1] + tokenizer.decode([token]) for token in run)
            row[name] = Markup('<span style="background:#fff;color:{}">{}</span>').format(show.MARKS[way][1], signed)
    return show.table(rows, "Tokens of each rollout, the highest advantage first: + is pushed up (made likelier), - down, · neither", len(rows))


def predictions(profile: Profile, model: str, seed: int) -> dict[str, list[tuple[float, str]]]:
    """What notebook 06 heard from this model on the test videos, at the test interval: {question: [(s, text)]}."""
    paths = (profile.results / "eval" / "predictions").glob(f"{model}-seed{seed}-*-{profile.video.test_interval:g}s.jsonl")
    return {line["question_id"]: [(one["time"], one["content"]) for one in line["model_response_list"] if one["role"] == "assistant"]
            for path in sorted(paths) for line in read_jsonl(path)}  # fmt: skip


def compare(evaluator: "Evaluator", record: dict, said: Mapping[str, Mapping[str, list]], onsets: Mapping | None) -> HTML:
    """What several models ({name: predictions}) said about one record; with onsets, how long after each they first were right."""
    shown = evaluator.dialogue(record, evaluator.profile.video.test_interval)
    lanes = {name: heard.get(record["question_id"], []) for name, heard in said.items()}
    seen, waits, rows = [onsets[record["video"], g.start] for g in shown.gold] if onsets else [], {name: [] for name in lanes}, []
    for g, onset in zip(shown.gold, seen):
        rows.append({"gold span, s": f"{g.start:g} to {g.end:g}", "onset, s": onset})
        for name, replies in lanes.items():
            right = [t for t, text in replies if g.start <= t <= g.end and evaluator.judge.correctness(g.question, g.text, text, 4) == 4]
            waits[name] += [(onset, right[0])] if right and right[0] >= onset else []
            rows[-1][f"{name}, s later"] = "-" if not right else right[0] - onset if right[0] >= onset else "before it"
    drawn = show.timeline(shown, lanes, f"{shown.id}, watched by {', '.join(lanes)}.", partial(evaluator.dataset.frames, shown), onsets=seen, waits=waits)
    return joined(drawn, show.table(rows, "The first right reply after each onset")) if onsets else drawn


def own_video(evaluator: "Evaluator", path: str, question: str, most: int = 120) -> HTML:
    """The model watches the first `most` frames of any file that FFmpeg opens, by the functions of `mmduet2 watch`."""
    from .watch import Ahead, session, watch

    if not question.strip():
        raise UserError("Nothing is asked: write a question.")
    path, model, interval = os.path.expanduser(path.strip()), evaluator.model, evaluator.profile.video.test_interval
    address(path)
    with closing(Ahead(frames(path, interval, max_tokens=getattr(model.config, "visual_tokens", 128)), 8)) as ahead:
        seen = list(islice(ahead, most))
    if not seen:
        raise UserError(f"{path} holds no frame at intervals of {interval:g} s: give a longer video.")
    stream = session(model, evaluator.processor, seen[0][1], limit=8192)
    heard = list(watch(stream, seen, [(0.0, question.strip())], interval, 1, evaluator.profile.evaluate.max_new_tokens))
    replies = [(one["time"], one["text"]) for one in heard if one["text"] != NO_REPLY]
    shown = Dialogue(path, path, interval, (Turn(text=question.strip()), *(Turn((number,)) for number, _, _ in seen)))
    cut = f" (its first {most * interval:g} s)" * (len(seen) == most)
    return joined(show.timeline(shown, {"replies": replies}, f"{os.path.basename(path)}{cut}.", lambda which: [seen[k][1] for k in which]),
                  show.table([{"s": t, "reply": text} for t, text in replies], "What the model said" if replies else "The model stayed silent"))  # fmt: skip
