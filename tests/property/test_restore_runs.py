"""What of a disk is sent and what is zeroed: no byte is left out, and holes stay holes."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.engine.sparse import BLOCK, CLUSTER, ZERO_STEP, split, zero_runs

quick = settings(deadline=None, max_examples=200)

pieces = st.lists(
    st.tuples(
        st.booleans(), st.one_of(st.integers(1, 3 * BLOCK), st.integers(1, 6).map(lambda n: n * BLOCK))
    ),
    max_size=40,
)


@quick
@given(
    parts=pieces, start=st.integers(0, 40).map(lambda n: n * 512), granule=st.sampled_from((BLOCK, CLUSTER))
)
def test_split(parts: list[tuple[bool, int]], start: int, granule: int) -> None:
    data = b"".join(b"\1" * length if is_data else bytes(length) for is_data, length in parts)
    runs = split(data, start, granule)
    at = start
    for run in runs:
        assert run.start == at
        assert run.length > 0
        at += run.length
        if run.zero:
            assert not data[run.start - start : at - start].strip(b"\0")
        assert at == start + len(data) or at % granule == 0
    assert at == start + len(data)
    assert all(one.zero != other.zero for one, other in itertools.pairwise(runs))
    # What was sent although it need not be: few of the zeros between data.
    granules = {(start + index) // granule for index, byte in enumerate(data) if byte}
    sent = sum(run.length for run in runs if not run.zero)
    assert sent <= 1.02 * granule * len(granules)


@quick
@given(start=st.integers(0, 1 << 40), length=st.integers(0, 5 * ZERO_STEP))
def test_zero_runs(start: int, length: int) -> None:
    runs = list(zero_runs(start, start + length))
    assert sum(run.length for run in runs) == length
    assert all(0 < run.length <= ZERO_STEP and run.zero for run in runs)
    assert [run.start for run in runs] == [start + sum(r.length for r in runs[:n]) for n in range(len(runs))]
