"""A close code says by its range whether to reconnect; a reason fits into a close frame."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_ws import endings
from asgi_ws.endings import AT_ONCE, BACKOFF, MAX_REASON_BYTES, NEVER, Ending, delay_of

ALL = {name: value for name, value in vars(endings).items() if isinstance(value, Ending)}


@pytest.mark.parametrize(
    ("codes", "delay"),
    [
        ([1000, 1008, *range(4000, 4100)], NEVER),
        ([1001, 1002, 1003, 1005, 1006, 1007, 1009, 1011, 1012, 1013, *range(4100, 4200)], BACKOFF),
        (range(4200, 4300), AT_ONCE),
        ([1004, 1010, 1014, 1015, 3000, 3999, 4300, 4999, 0, 99_999], BACKOFF),  # any code not listed
    ],
)
def test_the_range_says_whether_to_reconnect(codes, delay):
    for code in codes:
        assert delay_of(code) == delay
        assert Ending(code, "").delay == delay


@pytest.mark.parametrize("name", ALL)
def test_every_ending_can_be_sent(name):
    ending = ALL[name]
    assert len(ending.reason.encode()) <= MAX_REASON_BYTES
    assert ending.code in range(1000, 1016) or ending.code in range(4000, 4300)
    assert ending.status in {400, 401, 403, 404, 429, 503}


def test_no_code_means_two_things():
    assert len({ending.code for ending in ALL.values()}) == len(ALL)


def test_none_of_ours_is_one_of_the_applications_own():
    assert not any(ending.code >= 4000 and ending.code % 100 >= 50 for ending in ALL.values())


@pytest.mark.parametrize(
    ("code", "status"), [(4001, 401), (4003, 403), (4004, 404), (4100, 503), (1013, 503), (1008, 400)]
)
def test_a_refusal_has_the_http_status_of_the_same_meaning(code, status):
    assert next(e for e in ALL.values() if e.code == code).status == status


def test_because_gives_a_reason_and_keeps_the_rest():
    assert endings.FORBIDDEN.because("banned") == Ending(4003, "banned", 403)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_a_reason_is_cut_to_what_a_close_frame_carries_between_characters(reason):
    cut = endings.FORBIDDEN.because(reason).reason
    assert reason.startswith(cut)
    assert len(cut.encode()) <= MAX_REASON_BYTES
    if cut != reason:
        assert len((cut + reason[len(cut)]).encode()) > MAX_REASON_BYTES


def test_a_reason_that_is_no_utf8_can_be_sent_too():
    assert endings.FORBIDDEN.because("a\ud800b").reason.encode()
