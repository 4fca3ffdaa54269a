"""Reading what launcher/predict.py writes."""

import csv

import numpy as np


def read_table(path):
    """The rows by column, all text."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def probabilities(rows):
    """(N, C) of rows that were predicted."""
    columns = [name for name in rows[0] if name.startswith("probability_")]
    return np.array([[float(row[name]) for name in columns] for row in rows])
