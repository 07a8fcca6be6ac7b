"""The colours, lines and letters of every picture, in figures and notebooks."""

# After Okabe and Ito, darkened for contrast: told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#B85C00", "#009E73", "#C03000"
PURPLE, SKY, GREY = "#9A4F7E", "#56B4E9", "#666666"
SERIES = [{"color": c, "linestyle": s, "marker": m} for c, s, m in
          zip((BLUE, ORANGE, GREEN, PURPLE), ("-", "--", "-.", ":"), "osD^")]
LOOK = {"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "svg.hashsalt": "mmduet2kit", "svg.fonttype": "path",
        "text.parse_math": False, "savefig.dpi": 150, "path.simplify": False, "axes.titlesize": 10}
