"""report.html: one self-contained page, verdicts first, without a network, honest about gaps."""

import html.parser
import json
import re

import fake_results
import page as report_page
import pytest

from mmduet2kit.report import write_report


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    fake_results.make(run_dir, (1, 2, 3))
    return write_report(run_dir)


class Balance(html.parser.HTMLParser):
    """Counts open elements and collects ids."""

    VOID = {"meta", "br", "img", "link", "path", "use"}

    def __init__(self):
        super().__init__()
        self.open, self.ids = [], []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_no_network(page):
    text = page.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == [] and len(balance.ids) == len(set(balance.ids))
    text = text.replace('xlink:href="#', 'href="#')
    assert not re.search(r'src="(?!data:)', text) and not re.search(r'href="(?!data:)(?:\w+:|/)', text)  # links only into the page and the run's folder
    assert "<script" not in text and "@import" not in text and "viewport" in text


def test_order_and_content(page):
    text = page.read_text(encoding="utf-8")
    places = [
        text.index(f'id="{name}"') for name in ("verdicts", "tables", "figures", "cost", "artifact", "made", "expect")
    ]
    assert places == sorted(places)
    for part in (
        "Table 1.",
        "Table 7.",
        "Figure 1.",
        "Figure 5.",
        "53.3 / 4.2",
        "FAIL-AS-PAPER",
        "137",
        "terminated",
        "killed",
        "FAKE &lt;platform&gt;",
        "Not comparable",
        "Known deviations",
    ):
        assert part in text, part
    assert text.count('role="img"') == 9 and 'aria-label=""' not in text
    claims = json.loads((page.parent / "claims.json").read_text())
    assert all(claim["id"] in text for claim in claims)
    assert {
        "id",
        "paper",
        "kit",
        "interval",
        "rule",
        "verdict",
        "paper_verdict",
        "reason",
        "source",
    } <= claims[0].keys()


def test_every_claim_table_and_figure_links_to_its_results_and_its_notebook(page):
    text = page.read_text(encoding="utf-8")
    claims = json.loads((page.parent / "claims.json").read_text())
    assert text.count('href="results/') >= len(claims) + 7 and text.count('href="executed/') >= len(claims) + 17
    row = text[text.index("Without r_rep duplicates rise on [WEB]") :].partition("</tr>")[0]
    assert 'href="results/table6.csv"' in row and 'href="executed/07_reward_ablation.html"' in row
    assert "no-rep-duplicates-WEB" in text[text.index('id="artifact"') :].partition("</table>")[0] and "reply_turns on" not in text


def test_explanations_costs_and_intervals_link_to_their_files_too(page):
    text = page.read_text(encoding="utf-8")
    claim = {"id": "rl-above-sft-WEB", "rule": 'value = t2("pauc"); value > 0', "explained": ""}
    assert report_page.sources(claim) == ["tab2"] and report_page.sources(claim | {"explained": "Arms ..."}) == ["tab2", "tab6"]
    assert report_page.sources(claim | {"id": "target-latency-WEB", "explained": "On ..."}) == ["tab2", "tab6"]
    assert report_page.sources(claim | {"id": "sft-1s-collapses-1", "rule": 't7("reply_turns")', "explained": "With ..."}) == ["tab7", "ours3"]
    assert text.count('href="manifest.json"') == 2 and 'href="results/per_video.csv"' in text and "Minutes by hand" in text


def test_the_report_of_one_seed_of_a_study_says_how_that_is_run():
    assert report_page.asked("study-2", [2]) == "study@2" and report_page.asked("tiny", [1]) == "tiny"
    assert report_page.asked("mine-2", [1, 2]) == "mine-2"


def test_claims_are_in_words_and_units_too(page):
    text = page.read_text(encoding="utf-8")
    units = set(re.findall(r'data-label="Unit">([^<]*)<', text))
    assert units == {"PAUC points", "percentage points", "percent", "replies a video", "seconds", "share of the growth", "times (a ratio)"}
    assert "a dip in PAUC on" in text and "tolerance 15 percentage points" in text


def test_the_same_run_gives_the_same_page(page):
    before = page.read_bytes()
    assert write_report(page.parent).read_bytes() == before


def test_an_empty_run_is_not_run(tmp_path):
    (tmp_path / "results").mkdir()
    text = write_report(tmp_path).read_text()
    assert "NOT RUN: there is no manifest.json" in text and "38 NOT RUN" in text


def test_smoke_says_so(tmp_path):
    fake_results.make(tmp_path / "smoke", (1,), "smoke")
    text = write_report(tmp_path / "smoke").read_text()
    assert 'class="warn"' in text and "53.3 /" not in text and ">15.7<" not in text
