import math

import pytest
import yaml

from engine.strict_yaml import dump_yaml, parse_yaml


def parsed(text):
    result = parse_yaml(text)
    assert result.problems == []
    return result.tree


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e-3", 1e-3),
        ("5e-4", 5e-4),
        ("1E5", 1e5),
        ("1.5e+2", 150.0),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("7", 7),
        ("-7", -7),
        ("+5", 5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
    ],
)
def test_numbers(text, number):
    assert parsed(text) == number
    assert type(parsed(text)) is type(number)


def test_not_a_number():
    assert math.isnan(parsed(".nan"))
    assert math.isnan(parsed(".NaN"))


@pytest.mark.parametrize("text", ["true", "True", "TRUE", "false", "False", "FALSE"])
def test_booleans(text):
    assert parsed(text) is (text.lower() == "true")


@pytest.mark.parametrize("text", ["null", "Null", "NULL", "~", ""])
def test_null(text):
    assert parsed(f"key: {text}") == {"key": None}


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "on", "off", "NO", "y", "n", "tRUE", "1:30", "2024-01-01", "1_000", "0b11"]
    + ["<<", "=", "e5", "1e", "0o8", "0xg", ".", "-", "+", "inf", "nan", "1.2.3", "1 2"],
)
def test_what_only_looks_like_something_else_is_text(text):
    assert parsed(f"[{text}]") == [text]
    assert parsed(f"{{{text}: 1}}") == {text: 1}


@pytest.mark.parametrize("text", ["1e-3", "true", "null", "7", "010"])
def test_quotes_make_text(text):
    assert parsed(f"'{text}'") == text
    assert parsed(f'"{text}"') == text
    assert parsed(f"!!str {text}") == text


def test_keys_are_text_as_written():
    assert parsed("1: a\non: b\nnull: c\n0.5: d") == {"1": "a", "on": "b", "null": "c", "0.5": "d"}


def test_anchors_are_followed():
    assert parsed("a: &x {b: [1]}\nc: *x") == {"a": {"b": [1]}, "c": {"b": [1]}}


def test_each_repeated_key_is_a_problem():
    text = "a: 1\nb: {c: 1,\n c: 2}\na: 3\na: 4\n"
    assert parse_yaml(text).problems == [
        (3, "key 'c' is given twice, first in line 2"),
        (4, "key 'a' is given twice, first in line 1"),
        (5, "key 'a' is given twice, first in line 1"),
    ]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a:\n  b: [1\n", 3, "while parsing a flow sequence from line 2: expected ',' or ']'"),
        ("a: 'x\n\n", 3, "while scanning a quoted scalar from line 1: found unexpected end"),
        ("a:\n\tb: 1\n", 2, "found character '\\t' that cannot start any token"),
        ("a: b: c\n", 1, "mapping values are not allowed here"),
        ("a: 1\n---\nb: 2\n", 2, "expected a single document"),
        ("a: *b\n", 1, "found undefined alias 'b'"),
        ("x: 1\na: &a [*a]\n", 2, "recursive"),
        ("x: 1\na: !!python/name:os.system\n", 2, "is not allowed"),
        ("a: !!timestamp 2024-01-01\n", 1, "is not allowed"),
        ("a: !!int x\n", 1, "'x' is not of type int"),
        ("x: 1\n? [a]\n: 1\n", 2, "a key must be plain text"),
        ("x: 1\na: \x01\n", 2, "character '\\x01' is not allowed"),
    ],
)
def test_what_cannot_be_read_is_one_problem_with_its_line(text, line, message):
    result = parse_yaml(text)

    assert result.tree is None
    ((found_line, found_message),) = result.problems
    assert found_line == line
    assert message in found_message
    assert "\n" not in found_message


@pytest.mark.parametrize(
    "text",
    ["no", "yes", "null", "~", "", "1e-3", "1E5", "010", "0o10", "0x1F", "1:30", "2024-01-01"]
    + ["1_000", ".inf", "true", "=", "<<", "a: b", "#x", "'quoted'", 'double"', "- x", "Hämatom"]
    + ["two\nlines\n", " padded ", "x" * 300, "many words " * 30],
)
def test_dumped_text_is_text_for_readers_of_yaml_1_1_and_1_2(text):
    tree = {"key": text, text: ["key", text]}
    dumped = dump_yaml(tree)

    assert parsed(dumped) == tree
    assert yaml.safe_load(dumped) == tree


@pytest.mark.parametrize("number", [1e-3, 1e-5, 1e-300, 1e16, 1e22, 0.1 + 0.2, 3.0, -math.inf, 12])
def test_dumped_numbers_are_exact_for_readers_of_yaml_1_1_and_1_2(number):
    for value in (parsed(dump_yaml([number]))[0], yaml.safe_load(dump_yaml([number]))[0]):
        assert value == number
        assert type(value) is type(number)


def test_a_dump_keeps_the_order_and_has_lists_on_one_line():
    tree = {"b": {"z": 1, "a": [1, [0.5, None]]}, "a": True}
    assert dump_yaml(tree) == "b:\n  z: 1\n  a: [1, [0.5, null]]\na: true\n"
