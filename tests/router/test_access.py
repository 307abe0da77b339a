"""Who is let in, how often, how many at once, and until when."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.access import Access, Account, KeysFile
from router.errors import Forbidden, MalformedRequest, RateLimited, Unauthorized
from router.headers import Headers
from router.keys import Key, read
from router.metrics import Metrics
from router.wishes import Wishes
from tests.fakes import FakeClock
from tests.router.keyring import Keyring, make_key

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


def shown(token: str) -> Headers:
    """Return the headers of a request with a token."""
    return {b"authorization": [f"Bearer {token}".encode()]}


class Door:
    """An Access of one key, its clock, and the wall's time."""

    def __init__(self, **limits: object) -> None:
        self.clock, self.wall_s, self.metrics = FakeClock(), NOON.timestamp(), Metrics()
        self.token, self.key = make_key("one", **limits)
        self.access = Access([self.key], self.clock, self.metrics, lambda: self.wall_s)

    def enters(self) -> bool:
        """Let a frame in that ends at once; return whether it was."""
        try:
            self.access.enter(shown(self.token)).leave()
        except RateLimited:
            return False
        return True

    def refused(self, reason: str) -> float:
        """Return how many were refused for a reason."""
        labels = {"reason": reason}
        return self.metrics.registry.get_sample_value("paretogate_access_refused_total", labels) or 0.0

    def changed(self, **limits: object) -> Key:
        """Return the key with other limits."""
        return Key.model_validate(self.key.model_dump() | limits)


@given(
    rate=st.floats(0.5, 500.0),
    burst=st.integers(1, 20) | st.none(),
    pauses_s=st.lists(st.floats(0.0, 2.0) | st.floats(0.0, 0.01), min_size=1, max_size=60),
)
def test_no_window_has_more_than_burst_and_rate_allow(
    rate: float, burst: int | None, pauses_s: list[float]
) -> None:
    """However requests come, between any two of them at most burst + rate·t are let in."""
    door = Door(rate_per_s=rate, burst=burst)
    came_s, in_s = 0.0, []
    for pause_s in pauses_s:
        door.clock.sleep(pause_s)
        came_s += round(pause_s * 1e9) / 1e9
        if door.enters():
            in_s.append(came_s)
    most = door.key.most_at_once
    for first, start_s in enumerate(in_s):
        for count, end_s in enumerate(in_s[first:], start=1):
            assert count <= most + rate * (end_s - start_s) + 1e-6


@given(rate=st.floats(0.5, 60.0), ahead=st.floats(1.01, 4.0))
def test_who_always_asks_gets_the_rate(rate: float, ahead: float) -> None:
    """A sender faster than its rate gets it within 5 %: over ten seconds, and the time of fifty frames."""
    seconds = max(10.0, 50.0 / rate)
    door = Door(rate_per_s=rate)
    let_in = 0
    for _ in range(round(seconds * rate * ahead)):
        let_in += door.enters()
        door.clock.sleep(1.0 / (rate * ahead))
    assert 0.95 <= let_in / (rate * seconds) <= 1.05


def test_the_wait_that_is_told_is_long_enough() -> None:
    """Whoever waits as long as Retry-After said is let in, and not much sooner."""
    door = Door(rate_per_s=4.0, burst=1)
    assert door.enters()
    with pytest.raises(RateLimited) as caught:
        door.access.enter(shown(door.token))
    assert caught.value.retry_after_s == pytest.approx(0.25)
    door.clock.sleep(0.2)
    assert not door.enters()
    door.clock.sleep(0.05)
    assert door.enters()
    assert door.refused("rate") == 2


def test_frames_at_the_same_time_are_counted_until_they_leave() -> None:
    """One more than allowed is refused while they are in, whoever of the key's requests has them."""
    door = Door(concurrent=2)
    first, second = door.access.enter(shown(door.token)), door.access.enter(shown(door.token))
    with pytest.raises(RateLimited, match="2 frames are in flight"):
        door.access.enter(shown(door.token))
    first.leave()
    first.leave()
    with door.access.enter(shown(door.token)), pytest.raises(RateLimited):
        door.access.enter(shown(door.token))
    second.leave()
    assert door.access.account(shown(door.token)).inside == 0
    assert door.refused("concurrency") == 2


def test_frames_of_one_request_are_let_in_together_or_not_at_all() -> None:
    """Each counts; as many as the key never allows at once are forbidden and not to be asked for again."""
    door = Door(rate_per_s=10.0, burst=4, concurrent=8)
    with door.access.enter(shown(door.token)) as stay:
        stay.more(3)
        assert door.access.account(shown(door.token)).inside == 4
        with pytest.raises(Forbidden, match="5 frames at once, the API key allows 4"):
            stay.more(1)
    assert not door.enters()
    door.clock.sleep(0.3)
    with pytest.raises(RateLimited), door.access.enter(shown(door.token)) as stay:
        stay.more(3)
    assert door.access.account(shown(door.token)).inside == 0


def test_a_key_expires_at_its_moment() -> None:
    """It is let in until then, and a stream that it opened has its next frame refused."""
    door = Door(expires=NOON + timedelta(seconds=10))
    stream = door.access.account(shown(door.token))
    door.wall_s += 9.9
    stream.enter().leave()
    door.wall_s += 0.1
    asked: tuple[Callable[[], object], ...] = (stream.enter, lambda: door.access.enter(shown(door.token)))
    for ask in asked:
        with pytest.raises(Unauthorized, match="expired"):
            ask()
    assert door.refused("expired") == 2


def test_a_key_is_for_its_operating_points() -> None:
    """What names another, or a variant, is forbidden; what names none is held to them."""
    door = Door(operating_points=["fast", "balanced"])
    account: Account = door.access.account(shown(door.token))
    assert account.limited(Wishes("fast")).operating_point == "fast"
    assert account.limited(Wishes()).allowed == frozenset({"fast", "balanced"})
    for wishes in (Wishes("accurate"), Wishes(model="tiny-0")):
        with pytest.raises(Forbidden, match="for balanced, fast alone"):
            account.limited(wishes)


def test_keys_change_under_way() -> None:
    """A revoked key ends its streams, one that stays keeps what it has used, a new secret is a new key."""
    door = Door(rate_per_s=1.0, burst=2)
    other_token, other = make_key("other")
    stream = door.access.account(shown(door.token))
    stream.enter()
    door.access.renew([door.changed(concurrent=1), other])
    with pytest.raises(RateLimited, match="in flight"):
        stream.enter()
    door.access.enter(shown(other_token)).leave()
    door.access.renew([other])
    with pytest.raises(Unauthorized, match="revoked"):
        stream.enter()
    with pytest.raises(Unauthorized, match="not known"):
        door.access.enter(shown(door.token))


@pytest.mark.parametrize(
    ("headers", "opens"),
    [
        ({b"authorization": [b"Bearer %b"]}, True),
        ({b"authorization": [b"bearer  %b"]}, True),
        ({b"x-api-key": [b"%b"]}, True),
        ({b"authorization": [b"Basic %b"]}, False),
        ({b"authorization": [b"%b"]}, False),
        ({b"x-api-key": [b"Bearer %b"]}, False),
        ({}, False),
    ],
)
def test_a_token_stands_in_one_of_two_headers(headers: dict[bytes, list[bytes]], opens: bool) -> None:
    """Authorization: Bearer, or X-Api-Key; nothing else."""
    door = Door()
    token = door.token.encode()
    given = {
        name: [value % token if b"%b" in value else value for value in values]
        for name, values in headers.items()
    }
    if opens:
        door.access.enter(given)
    else:
        with pytest.raises(Unauthorized, match="Authorization: Bearer"):
            door.access.enter(given)


def test_two_tokens_are_one_too_many() -> None:
    """A header that stands twice is malformed."""
    door = Door()
    with pytest.raises(MalformedRequest):
        door.access.enter({b"authorization": [b"Bearer a", b"Bearer b"]})


@pytest.mark.anyio
async def test_a_changed_file_is_taken_over_and_a_broken_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New keys hold from the next look on; a broken file leaves the keys as they were, and is told of."""
    keyring = Keyring(tmp_path / "keys.json")
    first = keyring.add("first")
    access = Access(read(keyring.path), FakeClock(), Metrics())
    file = KeysFile(keyring.path, access, poll_s=1.0)
    second = keyring.add("second")
    with pytest.raises(Unauthorized):
        access.account(shown(second))
    await file.look()
    access.account(shown(second))
    for broken in ("", "{}}", '{"keys": 5}'):
        keyring.path.write_text(broken)
        with caplog.at_level(logging.ERROR):
            caplog.clear()
            await file.look()
        assert "those before go on" in caplog.text
        access.account(shown(first))
    keyring.path.unlink()
    await file.look()
    access.account(shown(first))
    third = keyring.add("third")
    await file.look()
    access.account(shown(third))
    with pytest.raises(Unauthorized):
        access.account(shown(first))
