"""Many runs side by side: what may share a table, and what may not.

Runs on the same data for the same number of epochs share a *bed*; in a bed a method and a noise
make a cell, and the cell's runs differ in their seeds alone. A method on labels that a review has
corrected is a row beside its own: the test set is the same. What does not fit is left out or shown
apart, and named.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.config import flat_settings
from engine.metrics import METRIC_TITLES
from engine.record import Summary, summarise
from engine.reports.run_folder import RunFolder
from engine.reports.seeds import PairedTest, Spread, holm, paired_test

__all__ = ["OCCASIONS", "Bed", "Cell", "Comparison", "Contrast", "compare", "contrasts"]

# When a run is looked at, as ``summarise`` defines it.
OCCASIONS = {
    "last": "last epoch",
    "mean_last": "mean of the last five epochs",
    "best": "best epoch by validation",
}
_SHOWN_KEYS = 3
_SHOWN_CHARACTERS = 40
_CORRECTIONS, _EPOCHS = "data.corrections", "run.epochs"

Settings = Mapping[str, str]
_Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """The runs of a method under a noise.

    Attributes:
        runs: Seed -> run; a noise with a seed of its own makes it ``<run's>/<noise's>``.
        summaries: Seed -> the run's test metrics at each occasion.
    """

    runs: dict[str, RunFolder] = field(default_factory=dict)
    summaries: dict[str, Summary] = field(default_factory=dict)

    def spread(self, occasion: str, metric: str) -> Spread:
        """A test metric over seeds."""
        return Spread(
            {seed: getattr(part, occasion)[metric] for seed, part in self.summaries.items()}
        )

    @property
    def is_optimistic(self) -> bool:
        """Whether the best epoch of any run was chosen on its test set, for want of validation."""
        return any(summary.selected_on == "test" for summary in self.summaries.values())


@dataclass(frozen=True)
class Bed:
    """Runs that may share a table.

    Attributes:
        name: Data set, size of images, epochs, and what tells it from other beds.
        methods: Rows, by name.
        noises: Columns, none first.
        cells: (method, noise) -> cell.
        notes: A line for each thing that a reader of the table must know.
    """

    name: str
    methods: tuple[str, ...]
    noises: tuple[str, ...]
    cells: Mapping[tuple[str, str], Cell]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The beds, and a line for each run that is in none of them."""

    beds: tuple[Bed, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Entry:
    """A run with what decides its place."""

    run: RunFolder
    bed: _Key
    noise: _Key
    method: _Key
    seed: str

    @property
    def name(self) -> str:
        """Of its row."""
        settings = dict(self.method)
        epochs = f", {settings[_EPOCHS]} epochs" if _EPOCHS in settings else ""
        return self.run.method + (", corrected labels" if _CORRECTIONS in settings else "") + epochs


def compare(runs: Sequence[RunFolder], ignored: Collection[str] = ()) -> Comparison:
    """Sort runs into beds and cells.

    Args:
        runs: As they were read.
        ignored: Dotted keys, or whole sections, that alter how a run is executed and not what it
            computes. ``run.epochs``, ``data.root`` and ``data.prepared`` count even so.
    """
    left_out, entries = [], list[_Entry]()
    for run in runs:
        reason = _why_not(run)
        if reason:
            left_out.append(f"{run.path}: {reason}; left out")
        else:
            entries.append(_place(run, ignored))
    of_beds: dict[_Key, list[_Entry]] = {}
    for entry in _beside_uncorrected(entries):
        of_beds.setdefault(entry.bed, []).append(entry)
    names = _names_apart(
        {
            key: f"{members[0].run.data}, {members[0].run.num_epochs} epochs"
            for key, members in of_beds.items()
        }
    )
    beds = [_bed(names[key], members, left_out) for key, members in of_beds.items()]
    return Comparison(tuple(sorted(beds, key=lambda bed: bed.name)), tuple(left_out))


def _why_not(run: RunFolder) -> str:
    """Why a run cannot be compared; empty where it can."""
    if not run.config or not run.history:
        return "; ".join(run.problems)
    if not run.is_finished:
        return f"not finished, {len(run.history)} of {run.num_epochs or '?'} epochs"
    if run.num_epochs is not None and len(run.history) > run.num_epochs:
        return f"its record has {len(run.history)} epochs, its configuration {run.num_epochs}"
    if f"eval/{next(iter(METRIC_TITLES))}" not in run.history[-1]:
        return "its record has no test metrics"
    return ""


def _place(run: RunFolder, ignored: Collection[str]) -> _Entry:
    settings = flat_settings(run.config, [*ignored, "run", "data", "noise"])
    facts = run.facts
    data = {key: value for key, value in flat_settings(run.config).items() if _is_of_data(key)}
    not_data = [key for key in ignored if key not in ("data.root", "data.prepared", "run.epochs")]
    bed = {k: v for k, v in data.items() if not any(f"{k}.".startswith(f"{i}.") for i in not_data)}
    # How the rest is split into training and validation may depend on the seed.
    bed["classes"] = json.dumps(facts.class_names)
    corrections = bed.pop(_CORRECTIONS, None)
    if corrections is not None and run.setting(_CORRECTIONS):
        settings[_CORRECTIONS] = corrections
    else:
        bed["samples"] = str(sum(facts.num_samples.values()) or "not recorded")
    bed["test images"] = str(sum(facts.num_test_images) or "not recorded")
    if len(facts.planned_epochs) > 1:
        # Its learning rate fell for another number of epochs first.
        settings[_EPOCHS] = ", then ".join(map(str, facts.planned_epochs))
    noise = flat_settings({"noise": run.setting("noise") or {}}, ["noise.seed", *ignored])
    noise_seed, seed = run.setting("noise.seed"), str(run.setting("run.seed"))
    return _Entry(
        run,
        bed=_key(bed),
        noise=_key(_noise_that_counts(noise)),
        method=_key(settings),
        seed=seed if noise_seed is None else f"{seed}/{noise_seed}",
    )


def _beside_uncorrected(entries: Sequence[_Entry]) -> list[_Entry]:
    """Corrected runs in the bed of the others, though reviews may have left images out.

    Where each seed was reviewed by itself, all are one row, as long as no seed comes twice.
    """
    beds = defaultdict[_Key, set[_Key]](set)
    rows = defaultdict[tuple[_Key, ...], list[_Entry]](list)
    for entry in entries:
        beds[_without("samples", entry.bed)].add(entry.bed)
        rows[entry.bed, entry.noise, _without(_CORRECTIONS, entry.method)].append(entry)
    result = []
    for (bed, _, method), members in rows.items():
        # Of several, nobody knows which was corrected.
        others = beds[bed] - {bed}
        place = others.pop() if len(others) == 1 else bed
        if len({e.method for e in members}) > 1 and len({e.seed for e in members}) == len(members):
            row = _key({**dict(method), _CORRECTIONS: "other files for each seed"})
            members = [replace(entry, method=row) for entry in members]
        result += [replace(entry, bed=place) for entry in members]
    return result


def _without(name: str, key: _Key) -> _Key:
    return tuple(pair for pair in key if pair[0] != name)


def _is_of_data(key: str) -> bool:
    return key == "run.epochs" or key.startswith("data.")


def _noise_that_counts(noise: Settings) -> dict[str, str]:
    """Without the settings that change nothing: two spellings of one noise are one column."""
    kept = dict(noise)
    if noise.get("noise.mis_l", "0") == "0":
        kept.pop("noise.severity", None)
    changes_labels = noise.get("noise.mis_h", "0") != "0"
    if not changes_labels and noise.get("noise.matrix", "null") == "null":
        kept.pop("noise.kind", None)
    return kept


def _key(settings: Settings) -> _Key:
    return tuple(sorted(settings.items()))


def _names_apart(names: Mapping[_Key, str]) -> dict[_Key, str]:
    """Names of variants; those with one name get the settings in which they differ."""
    result: dict[_Key, str] = {}
    for name in dict.fromkeys(names.values()):
        alike = [key for key, other in names.items() if other == name]
        differing = _differing(alike)
        for key in alike:
            settings = dict(key)
            shown = [
                f"{k.rpartition('.')[2]} {_shortened(settings.get(k, 'unset'))}" for k in differing
            ]
            more = ["..."] if len(shown) > _SHOWN_KEYS else []
            text = ", ".join(shown[:_SHOWN_KEYS] + more)
            result[key] = f"{name} ({text})" if text else name
    # What was shortened may read alike.
    for name in list(result.values()):
        others = [other for other, text in result.items() if text == name]
        if len(others) > 1:
            for number, other in enumerate(others, 1):
                result[other] = f"{name} #{number}"
    return result


def _differing(variants: Sequence[_Key]) -> list[str]:
    """Settings in which variants are not all the same."""
    trees = [dict(key) for key in variants]
    names = dict.fromkeys(itertools.chain.from_iterable(trees))
    return [name for name in names if len({tree.get(name) for tree in trees}) > 1]


def _shortened(value: str) -> str:
    value = value.strip('"')
    return value if len(value) <= _SHOWN_CHARACTERS else value[: _SHOWN_CHARACTERS - 3] + "..."


def _bed(name: str, entries: Sequence[_Entry], left_out: list[str]) -> Bed:
    """Sort a bed's runs into cells; a second run of a seed is left out with a line."""
    noise_names = _names_apart({entry.noise: entry.run.noise for entry in entries})
    variants = {entry.method: entry.name for entry in entries}
    method_names = _method_names(entries, variants)
    cells: dict[tuple[str, str], Cell] = {}
    for entry in entries:
        place = method_names[entry.method], noise_names[entry.noise]
        cell = cells.setdefault(place, Cell())
        if entry.seed in cell.runs:
            first = cell.runs[entry.seed].path
            left_out.append(f"{entry.run.path}: same settings and seed as {first}; left out")
            continue
        cell.runs[entry.seed] = entry.run
        cell.summaries[entry.seed] = summarise(entry.run.history, list(METRIC_TITLES))
    return Bed(
        name,
        methods=tuple(sorted({method for method, _ in cells})),
        noises=tuple(sorted({noise for _, noise in cells}, key=lambda n: (n[:4] != "none", n))),
        cells=cells,
        notes=tuple(_notes(entries, method_names, noise_names)),
    )


def _method_names(entries: Sequence[_Entry], variants: Mapping[_Key, str]) -> dict[_Key, str]:
    """Names of the rows: a method set otherwise under each noise is still one row."""
    result = _names_apart(variants)
    for name in set(variants.values()):
        alike = [key for key, other in variants.items() if other == name]
        of_noises: dict[_Key, set[_Key]] = {}
        for entry in entries:
            if entry.method in alike:
                of_noises.setdefault(entry.noise, set()).add(entry.method)
        if all(len(methods) == 1 for methods in of_noises.values()):
            result |= dict.fromkeys(alike, name)
    return result


def _notes(
    entries: Sequence[_Entry], method_names: Mapping[_Key, str], noise_names: Mapping[_Key, str]
) -> list[str]:
    """Settings that a row does not keep under all noises, and settings that rows do not share."""
    notes = []
    rows: dict[str, dict[_Key, str]] = {}
    for entry in entries:
        rows.setdefault(method_names[entry.method], {})[entry.method] = noise_names[entry.noise]
    for row, variants in rows.items():
        for key in _differing(list(variants)):
            values = (f"{_shortened(dict(v).get(key, 'unset'))} ({n})" for v, n in variants.items())
            notes.append(f"{row}: {key} is not the same under all noises: {', '.join(values)}")
    every = list(method_names)
    for key in _differing(every):
        if not key.startswith("method."):
            texts = [f"{_shortened(dict(v).get(key, 'unset'))} ({method_names[v]})" for v in every]
            shared = ", ".join(dict.fromkeys(texts))
            notes.append(f"{key} is not the same for all methods: {shared}")
    return notes


@dataclass(frozen=True)
class Contrast:
    """Two methods under a noise over paired seeds.

    Attributes:
        noise: The noise.
        first: Name of a method.
        second: Name of another.
        test: The tests.
        p_t: p-value of the t-test, adjusted by Holm for all contrasts of the bed.
        p_wilcoxon: Likewise of Wilcoxon's test.
    """

    noise: str
    first: str
    second: str
    test: PairedTest
    p_t: float
    p_wilcoxon: float


def contrasts(bed: Bed, occasion: str, metric: str) -> list[Contrast]:
    """Compare each two methods of a bed under each noise that both were run with."""
    tested = [
        (noise, first, second, paired_test(*(
            bed.cells[method, noise].spread(occasion, metric) for method in (first, second)
        )))
        for noise in bed.noises
        for first, second in itertools.combinations(bed.methods, 2)
        if (first, noise) in bed.cells and (second, noise) in bed.cells
    ]  # fmt: skip
    adjusted = zip(
        holm([test.p_t for *_, test in tested]),
        holm([test.p_wilcoxon for *_, test in tested]),
        strict=True,
    )
    return [Contrast(*parts, *p_values) for parts, p_values in zip(tested, adjusted, strict=True)]
