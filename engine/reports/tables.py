"""Tables once, for a terminal, Markdown, LaTeX and CSV; names in them may hold any character."""

import csv
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

__all__ = ["Table", "markdown_text"]

_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "%": r"\%", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "±": r"$\pm$",
})  # fmt: skip
_MARKDOWN = str.maketrans({"|": r"\|", "<": "&lt;", "`": r"\`"})


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
        header: Titles of the columns.
        rows: Of as many cells as the header; what is not text is shown by ``str``.
        strong: (row, column) of the cells that are to stand out, both counted from 0.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    strong: Collection[tuple[int, int]] = field(default=())

    def text(self, left: Collection[int] = (0,)) -> list[str]:
        """Lines for a terminal: the columns ``left`` to the left, the others to the right."""
        cells = [list(self.header), *([str(cell) for cell in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.header))]
        lines = [
            "  ".join(
                cell.ljust(width) if column in left else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        return [lines[0], "-" * len(lines[0]), *lines[1:]]

    def markdown(self) -> list[str]:
        """Lines of a table in Markdown, an empty one last."""
        header = [markdown_text(title) for title in self.header]
        body = [
            [
                f"**{text}**" if (r, c) in self.strong else text
                for c, text in enumerate(map(markdown_text, row))
            ]
            for r, row in enumerate(self.rows)
        ]
        lines = [header, ["---"] * len(header), *body]
        return ["| " + " | ".join(line) + " |" for line in lines] + [""]

    def latex(self, caption: str = "") -> list[str]:
        """Lines of a ``table`` environment that needs the package booktabs."""
        head = " & ".join(_on_one_line(title).translate(_LATEX) for title in self.header)
        lines = [r"\begin{table}", r"\centering"]
        if caption:
            lines.append(rf"\caption{{{_on_one_line(caption).translate(_LATEX)}}}")
        columns = "l" + "c" * (len(self.header) - 1)
        lines += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rf"{head} \\", r"\midrule"]
        for r, row in enumerate(self.rows):
            texts = [_on_one_line(cell).translate(_LATEX) for cell in row]
            texts = [
                rf"\textbf{{{text}}}" if (r, c) in self.strong else text
                for c, text in enumerate(texts)
            ]
            # A row that begins with a bracket would be taken for an option of the one before.
            start = "{}" if texts[0].startswith(("[", "*")) else ""
            lines.append(start + " & ".join(texts) + r" \\")
        return [*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]

    def csv(self) -> str:
        """The table as comma-separated values."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([self.header, *self.rows])
        return text.getvalue()


def markdown_text(text: object) -> str:
    """Any text on one line, with the characters that Markdown or HTML would take for markup."""
    return _on_one_line(text).translate(_MARKDOWN)


def _on_one_line(cell: object) -> str:
    return " ".join(str(cell).split())
