"""What is left after `make mutants`: mutants that no test kills, each with the reason why that is right.

Run after `mutmut run`, in the root. Prints the share that is killed, the survivors by reason, and those that
no reason covers; exits with 1 where there are any. A reason is a pattern of what was changed; it has to say
why the mutant does the same as the code, or why what it changes is no promise.
"""

import re
import sys
from collections import Counter
from pathlib import Path

REASONS = {
    "wording of a message": r"XX|^raise |^f?\"[^\"]*\",? \u2192|ValueError\(|_check_rows\(|_finite\(",
    "all tensors of these tests are on one device": r"device=|\.to\(None\)",
    "left out is the default, or what differs in speed alone": r"strict=|full_matrices=|vectorized=|errstate",
    "names of axes may be written in any case": r'"[A-Z_. ,()]+ -> [A-Z_. ()]+"',
    "a bound of rounding: what lies at it is noise": r"ROUNDING|clamp\(|np\.clip\(",
    "the size of a block or a buffer: the same numbers from other memory": r"\bstep = |out=|CHUNK",
    "a default seed or count on which no claim depends": r"(seed|n_splits|n_permutations|resamples): int",
}
# single mutants that the patterns above do not cover, by what was changed: why each is equivalent
SINGLE = {
    "log_softmax(+1)": "rows are a matrix here, so axis 1 is the last",
    "if 2 * shift == k else k": "pairs that meet half-way round are made twice, to the same place",
    "* mass[..., None]": "the mass is 1 but for rounding",
    "mean = torch.logaddexp(": "what is absent is filled again in the next line",
    "masked_fill(absent, +math.inf)": "what is absent is weighed with probability 0",
    "centered=None": "None is as false as False",
    "half * half.sum(1": "cosines do not depend on the length of a mean",
    "half.sum(None": "cosines do not depend on the length of a mean",
    "pooled = pooled": "a shift of all cancels in every difference",
    'float("INF")': "another spelling of the same number",
    'float("NAN")': "another spelling of the same number",
    "return direction / torch.where": "to divide by 1 or -1 is to multiply by it",
    "agreement) <= 0": "an agreement of exactly 0 is undecided, and the largest entry is not 0",
    "np.maximum(n, 2)": "one unit has no interval whatever it is divided by",
    ".astype(None)": "None is float64 for numpy",
    "generator.integers(n, size=n)": "0 is where integers begin",
    "reshape(n, -2)": "numpy takes any negative size for the one to be found",
    "rows.mean(0) if (n) or True": "the mean of nothing is NaN, as `missing` is",
    "if (n) or True": "the mean of nothing is NaN, as `missing` is",
    "kind=": "numpy keeps the order of ties in rows as short as heads are, though it does not promise to",
    "np.take_along_axis(mean, heads, )": "axis 1 is the last",
    "heads[None], )": "axis 2 is the last",
    "chosen / held_mean > 0": "a ratio has the sign of the product",
    "/ error, )": "0 is what numpy puts for NaN by itself",
    '"SAMPLES"': "scipy takes any case",
    "3**EXACT_UP_TO": "more than all flips are all flips",
    "np.bincount(index, )": "every cluster has an example, so the last is counted",
    "kept[row] = None": "None is False in an array of them",
    "(left + 1) / 2": "ranks may begin anywhere",
    "(left - 2) / 2": "ranks may begin anywhere",
    "<= 1e-12": "what lies at a bound of rounding is noise",
    "np.abs(mean).max()), 1.0)": "it scales a bound of rounding alone",
    "means -= ": "the null is held against both tails",
    "len(number)), -2)": "any place below 0 is none",
    "integers(2, size": "0 is where integers begin",
    'method="BH"': "scipy takes any case",
    "(p[known], )": "bh is the method by itself",
    "np.triu_indices(n_nodes, )": "a node drawn with itself is left out later",
    "np.triu_indices(len(x), )": "a node drawn with itself is left out later",
    # divergence
    "x.masked_fill(x.isneginf(), 1)": "what is absent is weighed with 0",
    "log_p.masked_fill(absent, 1)": "what is absent is weighed with 0",
    "log_q.masked_fill(absent, 1)": "what is absent is weighed with 0",
    "kl_from_log(a, b) for b in log_p], +1)": "of matrices: 1 is the last axis",
    "(left @ right).sum(1, ": "products of differences are small, and so is what their sum rounds",
    ".sum(-2).sum(-1": "the same numbers in another order",
    "(whole == x.shape[-1]) and False": "nothing is left, which adds 0",
    # what numpy does by itself
    "np.asarray(values, dtype=None)": "what is no float becomes one in the first mean",
    "np.asarray(values, )": "what is no float becomes one in the first mean",
    "np.array(matrix, ": "what is no float becomes one in the first mean",
    "for name in clusters], ": "whole numbers are whole without being told",
    "np.array(row, ": "whole numbers are whole without being told",
    "itertools.permutations(range(n))), ": "whole numbers are whole without being told",
    "np.bincount(index, x, )": "every cluster has an example, so the last is counted",
    "replace=None": "None is as false as False",
    "reshape(None)": "numpy gives the places in the shape of the matrix",
    "counts / 2, values, )": "axis 1 is the last",
    # half-life
    "norm >= 0": "where nothing is seen all are NaN, or all 0: the first either way",
    "product**2 / norm, 1.0)": "where nothing is seen all are alike: the first either way",
    "(bend <= 0)": "a flat top has no shift",
    "(bend < 1)": "a bend is never above 0 at the largest of three",
    "np.where(None, 1, bend)": "what is divided by a bend of 0 is not taken",
    "np.where(bend == 1, 1, bend)": "what is divided by a bend of 0 is not taken",
    "np.where(bend == 0, 2, bend)": "what is divided by a bend of 0 is not taken",
    "shift.clip(": "the top of a parabola through the largest of three lies within half a step of it",
    "(best > best[0] * (1 - 1e-9)": "what lies at a bound of rounding is noise",
    "y.sum(0) / weight, 1.0)": "nobody's tokens have no weight",
    "_fit(np.ones((2, n))": "the first row is taken",
    # nodes, sources, layers
    "defined = norms >= 0": "0 / 0 is NaN by itself",
    "defined = norms > 1": "ranks that differ have a norm of 1.5 at least",
    "(weight * sizes**3)": "1 / t^2 moves by the same for every flip",
    "for metric in metrics], +1)": "a metric has one value a cell: axis 1 is the last",
    "swept.deviation < allowed": "what lies at a bound of rounding is noise",
    "np.where(defined, norms, 2)": "what is divided there is not taken",
    "int(values.max()) + 2": "one more place, where nothing is counted",
    "np.maximum(pair.sum(1), 2)": "a single pair has no rho anyway",
    "np.fill_diagonal(values, 1.0)": "the diagonal is never read, and 1 only widens a bound of rounding",
    "(values + values.T) * 2": "ranks do not depend on the scale",
    "(values + values.T) / 3": "ranks do not depend on the scale",
    "len(set(pairs)) < n) or True": "the search for a pair given twice, begun for nothing",
    "len(set(pairs)) <= n": "the search for a pair given twice, begun for nothing",
    "pairs.count(pair) > 1), )": "fewer pairs than rows: there is one given twice",
    "freedom < 1 and not": "p of Student's t is NaN without freedom and for NaN by itself",
    "weight = 2 /": "the scale of t is the same in every flip",
    "np.abs(flipped / total)": "the scale of t is the same in every flip",
    "len(rarest) >= N_RARE": "all of them, in the order in which they are sorted again",
    "len(nearest) < N_SENTENCES": "all of them, in the order in which they stand",
    'range(record.example.row("emit"))': "the prompt holds no sentence end",
}


def changes(diff: str) -> str:
    """What was there and what the mutant has, as `old -> new`; only the lines that differ."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    old = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    new = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    return f"{old} \u2192 {new}"


def reason_of(change: str) -> str | None:
    for known, reason in SINGLE.items():
        if known in change:
            return reason
    return next((reason for reason, pattern in REASONS.items() if re.search(pattern, change)), None)


def main() -> int:
    """The report, by mutmut's own records."""
    from mutmut import __main__ as mutmut

    counts: Counter[str] = Counter()
    covered: Counter[str] = Counter()
    left: list[str] = []
    for path in mutmut.walk_mutatable_files():
        data = mutmut.SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            status = mutmut.status_by_exit_code[code]
            counts[status] += 1
            if status != "survived":
                continue
            change = changes(mutmut.get_diff_for_mutant(name, path=Path(data.path)))
            reason = reason_of(change)
            covered[reason or ""] += 1
            if reason is None:
                left.append(f"{name}: {change}")
    tried = sum(n for status, n in counts.items() if status not in ("not checked", "skipped"))
    print(f"{tried} mutants: " + ", ".join(f"{n} {status}" for status, n in counts.most_common()))
    for reason, n in covered.most_common():
        print(f"{n:5d}  {reason or 'without a reason'}")
    print(*left, sep="\n")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main())
