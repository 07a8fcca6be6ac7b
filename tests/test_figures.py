"""Figures and tables: pure functions of results files, complete, byte-stable, honest about gaps."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import drawings
import fake_results
import numpy as np
import pytest
import results
import style
import tex
from matplotlib.text import Text

from mmduet2kit.files import read_csv, read_json, write_csv, write_json
import tables
from mmduet2kit.report import redraw, scripts

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "figures").glob("*[0-9]_*.py"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three fake runs: one seed, three seeds, smoke."""
    folder = tmp_path_factory.mktemp("runs")
    made = {"one": ((1,), "tiny"), "three": ((1, 2, 3), "tiny"), "smoke": ((1,), "smoke")}
    return {name: fake_results.make(folder / name, *how) for name, how in made.items()}


@pytest.fixture(scope="module")
def drawn(runs):
    """What redraw writes for each of them."""
    return {name: redraw(data, data.parent / "out") for name, data in runs.items()}


def test_every_figure_and_table_has_a_short_script():
    numbers = sorted(int(name[3]) for name in NAMES if name[:3] in ("fig", "tab"))
    assert numbers == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7]
    assert set(scripts()) == set(NAMES)
    for name in NAMES:
        assert len((ROOT / "figures" / f"{name}.py").read_text().splitlines()) <= 120, name


def test_drawing_needs_no_model_library():
    code = (
        "import sys; from mmduet2kit.report import scripts; scripts();"
        "print([m for m in ('torch', 'transformers', 'trl', 'matplotlib.pyplot') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "[]"


def test_redraw_is_complete_quick_and_byte_stable(runs, drawn, tmp_path):
    code = (
        "import sys, matplotlib; from mmduet2kit.report import redraw; matplotlib.rcParams['font.size'] = 30;"
        "redraw(*sys.argv[1:])"
    )
    started, first = time.monotonic(), drawn["three"]
    subprocess.run(
        [sys.executable, "-c", code, str(runs["three"]), str(tmp_path)],
        cwd=ROOT,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert time.monotonic() - started < 60
    for path in first:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    kinds = {name: {p.suffix for p in first if p.stem == name} for name in NAMES}
    for name, found in kinds.items():
        assert found == (
            {".md", ".tex", ".csv"} if hasattr(scripts()[name].draw, "table") else {".svg", ".pdf", ".png", ".txt", ".csv"}
        )
    assert {path.name for path in first} == {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fig4_pauc"])  # an example, no results
def test_missing_input_prints_not_run(name, tmp_path):
    for path in scripts()[name].draw(tmp_path / "nothing", tmp_path):
        assert path.stat().st_size > 0
        if path.suffix in (".md", ".txt"):
            assert "NOT RUN" in path.read_text() and str(tmp_path) not in path.read_text()  # the same bytes wherever the clone lies


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"types": 3}', '{"frames": [], "caption": "", "span": [0, 1], "onset": 0}']
)
@pytest.mark.parametrize("figure, start", [("figure1", "fig1"), ("figure2", "fig2"), ("figure3", "fig3"), ("before_after", "ours5")])
def test_damaged_json_prints_not_run(figure, start, broken, tmp_path):
    (tmp_path / f"{figure}.json").write_text(broken)
    script = next(script for name, script in scripts().items() if name.startswith(start))
    assert "NOT RUN" in next(p for p in script.draw(tmp_path, tmp_path) if p.suffix == ".txt").read_text()


def test_header_without_rows_is_not_run(tmp_path):
    write_csv(tmp_path / "figure5.csv", [], ["seed", "step", "domain", "pauc", "duplicate", "reply_turns"])
    paths = scripts()["fig5_dynamics"].draw(tmp_path, tmp_path / "out")
    assert "NOT RUN" in next(p for p in paths if p.suffix == ".txt").read_text()


def test_alt_text_and_data_stand_beside_each_figure(drawn):
    texts = [path for path in drawn["one"] if path.suffix == ".txt"]
    assert len(texts) == 9
    for path in texts:
        assert len(path.read_text()) > 80 and "NOT RUN" not in path.read_text()
        assert read_csv(path.with_suffix(".csv"))


def test_figures_fit_a_papers_page(runs, drawn, monkeypatch, tmp_path):
    """As wide as a paper's text, no letter under 6 points or over the edge, fonts that a PDF's reader can edit (no Type 3)."""
    small, over = [], []

    def watched(figure, out, name, *rest):
        figure.draw_without_rendering()
        page = figure.get_tightbbox()
        over.extend([name] * bool(page.x0 < -0.01 or page.x1 > style.WIDTH + 0.01))
        small.extend((name, text.get_text()) for text in figure.findobj(Text) if text.get_text().strip() and text.get_fontsize() < 6)
        return []

    monkeypatch.setattr(drawings, "_save", watched)
    for script in scripts().values():
        if not hasattr(script.draw, "table"):
            for run in runs.values():
                script.draw(run, tmp_path)
    assert small == [] and over == []
    for path in drawn["three"]:
        if path.suffix == ".pdf":
            text = path.read_bytes()
            assert b"/Type3" not in text and b"/FontFile2" in text and b"/MediaBox [0 0 396 " in text.replace(b"[ ", b"["), path.name
        if path.suffix == ".svg":
            assert 'width="396pt"' in path.read_text() and "mathdefault" not in path.read_text(), path.name


def test_tables_put_the_papers_numbers_beside_the_kits_and_say_the_seeds(runs):
    three = scripts()["tab2_proactive"].draw.table(runs["three"])
    rows = {(row[0], row[1]): row for row in three.rows}
    assert rows["MMDuet2 rl", "paper"][2:] == ["53.3 / 4.2", "33.6 / 8.1", "43.4 / 1.0", "28.9 / 15.2"]
    assert "±" in rows["MMDuet2 rl", "kit"][2] and any("3 seeds (1, 2, 3)" in note for note in three.notes)
    assert rows["latency, s: MMDuet2 rl", "kit, ours"] and not any(row[2].count("/") > 1 for row in three.rows)
    one = scripts()["tab2_proactive"].draw.table(runs["one"])
    assert any("one seed" in note for note in one.notes) and "±" not in str(one.rows)
    six = {(row[0], row[1]): row for row in scripts()["tab6_rewards"].draw.table(runs["three"]).rows}
    assert (
        six["- r_in_span", "paper"][2:] == ["62.7 / 9.6 / 8.4", "FAIL"]
        and six["- r_in_span", "kit"][3] == "FAIL"
    )
    assert ("- r_PAUC (ours)", "kit") in six and ("- r_PAUC (ours)", "paper") not in six


def test_smoke_numbers_never_stand_beside_the_papers(runs, drawn):
    for name, script in scripts().items():
        if name.startswith("tab"):
            table = script.draw.table(runs["smoke"])
            assert "paper" not in {row[1] for row in table.rows} and tables.SMOKE in table.notes, name
    for path in drawn["smoke"]:
        if path.suffix == ".txt":
            assert tables.SMOKE in path.read_text() and "450" not in path.read_text(), path.name


def test_few_replies_and_failed_seeds():
    rows = [
        {"seed": 1, "duplicate": 50, "multi_spans": 9, "status": "ok"},
        {"seed": 2, "duplicate": 10, "multi_spans": 10},
    ]
    assert drawings.cell(rows[:1], "duplicate") == "-"
    assert drawings.cell(rows, "duplicate") == "10.0"
    assert (
        drawings.cell([{"pauc": 30, "status": "ok"}, {"pauc": "", "status": "FAIL"}], "pauc")
        == "30.0 (FAIL: 1 of 2 seeds)"
    )
    assert drawings.cell([{"pauc": "", "status": "NOT RUN"}], "pauc") == "NOT RUN" == drawings.cell([], "pauc")


def test_latex_is_escaped():
    assert drawings.latex("50% of r_rep & ±") == r"50\% of r\_rep \& $\pm$"
    assert drawings.latex("“-”: 1.0 ± 0.2 by `a_b -- c`") == r"``-'': 1.0\,$\pm$\,0.2 by \texttt{a\_b -- c}"


def test_wide_tables_break_their_cells_and_stay_on_the_page():
    assert tex.columns(["", "from"], [["a", "b"], ["c", "d"]]) == ["l", "l"]
    wide = tex.columns(["", "from", "[WEB]"], [["x " * 60, "kit", "1.0 ± 2.0 / 3.0"], ["y", "paper", "4"]])
    shares = [float(one[2:].partition("\\")[0]) for one in wide]
    assert sum(shares) < 1 and shares[0] > 0.5 and shares[1] > 5 / tex.LETTERS


def test_tables_are_latex_that_can_be_pointed_at(drawn, tmp_path):
    """Each has a label and no "Table 2." within its caption; with a LaTeX here they all compile into a page of 5.5 inches."""
    paths = [path for path in drawn["three"] if path.suffix == ".tex"]
    labels = [re.search(r"\\label\{(tab:[a-z_]+)\}", path.read_text())[1] for path in paths]
    assert {"tab:proactive", "tab:rewards", "tab:formats"} <= set(labels) and len(set(labels)) == len(paths) == 8
    assert not any(re.search(r"\\caption\{Table \d", path.read_text()) for path in paths)
    if not shutil.which("pdflatex"):
        pytest.skip("no LaTeX here: the tables are written, not compiled")
    body = "".join(rf"\input{{{path}}}\clearpage " for path in paths) + "".join(rf"\ref{{{one}}} " for one in labels)
    page = r"\documentclass{article}\textwidth=5.5in\begin{document}" + body + r"\end{document}"
    (tmp_path / "all.tex").write_text(page)
    for _ in range(2):
        said = subprocess.run(["pdflatex", "-halt-on-error", "-interaction=batchmode", "all.tex"], cwd=tmp_path, capture_output=True, text=True)
        assert said.returncode == 0, (tmp_path / "all.log").read_text()[-2000:]
    log = (tmp_path / "all.log").read_text()
    assert "undefined" not in log and max(map(float, re.findall(r"Overfull .hbox \(([\d.]+)pt", log)), default=0) < 6  # the gap between columns


def test_tables_say_whether_the_rule_for_few_replies_holds(runs):
    """The rule rests on the number of gold turns with more than one reply; only the formats' file has none."""
    for name, file in (("tab2_proactive", "table2"), ("tab6_rewards", "table6"), ("tab7_intervals", "table7"), ("ours4_formats", "formats")):
        counted, notes = "multi_spans" in results.COLUMNS[file].split(), scripts()[name].draw.table(runs["one"]).notes
        assert counted == (file != "formats") == (drawings.RULE in notes) != (drawings.FEW in notes)


def test_table_6_prints_no_duplicates_of_few_replies(runs, tmp_path):
    shutil.copytree(runs["one"], tmp_path / "few")
    rows = read_csv(tmp_path / "few" / "table6.csv")
    write_csv(tmp_path / "few" / "table6.csv", [row | {"multi_spans": 4 if row["domain"] == "EGO" else 40} for row in rows])
    full = scripts()["tab6_rewards"].draw.table(tmp_path / "few").rows[1]
    assert " / - / " in full[3] and " - " not in full[2]


def test_siblings_that_change_places_are_named_with_the_term_that_does_it():
    """Prompt 1: the code pays rollout 2 more, by r_in_span; of prompt 2 both rank alike; prompt 3 ties under one of them."""
    terms = {"paper": [(0, -0.5), (0, -0.1), (2, 0), (1, 0), (1, 0), (1, 0)], "upstream": [(0, -0.1), (0, -0.5), (2, 0), (1, 0), (2, 0), (1, 0)]}
    rows = [{"variant": variant, "group": k // 2, "rollout": k % 2, "total": pauc + outside, "weighted_pauc": pauc, "weighted_in_span": outside,
             "weighted_rep": 0, "weighted_pfx": 0} for variant, some in terms.items() for k, (pauc, outside) in enumerate(some)]  # fmt: skip
    (found,) = scripts()["ours2_variants"].flips(rows)
    assert (found["prompt"], found["rollouts"], found["by"]) == (1, "1, 2", "r_in_span")
    assert found["reward, paper"] == "-0.50, -0.10" and found["reward, code"] == "-0.10, -0.50" and found["advantage, paper"] == "-0.71, +0.71"


def test_the_papers_numbers_name_their_source():
    for path in tables.PAPER.glob("*.csv"):
        rows = read_csv(path)
        assert rows and all(row["source"].startswith(("Table", "Section")) for row in rows), path.name
    assert sum(int(row["videos"]) for row in tables.Run(tables.PAPER).rows("table1.csv")) == 52771  # "around 52k videos"


def test_command_line(runs, tmp_path):
    command = [sys.executable, "figures/tab3_speed.py", "--data", str(runs["one"]), "--out", str(tmp_path)]
    said = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "tab3_speed.md").exists() and json.dumps("172.0")[1:-1] in (
        tmp_path / "tab3_speed.csv"
    ).read_text()


def test_variants_are_compared_within_their_groups(runs, tmp_path):
    """Group 0: rewards 1, 2, 3, 6 and 2, 1, 3, 6: one of six pairs of siblings changes places. In group 1 the paper's reward
    tells nobody apart. Means 3: no advantage changes its sign."""
    paths = {path.suffix: path for path in scripts()["ours2_variants"].draw(runs["one"], tmp_path)}
    told = paths[".txt"].read_text()
    assert "8 rollouts of 2 prompts: of 6 pairs of siblings that both rewards tell apart, 1 change places; 0 advantages" in told
    deviations = [row for row in read_csv(paths[".csv"]) if row["term"] == "pauc"]
    assert [float(row["deviation_within_groups"]) for row in deviations] == [
        pytest.approx(np.sqrt((3.5 + 0) / 2), abs=1e-4), pytest.approx(np.sqrt((3.5 + 3) / 2), abs=1e-4)]  # fmt: skip


def test_both_chat_formats_stand_side_by_side(runs):
    table = scripts()["ours4_formats"].draw.table(runs["three"])
    rows = {row[0].split(" ")[0]: dict(zip(table.header, row)) for row in table.rows}
    assert rows["NO"]["[WEB] context tokens a minute"] == "600" and rows["one"]["[EGO] context tokens a minute"] == "300"
    assert rows["one"]["[WEB] ms a turn, silence verified"] == "12.5" and {row["from"] for row in rows.values()} == {"kit"}


def test_silence_stands_over_the_weighted_odds_of_no_reply(runs, tmp_path):
    """At 1 s there are 600 silent turns for 100 answers, at 2 s 300: weight 0.5 at 1 s and weight 1 at 2 s have the same odds."""
    drawn = {path.suffix: path for path in scripts()["ours3_silence"].draw(runs["three"], tmp_path)}
    rows = {(float(r["sft_interval"]), float(r["no_reply_weight"])): r for r in read_csv(drawn[".csv"])}
    assert float(rows[1.0, 0.5]["odds"]) == float(rows[2.0, 1.0]["odds"]) == 3.0
    assert float(rows[1.0, 0.25]["reply_turns"]) == 8.0 and len(rows) == 6 and rows[1.0, 0.25]["seeds"] == "3"
    assert "1 s, weight 0.5 (odds 3.0): 4.0 replies, PAUC 40.0" in drawn[".txt"].read_text()


def test_duplicates_of_few_replies_are_no_point_of_figure_5(runs, tmp_path):
    """16 development videos: at 0.9 replies a video at most 7 gold spans have more than one, at 1.5 there may be 12. A count of the file's decides."""
    script, run = scripts()["fig5_dynamics"], tables.Run(runs["one"])
    assert run.manifest["settings"]["evaluate"]["dev_videos"] == 16
    assert script.few(run, {"reply_turns": "0.9"}) and not script.few(run, {"reply_turns": "1.5"})
    assert script.few(run, {"reply_turns": "1.5", "multi_spans": "9"}) and not script.few(run, {"reply_turns": "0.9", "multi_spans": "10"})
    assert not script.few(tables.Run(tmp_path), {"reply_turns": "0.9"})  # nobody knows how many videos
    for kept, (least, said) in {"all": (2.0, ""), "some": (0.1, "4 points left out where fewer than 10 gold spans")}.items():
        rows = [row | {"reply_turns": max(least, k % 9 > 1 and 3.0), "duplicate": 100 if k % 9 < 2 and kept == "some" else 5}
                for k, row in enumerate(read_csv(runs["one"] / "figure5.csv"))]  # fmt: skip
        write_csv(tmp_path / kept / "results" / "figure5.csv", rows)
        write_json(tmp_path / kept / "manifest.json", run.manifest)
        paths = {path.suffix: path for path in script.draw(tmp_path / kept / "results", tmp_path / kept)}
        text = paths[".txt"].read_text()
        assert said in text and ("left out" in text) == bool(said) and len(read_csv(paths[".csv"])) == 18
        assert "duplicates on WEB: from 5.0 at step " in text and "lowest 5.0" in text and "highest 5.0" in text


def test_before_and_after_tells_who_says_what_and_when(runs, tmp_path):
    """Repeats are told as such, a reply at another place than the one before it by its number, right ones with the seconds after the onset."""
    found = read_json(runs["one"] / "before_after.json")
    red, blue = "A red square moves.", "A blue circle falls."
    replies = [(3, red, False), (4, red, True), (5, red, True), (7, blue, False), (9, red, False), (10, blue, True)]
    found["models"] = {"rl": {"replies": [dict(zip(("time", "text", "right"), one)) for one in replies], "first_right": [[3.2, 4.0]]},
                       "sft": {"replies": [], "first_right": []}}  # fmt: skip
    found["frames"] = [{"time": 0.5 * k, "image": "none.png"} for k in range(30)]
    write_json(tmp_path / "before_after.json", found)
    paths = {path.suffix: path for path in scripts()["ours5_before_after"].draw(tmp_path, tmp_path / "out")}
    told = paths[".txt"].read_text()
    assert "2.0 to 6.0 s, really seen from 3.2 s: “A red square moves.”; 8.0 to 12.0 s: “A blue circle falls.”" in told
    assert "SFT + GRPO: NO REPLY at 10 of 16 turns, right in 1 of 1 gold spans, on average 0.8 s after the onset: at 3 s" in told
    assert "(wrong; the same at 4, 5 s); at 7 s “A blue circle falls.” (outside); at 9 s “A red square moves.” (wrong)" in told
    assert "at 10 s “A blue circle falls.” (right)" in told and "SFT: NO REPLY at 16 of 16 turns, right in 0 of 1 gold spans." in told
    assert [row["judged"] for row in read_csv(paths[".csv"])] == ["wrong", "+0.8 s", "+1.8 s", "outside", "wrong", "right"]
