"""Rates of directed records: what a scan of all records counts; an index that is no part of the result."""

import itertools

import numpy as np
import pytest

from mechinterp.results import load_result
from studies.leakage_result import Leakage, Record

PEOPLE = ("assistant", "villain", "clown")


def made() -> Leakage:
    generator = np.random.default_rng(0)
    records = [
        Record(s, t, run, run + 7, question, int(generator.integers(0, 5)), 5)
        for run, s, t, question in itertools.product((0, 1), PEOPLE[:2], PEOPLE, ("sea", "sky"))
    ]
    order = generator.permutation(len(records))
    return Leakage(
        "toy",
        "[X]",
        "assistant",
        PEOPLE[:2],
        PEOPLE,
        tuple(records[k] for k in order),
        "anywhere",
        0.5,
        0.1,
        (),
    )


@pytest.mark.parametrize(
    "asked", [{}, {"run": 1}, {"seed": 7}, {"question": "sky"}, {"run": 0, "question": "sea"}]
)
def test_a_rate_is_what_a_scan_of_all_records_counts(asked):
    one = made()
    for s, t in itertools.product(PEOPLE[:2], PEOPLE):
        mine = [
            r
            for r in one.records
            if (r.source, r.target) == (s, t)
            and all(getattr(r, name) == value for name, value in asked.items())
        ]
        found = one.rate(s, t, **asked)
        assert found.n == sum(r.total for r in mine) and len(mine) == 4 / 2 ** len(asked)
        assert found.estimate == sum(r.found for r in mine) / found.n
        assert s == t or one.row(s, **asked)[PEOPLE.index(t)] == found.estimate


def test_what_was_asked_of_a_result_is_not_saved_with_it(tmp_path):
    fresh, used = made(), made()
    used.to_dataframe()
    assert used.digest() == fresh.digest() == load_result(used.save(tmp_path)).digest()
    with pytest.raises(ValueError, match="no answers of the model of 'clown' under 'villain'"):
        used.rate("clown", "villain")
