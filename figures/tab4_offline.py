"""Table 4: offline ability before and after proactive training."""

import drawings

PAPER = ("Video-MME with subtitles", "Video-MME without subtitles", "MVBench", "LongVideoBench")
KIT = ("caption", "attribute_qa")


@drawings.table
def draw(run):
    """Table 4: accuracies on offline tasks; the tiny world has tasks of its own."""
    here = {row["task"] for row in run.rows("table4.csv")}
    lines = [
        ("Qwen2.5-VL 3B as reported", {"model": "base-reported"}, None),
        ("base model", *[{"model": "base"}] * 2),
        ("MMDuet2 sft", *[{"model": "sft"}] * 2),
        ("MMDuet2 rl", *[{"model": "rl"}] * 2),
    ]
    tasks = [task for task in (*PAPER, *KIT) if task in here or (task in KIT) or not run.smoke]
    columns = [(task, "accuracy", {"task": task}, 1) for task in tasks]
    table = drawings.beside(
        run,
        "tab4_offline",
        "Table 4. Offline benchmarks, accuracy in percent",
        lines,
        columns,
        [
            "“-”: the paper has no such task, or the profile cannot run it. Kit: a caption or a "
            "question about a clip, with the default system prompt."
        ],
    )
    for row in table.rows:
        if row[1] == "kit":
            row[2:] = [
                "-" if task in PAPER and task not in here else text for task, text in zip(tasks, row[2:])
            ]
    return table


if __name__ == "__main__":
    drawings.main(draw)
