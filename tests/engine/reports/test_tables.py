import csv
import io

import pytest

from engine.reports.tables import Table

TABLE = Table(["name", "value"], [["a", 1], ["long name", 22.5]], strong={(1, 1)})


def test_a_terminal_gets_aligned_columns():
    assert TABLE.text() == [
        "name       value",
        "----------------",
        "a              1",
        "long name   22.5",
    ]
    assert Table(["", "who"], [[10, "x"], [1, "yy"]]).text(left=(1,))[2:] == ["10  x  ", " 1  yy "]


def test_markdown_and_latex_set_off_what_is_strong():
    assert TABLE.markdown() == [
        "| name | value |", "| --- | --- |", "| a | 1 |", "| long name | **22.5** |", "",
    ]  # fmt: skip
    assert (
        "\n".join(TABLE.latex("A caption"))
        == r"""
\begin{table}
\centering
\caption{A caption}
\begin{tabular}{lc}
\toprule
name & value \\
\midrule
a & 1 \\
long name & \textbf{22.5} \\
\bottomrule
\end{tabular}
\end{table}
""".removeprefix("\n")
    )
    assert not any("caption" in line for line in TABLE.latex())


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("elr_plus", r"elr\_plus"),
        ("50 % & more", r"50 \% \& more"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("$x^2$ # ~", r"\$x\textasciicircum{}2\$ \# \textasciitilde{}"),
        ("a < b | c > d", r"a \textless{} b \textbar{} c \textgreater{} d"),
        ("0.9 ± 0.1", r"0.9 $\pm$ 0.1"),
        ("two\nlines", "two lines"),
    ],
)
def test_latex_shows_any_name_as_it_is(name, latex):
    assert Table(["x"], [[name]]).latex()[6] == latex + r" \\"


def test_a_row_of_latex_may_begin_with_a_bracket():
    # After \\ a bracket would be read as a length.
    assert Table(["x"], [["[a]"], ["*"]]).latex()[6:8] == [r"{}[a] \\", r"{}* \\"]


@pytest.mark.parametrize("name", ["a|b", "two\nlines", "<script>", "`code`"])
def test_markdown_keeps_its_cells(name):
    row = Table(["x", "y"], [[name, "1"]]).markdown()[2]
    cells = row.replace(r"\|", "").split("|")
    assert len(cells) == 4 and cells[2] == " 1 "
    assert "<" not in row and "\n" not in row


def test_csv_reads_back():
    hostile = ['a "quoted", name', "two\nlines", "=1+1"]
    text = Table(["x", "y", "z"], [hostile]).csv()
    assert list(csv.reader(io.StringIO(text))) == [["x", "y", "z"], hostile]
