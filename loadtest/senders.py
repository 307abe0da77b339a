"""Several processes that send one schedule together, for rates that one cannot keep.

Request i goes to sender i mod n, whatever the answers do, so the same schedule is split the same way every
time. All senders connect and warm up, and then are told one moment of the machine's monotonic clock as the
schedule's zero; their samples are merged in the order of the schedule. A sender that falls behind shows it in
the issue delay of its samples, as a single one would.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from loadtest.runner import Limits, Request, run_open_loop, warm_up
from loadtest.sample import Sample
from loadtest.target import Target, TargetError
from loadtest.timetable import Timetable

_TELL_S = 0.1
# Until all senders have heard the moment at which they begin.
_LEAD_NS = 200_000_000
_JOIN_S = 10.0
Told = Callable[[int, Sample], None]


@dataclass(frozen=True, slots=True)
class Share:
    """What one sender does; it is pickled, so `connect` is a function of a module, or a partial of one.

    number: of the sender, of `of` in all; timetable: of its own requests.
    """

    number: int
    of: int
    connect: Callable[[], Target]
    frames: tuple[bytes, ...]
    timetable: Timetable
    request: Request
    limits: Limits
    warm_up: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """A sender is connected and warm."""


@dataclass(frozen=True, slots=True)
class _Done:
    """Requests that have an outcome, by their position in the whole schedule."""

    samples: tuple[tuple[int, Sample], ...]


@dataclass(frozen=True, slots=True)
class _Finished:
    """A sender has no request left."""


@dataclass(frozen=True, slots=True)
class _Broken:
    """A sender cannot go on."""

    why: str


def shares(
    connect: Callable[[], Target],
    frames: Sequence[bytes],
    timetable: Timetable,
    request: Request,
    limits: Limits,
    *,
    senders: int,
    warm_up: int,
) -> tuple[Share, ...]:
    """Deal a timetable to senders; raises ValueError unless there is one at least."""
    if senders < 1:
        raise ValueError(f"a load needs at least one sender, got {senders}")
    contents = tuple(frames)
    parts = (timetable.part(number, senders) for number in range(senders))
    contents = tuple(frames)
    parts = (timetable.part(number, senders) for number in range(senders))
    return tuple(
        Share(number, senders, connect, contents, part, request, limits, warm_up)
        for number, part in enumerate(parts)
    )


async def send_together(
    parts: Sequence[Share], on_done: Told, stopped: Callable[[], bool]
) -> tuple[Sample, ...]:
    """Run the shares in processes of their own and return all samples in the order of the schedule.

    on_done: is told of each sample, with its position in the whole schedule, some tenths of a second late.
    stopped: asked then; once it says so nothing more is sent. Raises TargetError when a sender cannot go on.
    """
    context = multiprocessing.get_context("spawn")
    channels: list[Connection] = []
    processes = []
    try:
        for share in parts:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(share, theirs), daemon=True)
            process.start()
            theirs.close()
            channels.append(ours)
            processes.append(process)
        for said in await asyncio.gather(*(asyncio.to_thread(_heard, channel) for channel in channels)):
            if isinstance(said, _Broken):
                raise TargetError(said.why)
        start_ns = time.monotonic_ns() + _LEAD_NS
        for channel in channels:
            channel.send(start_ns)
        found: dict[int, Sample] = {}
        told_to_stop = False

        def take(done: _Done) -> None:
            nonlocal told_to_stop
            for position, sample in done.samples:
                found[position] = sample
                on_done(position, sample)
            if not told_to_stop and stopped():
                told_to_stop = True
                for channel in channels:
                    # One that has finished hears nothing any more.
                    with suppress(OSError):
                        channel.send(None)

        await asyncio.gather(*(_follow(channel, take) for channel in channels))
        return tuple(found[position] for position in sorted(found))
    finally:
        for process in processes:
            process.terminate()
            process.join(_JOIN_S)
        for channel in channels:
            channel.close()


async def _follow(channel: Connection, take: Callable[[_Done], None]) -> None:
    while not isinstance(said := await asyncio.to_thread(_heard, channel), _Finished):
        if isinstance(said, _Broken):
            raise TargetError(said.why)
        assert isinstance(said, _Done), "a sender that works has only outcomes to tell"
        take(said)


def _heard(channel: Connection) -> _Ready | _Done | _Finished | _Broken:
    try:
        said: _Ready | _Done | _Finished | _Broken = channel.recv()
    except (EOFError, OSError):
        return _Broken("a sender process ended by itself")
    return said


def _work(share: Share, channel: Connection) -> None:
    """Be a sender process: ends with its share, or when the process that started it is gone."""
    # Ctrl-C goes to the whole group; who started this process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        asyncio.run(_send(share, channel))
    except (TargetError, OSError, ValueError) as error:
        channel.send(_Broken(str(error)))
    except EOFError:
        pass


async def _send(share: Share, channel: Connection) -> None:
    loop = asyncio.get_running_loop()
    target = share.connect()
    stopped = False
    waiting: list[tuple[int, Sample]] = []

    def on_word() -> None:
        # Either the word to stop, or the end of who would hear the samples.
        nonlocal stopped
        stopped = True
        loop.remove_reader(channel.fileno())

    def on_done(position: int, sample: Sample) -> None:
        waiting.append((position * share.of + share.number, sample))

    def tell() -> None:
        if waiting:
            channel.send(_Done(tuple(waiting)))
            waiting.clear()

    async def tell_now_and_then() -> None:
        while True:
            await asyncio.sleep(_TELL_S)
            tell()

    try:
        await warm_up(target, share.frames, share.request, share.warm_up)
        channel.send(_Ready())
        start_ns: int = await asyncio.to_thread(channel.recv)
        loop.add_reader(channel.fileno(), on_word)
        telling = asyncio.create_task(tell_now_and_then())
        try:
            await run_open_loop(
                target,
                share.frames,
                share.timetable.due_ns,
                share.timetable.carried(share.request),
                share.limits,
                on_done,
                frame_of=lambda position: int(share.timetable.frame[position]),
                start_ns=start_ns,
                stopped=lambda: stopped,
            )
        finally:
            telling.cancel()
        tell()
        channel.send(_Finished())
    finally:
        await target.close()
