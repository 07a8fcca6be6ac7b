"""The colours, lines and letters of every picture, in figures and notebooks."""

# After Okabe and Ito, darkened for contrast: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#AD5600", "#009E73", "#C03000"
PURPLE, SKY, GREY = "#9A4F7E", "#56B4E9", "#666666"
INK, FOREST = "#222222", "#00664A"  # letters: of texts, and of what is green
SERIES = [{"color": c, "linestyle": s, "marker": m} for c, s, m in
          zip((BLUE, ORANGE, GREEN, PURPLE, RED, INK), ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3))), "osD^vX")]
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "svg.hashsalt": "mmduet2kit", "svg.fonttype": "path",
        "text.parse_math": False, "savefig.dpi": 150, "path.simplify": False, "axes.titlesize": 10}
# Of the drawings of figures/, for a paper: its text width in inches, no letter under 6 points, fonts that a PDF's reader can edit.
WIDTH, SMALL = 5.5, 6.5
PRINT = LOOK | {"font.size": 7.5, "axes.titlesize": 8, "axes.linewidth": 0.6, "lines.linewidth": 1.4, "pdf.fonttype": 42, "savefig.dpi": 200, "figure.dpi": 200,
                "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7, "figure.constrained_layout.w_pad": 0.05}  # fmt: skip
