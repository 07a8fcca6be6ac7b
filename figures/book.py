"""An executed notebook as a page, beside it in runs/<profile>/executed/."""

import re

from nbconvert import HTMLExporter

FOLDED = {"solution": "Solution", "key": "What it is checked against"}  # by the cell's tag


def page(book) -> str:
    """HTML of a notebook (nbformat's node, which is changed): what JupyterLab folds is folded, links lead to pages and to the README."""
    for cell in book.cells:
        names = [FOLDED[tag] for tag in cell.metadata.get("tags", ()) if tag in FOLDED]
        if names:
            code = f"```python\n{cell.source}\n```"
            cell |= {"cell_type": "markdown", "source": f"<details><summary>{names[0]}</summary>\n\n{code}\n\n</details>"}
        elif cell.cell_type == "markdown":
            near = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = near.replace("](../", "](../../../")  # from runs/<profile>/executed/
    return HTMLExporter().from_notebook_node(book)[0]
