"""A socket-activated updater ends when it has nothing to do, and never otherwise."""

from tidewaiter_core.workers import Stop
from tidewaiter_updater.idle import IdleWatch

from tests.sim.clock import FakeClock


class World:
    """An engine and a server in one."""

    def __init__(self) -> None:
        self.idle = True
        self.connections = 0

    def is_idle(self) -> bool:
        return self.idle


def watch(world: World, clock: FakeClock, limit_s: float = 300) -> IdleWatch:
    return IdleWatch(world, clock, limit_s=limit_s)


def test_quiet_for_the_limit_ends_the_process() -> None:
    world, clock = World(), FakeClock()
    stop = Stop(clock)
    began_s = clock.boottime_s()
    watch(world, clock).run(stop, end=stop.set, connections=[world])
    assert stop.is_set
    assert 300 <= clock.boottime_s() - began_s <= 302


def test_a_transaction_or_a_connection_keeps_it_alive() -> None:
    world, clock = World(), FakeClock()
    idle = watch(world, clock)
    for busy in ("idle", "connections"):
        setattr(world, busy, False if busy == "idle" else 1)
        clock.advance(1000)
        assert not idle.is_over([world])
        world.idle, world.connections = True, 0
        assert not idle.is_over([world]), "the quiet time begins at the last activity"


def test_a_call_postpones_the_end() -> None:
    world, clock = World(), FakeClock()
    idle = watch(world, clock)
    clock.advance(299)
    idle.active()
    clock.advance(299)
    assert not idle.is_over([world])


def test_a_limit_of_zero_never_ends() -> None:
    world, clock = World(), FakeClock()
    idle = watch(world, clock, limit_s=0)
    clock.advance(10**9)
    assert not idle.is_over([world])
