"""Table 4: offline ability before and after proactive training."""

import drawings
from tables import Run

PAPER = ("Video-MME with subtitles", "Video-MME without subtitles", "MVBench", "LongVideoBench")
KIT = ("caption", "attribute_qa")



class Offline(Run):
    """A run whose Table 4 has the rows of `mmduet2 lmms` too, without those of a part of a benchmark."""

    def rows(self, name):
        more = Run.rows(self, "offline_benchmarks.csv") if name == "table4.csv" else []
        return Run.rows(self, name) + [row for row in more if row["status"] == "ok"]


@drawings.table
def draw(run):
    """Table 4: accuracies on offline tasks; the tiny world has tasks of its own."""
    run = Offline(run.data)
    rows = run.rows("table4.csv")
    lines = [
        ("Qwen2.5-VL 3B as reported", {"model": "base-reported"}, None),
        ("base model", *[{"model": "base"}] * 2),
        ("MMDuet2 sft", *[{"model": "sft"}] * 2),
        ("MMDuet2 rl", *[{"model": "rl"}] * 2),
        *((name, None, {"model": name}) for name in drawings.strangers(rows)),
    ]
    here = {row["task"] for row in rows}
    columns = [(task, "accuracy", {"task": task}, 1) for task in (*PAPER, *KIT) if task in here or task in KIT or not run.smoke]
    notes = [
        "“-”: the paper has no such task. Kit: the paper's benchmarks by lmms-eval (`mmduet2 lmms`), NOT RUN without; "
        "a caption or a question about a clip of its own world; all with the default system prompt."
    ]
    return drawings.beside(run, "tab4_offline", "Table 4. Offline benchmarks, accuracy in percent", lines, columns, notes)


if __name__ == "__main__":
    drawings.main(draw)
