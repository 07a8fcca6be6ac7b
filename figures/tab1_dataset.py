"""Table 1: the dataset, by kind of video."""

import drawings
import tables


@drawings.table
def draw(run):
    """Table 1 with the kit's videos (procedural, or the dataset that its profile names) beside the paper's."""
    lines = [(kind, {"type": kind}, {"type": kind}) for kind in ("Web Videos", "Ego Centric")]
    columns = [
        ("#videos", "videos", {}, 0),
        ("video length, s", "video_length_s", {}, 1),
        ("#questions", "questions", {}, 1),
        ("#answer turns", "answer_turns", {}, 1),
    ]
    sources = ", ".join(dict.fromkeys(row["source"] for row in run.rows("table1.csv")))
    return drawings.beside(
        run,
        "tab1_dataset",
        "Table 1. Dataset statistics",
        lines,
        columns,
        [
            "Length, questions and answer turns are means over videos.",
            "Paper: Live-WhisperX (web), Ego-Exo4D and EgoExoLearn (ego). "
            f"Kit: {sources or tables.NOT_RUN}.",
        ],
    )


if __name__ == "__main__":
    drawings.main(draw)
