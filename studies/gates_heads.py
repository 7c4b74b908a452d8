"""The gate on heads that were chosen on one half of the examples and reported on the other."""

from mechinterp.stats.halves import HeadSelection
from mechinterp.stats.halves import select_heads as select_heads
from mechinterp.stats.halves import split_halves as split_halves
from mechinterp.wording import finite
from studies.gates import Gate, not_applicable, votes_of


def heads_hold(selection: HeadSelection) -> Gate:
    """Do the chosen heads show on fresh examples what they were chosen for? One test over all of them.

    Pass: the held-out contrast, turned by the signs of the choosing half and averaged over heads and layers,
    has its 95 % interval above zero.
    """
    name, signed = "head selection", selection.signed
    if signed.note and signed.n < 3:
        return not_applicable(name, "ours", signed.note)
    same, total = int(selection.same_sign.sum()), selection.same_sign.size
    verdict = "pass" if signed.low[-1] > 0 else "fail"
    reason = (
        f"{same} of {total} chosen heads keep their sign; signed mean {signed.estimate[-1]:+.4g} "
        f"[{signed.low[-1]:.4g}, {signed.high[-1]:.4g}] over {signed.n} held-out {signed.unit}s"
    )
    votes = votes_of(signed.low[:-1] > 0)
    return Gate(name, "ours", verdict, reason, finite(float(signed.estimate[-1])), 0.0, votes)
