"""Relays: whatever they add and pass on, a run has the bits of the simulation; and they may do no more than that."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa
from hansa.core.errors import InputError, RunFailed
from hansa.core.reduction import Tree
from hansa.core.updates import Total
from hansa.federated.client import Client, known_addresses
from hansa.federated.relay import Relay
from hansa.federated.server import Server
from hansa.federation import parcels, results, transfer
from hansa.federation.blobs import blob_of
from hansa.federation.credentials import Credentials
from hansa.federation.link import Link, Refused
from hansa.federation.nodes import is_node, nodes, summed
from hansa.federation.policy import Policy
from hansa.federation.protocol import PROTOCOL
from hansa.federation.protocol import hansa_pb2 as pb
from hansa.federation.relay import broken, parts, total_in
from hansa.federation.state import Task
from tests.federation.forge import Forge
from tests.federation.parties import job, joined, same_bits, served, simulated, threads, until

FIVE = tuple(f"client-{number:03d}" for number in range(5))


def of_five(**changes: Any) -> hansa.Job:
    return job(**({"count": 2, "partition": hansa.IID(clients=len(FIVE))} | changes))


def serving(job: hansa.Job, folder: Path, **options: Any) -> Server:
    given = served(job, **({"clients": len(FIVE)} | options))
    return Server(given, home=folder / "server", listen="127.0.0.1:0", quiet=True)


@contextlib.contextmanager
def relaying(above: Server | Relay, name: str, folder: Path) -> Iterator[Relay]:
    """A relay at work in threads of this process."""
    home, errors = folder / name, list[BaseException]()
    Client.join(above.address, above.token(name, "relay"), home)
    with Relay(home=home, listen="127.0.0.1:0") as relay:

        def run() -> None:
            try:
                relay.run()
            except BaseException as error:  # noqa: BLE001  # raised below
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield relay
        finally:
            relay.stop.set()
            relay.hang_up()
            thread.join(30)
    if errors:
        raise errors[0]


def at(place: Server | Relay, given: hansa.Job, folder: Path, names: Sequence[str]) -> list[Path]:
    """Clients of a server or a relay."""
    return joined(place.server if isinstance(place, Relay) else place, given, folder, names)


def entries(home: Path, action: str) -> list[dict[str, Any]]:
    """Of an audit log."""
    found = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
    return [entry for entry in found if entry["action"] == action]


def added(home: Path) -> set[int]:
    """Of how many clients the sums were that a relay made and the server took."""
    return {one["details"]["tasks"] for one in entries(home, "passed on") if one["details"]["used"]} - {1}


@pytest.mark.parametrize(
    ("direct", "sums"), [((), {5}), ((0, 4), {2}), ((1, 3), set())], ids=["all behind it", "three of five", "no neighbours"]
)
def test_one_relay_gives_the_bits_of_the_simulation(direct: tuple[int, ...], sums: set[int], tmp_path: Path) -> None:
    """direct: the clients that have joined the server itself. What is gathered, as in an evaluation, is never added."""
    given, straight = of_five(), [FIVE[number] for number in direct]
    with serving(given, tmp_path) as server, relaying(server, "north", tmp_path) as north:
        behind = [name for name in FIVE if name not in straight]
        with threads([*at(server, given, tmp_path, straight), *at(north, given, tmp_path, behind)]):
            done = server.train()
        via = server.office.state.via()
    assert same_bits(done.params, simulated(given, tmp_path)) and done.params
    assert [record["clients"] for record in done.history] == [5, 5]
    assert set(done.by_client) == set(FIVE)
    assert via == dict.fromkeys(behind, "north")
    assert added(tmp_path / "north") == sums


def test_two_relays_and_one_behind_another(tmp_path: Path) -> None:
    given = of_five(algorithm=hansa.Scaffold(local=hansa.Local(epochs=1, batch_size=16, learning_rate=0.1)))
    with (
        serving(given, tmp_path) as server,
        relaying(server, "north", tmp_path) as north,
        relaying(server, "south", tmp_path) as south,
        relaying(north, "harbour", tmp_path) as harbour,
    ):
        places = [(north, FIVE[:2]), (harbour, FIVE[2:4]), (south, FIVE[4:])]
        with threads([home for place, names in places for home in at(place, given, tmp_path, names)]):
            done = server.train()
    assert same_bits(done.params, simulated(given, tmp_path)) and done.params
    assert [added(tmp_path / name) for name in ("harbour", "north", "south")] == [{2}, {4}, set()]


def test_who_fails_behind_a_relay_is_named(tmp_path: Path) -> None:
    """The others of its sum are used, and its refusal reaches the server as it was told."""
    local = hansa.Local(epochs=2, batch_size=16, learning_rate=0.1)
    given = of_five(algorithm=hansa.FedAvg(local=local), rounds=hansa.Rounds(count=2, block=1, quorum=0.5))
    with serving(given, tmp_path) as server, relaying(server, "north", tmp_path) as north:
        with threads(at(north, given, tmp_path, FIVE), {"client-002": Policy(max_epochs=1)}):
            done = server.train()
        events = [json.loads(row.content) for row in server.office.state.events(server.run_id, 0) if row.kind == "refused"]
    assert [record["clients"] for record in done.history] == [4, 4]
    assert {(event["client"], event["rule"]) for event in events} == {("client-002", "max_epochs")}
    assert "client-002" in str(done.history[-1]["failures"])
    assert added(tmp_path / "north") == {2, 5}  # all of them were there in the preparation


def test_a_round_that_closes_uses_what_a_relay_keeps(tmp_path: Path) -> None:
    """A silent client does not take with it the answers to which its own was to be added."""
    given = of_five(rounds=hansa.Rounds(count=6, block=1, quorum=0.5))
    with (
        serving(given, tmp_path, enough=0.8) as server,
        relaying(server, "north", tmp_path) as north,
        threads(at(north, given, tmp_path, FIVE)) as clients,
    ):

        def leave() -> None:
            until(lambda: server.run_id and server.office.state.run(server.run_id).round >= 1)
            clients[1].stop.set()
            clients[1].hang_up()

        leaving = threading.Thread(target=leave)
        leaving.start()
        try:
            done = server.train()
        finally:
            leaving.join()
    assert done.history[-1]["clients"] == 4
    assert "client-001" in str(done.history[-1]["failures"])


def test_a_relay_that_is_killed_goes_on(tmp_path: Path) -> None:
    """In mid-round: when it took an answer, when it had added some, when the server had them. Its clients wait for it.

    The end has the bits of a run without an interruption.
    """
    given, home = of_five(count=3), tmp_path / "north"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    with serving(given, tmp_path) as server:
        Client.join(server.address, server.token("north", "relay"), home)
        with Relay(home=home, listen=listen) as relay:
            homes = [*at(relay, given, tmp_path, FIVE[:4]), *at(server, given, tmp_path, FIVE[4:])]
        ended, done = threading.Event(), list[hansa.Run]()

        def keep() -> None:
            """Start it again whenever it has died, each time to die at another step, but for the last one."""
            steps = ("server.report_committed:3", "relay.summed", "relay.reported:2")
            with Forge() as forge:
                for step in (*steps, ""):
                    one = forge.start(("relay", "--home", home, "--listen", listen), tmp_path / "relay.log", step)
                    until(lambda: ended.is_set() or one.poll() is not None)  # noqa: B023  # called before the loop goes on
                    died.append(one.poll())
                    one.end()

        died: list[int | None] = []
        keeping = threading.Thread(target=keep)
        with threads(homes):
            keeping.start()
            try:
                done.append(server.train())
            finally:
                ended.set()
                keeping.join()
    assert died == [-signal.SIGKILL] * 3 + [None]
    assert same_bits(done[0].params, simulated(given, tmp_path))
    assert [record["clients"] for record in done[0].history] == [5, 5, 5]


@contextlib.contextmanager
def impostor(folder: Path) -> Iterator[tuple[Server, Link]]:
    """A server whose run waits for five clients: four behind a relay that says what it likes, and one of its own."""
    given = of_five()
    with serving(given, folder) as server:
        Client.join(server.address, server.token("north", "relay"), folder / "north")
        at(server, given, folder, FIVE[4:])
        link = Link(known_addresses(folder / "north"), Credentials.load(folder / "north"))
        failed: list[BaseException] = []

        def play() -> None:
            try:
                server.train()
            except RunFailed as error:
                failed.append(error)

        playing = threading.Thread(target=play)
        playing.start()
        try:
            asked(link, behind=[pb.Behind(name=name) for name in FIVE[:4]])
            alone = Link(known_addresses(folder / FIVE[4]), Credentials.load(folder / FIVE[4]))
            asked(alone, working=["0" * 32])
            alone.close()
            until(lambda: len(server.office.state.all_open()) == 5)
            yield server, link
        finally:
            link.close()
            server.stop_playing()
            playing.join()
        assert "goes on with the next start" in str(failed[0])


def asked(link: Link, **given: Any) -> Any:
    return link.once(lambda federation, _: federation.Next(pb.NextRequest(protocol=PROTOCOL, **given)))


def refused(link: Link, **given: Any) -> Refused:
    with pytest.raises(Refused) as error:
        link.once(lambda federation, _: federation.Report(pb.ReportRequest(protocol=PROTOCOL, **given)))
    return error.value


def test_a_relay_may_not_say_more_than_its_own(tmp_path: Path) -> None:
    with impostor(tmp_path) as (server, link):
        task = {one.client: one for one in server.office.state.all_open()}
        mine = {one.client: one for one in until(lambda: asked(link).tasks)}
        assert set(mine) == set(FIVE[:4])
        strange = {
            one.name: one.why
            for one in asked(link, behind=[pb.Behind(name=name) for name in ("client-004", "admin", "a/b")]).strange
        }
        assert set(strange) == {"client-004", "admin", "a/b"} and "a member of that name, a client" in strange["client-004"]
        another = refused(link, task=task["client-004"].id, failure=pb.Failure(kind="Lost", message="gone"))
        assert another.code is grpc.StatusCode.PERMISSION_DENIED
        mixed = refused(link, task=task["client-003"].id, also=[task["client-004"].id], result=pb.Blob())
        assert mixed.code is grpc.StatusCode.PERMISSION_DENIED
        for names in ((1, 2), (0, 1, 2), (1, 0), (2, 0, 1, 3)):
            ids = [task[FIVE[number]].id for number in names]
            assert "below one node" in str(refused(link, task=ids[0], also=ids[1:], result=pb.Blob()))
        pair = [task[FIVE[number]].id for number in (0, 1)]
        assert "below one node" in str(refused(link, task=pair[0], also=pair[1:], failure=pb.Failure(kind="Lost")))
        assert "each of them once" in str(refused(link, task=pair[0], also=pair[:1], result=pb.Blob()))
        # What is gathered is told by each client.
        parcels.write(tmp_path / "sum", {"collective": "sum", "values": {}, "weight": 2.0, "clients": 2, "metrics": {}})
        blob = blob_of(tmp_path / "sum")
        link.once(lambda federation, _: transfer.upload(federation, tmp_path / "sum", blob.digest))
        said = refused(link, task=pair[0], also=pair[1:], result=pb.Blob(digest=blob.digest, size=blob.size))
        assert said.code is grpc.StatusCode.INVALID_ARGUMENT and "'gather'" in str(said)
        with pytest.raises(Refused, match="the role relay may not do this"):
            link.once(lambda _, administration: administration.Submit(pb.SubmitRequest(protocol=PROTOCOL, job="")))
        assert len(server.office.state.all_open()) == 5
    why = [str(one["details"]["why"]) for one in entries(tmp_path / "server", "refused") if one["who"] == "north"]
    assert sum("may not speak for" in one for one in why) == 3 and sum("not behind it" in one for one in why) == 2
    assert len(entries(tmp_path / "server", "result refused")) == 6


def test_a_client_speaks_for_itself_alone(tmp_path: Path) -> None:
    with impostor(tmp_path) as (server, _):
        link = Link([server.address], Credentials.load(tmp_path / "client-004"))
        try:
            task = {one.client: one.id for one in server.office.state.all_open()}
            said = refused(link, task=task["client-004"], also=[task["client-003"]], result=pb.Blob())
            assert said.code is grpc.StatusCode.PERMISSION_DENIED
            with pytest.raises(Refused, match="speaks for itself alone"):
                asked(link, behind=[pb.Behind(name="somebody")])
        finally:
            link.close()
        assert "somebody" not in {member.name for member in server.office.state.members()}
        # Who is shut out stays out, whoever names it.
        server.revoke("client-002")
        north = Link([server.address], Credentials.load(tmp_path / "north"))
        try:
            until(lambda: "client-002" not in {one.client for one in asked(north).tasks})
            strange = asked(north, behind=[pb.Behind(name="client-002")]).strange
        finally:
            north.close()
        assert [one.why for one in strange] == ["it was shut out here"]


def test_only_who_joined_as_a_relay_is_one(tmp_path: Path) -> None:
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        Client.join(server.address, server.token("north"), tmp_path / "north")
    with pytest.raises(InputError, match="as a client; a relay needs a token of its own"):
        Relay(home=tmp_path / "north")


def test_a_relay_refuses_its_servers_blobs(tmp_path: Path) -> None:
    with Server(home=tmp_path / "server", listen="127.0.0.1:0", quiet=True) as server:
        Client.join(server.address, server.token("north", "relay"), tmp_path / "north")
        north = Relay(home=tmp_path / "north", listen="127.0.0.1:0", blobs=tmp_path / "server" / "blobs")
        with pytest.raises(InputError, match="belong to a server or relay with another authority"):
            north.start()


def test_a_relays_log_tells_its_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its server, for whom it speaks, a run begun and over; and once, not at every try, that the server is away."""
    given = of_five(count=1, partition=hansa.IID(clients=1))
    caplog.set_level(logging.INFO, "hansa.federation.relay")

    def logged(*words: str) -> list[str]:
        return [said for record in caplog.records if all(word in (said := record.getMessage()) for word in ("north", *words))]

    with contextlib.ExitStack() as open_:
        with serving(given, tmp_path, clients=1) as server:
            north = open_.enter_context(relaying(server, "north", tmp_path))
            with threads(at(north, given, tmp_path, FIVE[:1])):
                server.train()
            until(lambda: logged("run", server.run_id, "is over"))
        until(lambda: logged("cannot be reached"))
        time.sleep(1.0)  # some more tries
    assert logged(f"connected to {server.address}") and logged("speaks for client-000") and logged("passes on", server.run_id)
    assert len(logged("cannot be reached")) == 1 and logged("cannot be reached", "had no run left, and is waited for")


def flat(totals: dict[int, Total | None]) -> Total | None:
    tree = Tree(len(totals))
    for number, total in totals.items():
        tree.add(number, total)
    return tree.result()


def relayed(totals: dict[int, Total | None], owners: Sequence[int]) -> dict[int, Total | None]:
    """What is left of the totals when each owner has added its own; those of owner 0 are nobody's."""
    left = dict(totals)
    for owner in set(owners) - {0}:
        mine = [number for number, total in totals.items() if owners[number] == owner and total is not None]
        for node in nodes(mine, len(totals)):
            left |= dict.fromkeys(node) | {node[0]: summed([totals[number] for number in node])}
    return left


@settings(max_examples=200)
@given(data=st.data(), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_any_assignment_to_relays_gives_the_bits_of_the_flat_tree(data: Any, count: int, seed: int) -> None:
    """Also where some blocks failed."""
    rng = np.random.default_rng(seed)
    owners = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    lost = data.draw(st.sets(st.integers(0, count - 1)))
    weights = rng.random(count)
    totals: dict[int, Total | None] = {
        number: None
        if number in lost
        else Total({"w": rng.normal(size=3).astype(np.float32)}, float(weights[number]), 1, {"loss": (rng.random(), 1.0)})
        for number in rng.permutation(count).tolist()
    }
    plain, through = flat(totals), flat(relayed(totals, owners))
    assert (plain is None) == (through is None) == (len(lost) == count)
    if plain is not None and through is not None:
        assert through.values["w"].tobytes() == plain.values["w"].tobytes()
        assert (through.weight, through.clients, through.metrics) == (plain.weight, plain.clients, plain.metrics)


def test_large_results_are_added_in_their_files(tmp_path: Path) -> None:
    """As the flat tree adds them in memory."""
    rng = np.random.default_rng(3)
    totals = [
        Total({"w": rng.normal(size=300_000).astype(np.float32)}, 1.0 + k, 1, {"loss": (np.float64(k), np.float64(1))})
        for k in range(7)
    ]
    for number, total in enumerate(totals):
        parcels.write(tmp_path / str(number), results.encode_result(total))
    read = [total_in(tmp_path / str(number)) for number in range(7)]
    assert all(isinstance(total.values["w"], np.memmap) for total in read)
    whole, plain = summed(read), flat(dict(enumerate(totals)))
    assert plain is not None and not isinstance(whole.values["w"], np.memmap)
    assert whole.values["w"].tobytes() == plain.values["w"].tobytes()
    assert (whole.weight, whole.clients, whole.metrics) == (plain.weight, plain.clients, plain.metrics)
    parcels.write(tmp_path / "sum", results.encode_result(whole))
    again = total_in(tmp_path / "sum")
    assert again.values["w"].tobytes() == plain.values["w"].tobytes() and again.clients == 7


def row(block: int, count: int, **changes: Any) -> Task:
    given = {
        "id": f"{block:032x}", "run": "r", "call": "c", "size": 1, "client": f"k{block}", "position": block, "population": count,
        "status": "reported", "opened": 0.0, "result": "d", "bytes": 1, "outcome": None, "block": block, "blocks": count,
    }  # fmt: skip
    return Task(**(given | changes))


@settings(max_examples=200)
@given(data=st.data(), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_a_relay_behind_a_relay_too(data: Any, count: int, seed: int) -> None:
    """A sum that came from below is never taken apart, and what is added to it gives the bits of the flat tree."""
    rng = np.random.default_rng(seed)
    inner, outer = data.draw(st.sets(st.integers(0, count - 1))), data.draw(st.sets(st.integers(0, count - 1)))
    totals: dict[int, Total | None] = {number: Total({"w": rng.normal(size=2)}, 1.0, 1) for number in range(count)}
    below = relayed(totals, [int(number in inner) for number in range(count)])
    roots = {number: node[0] for node in nodes(inner, count) for number in node}
    rows = [
        row(number, count, outcome={"clients": total.clients})
        if (total := below[number]) is not None
        else row(number, count, result=None, outcome={"in": f"{roots[number]:032x}"})
        for number in sorted(inner | outer)
    ]
    assert broken(rows) == []
    left = dict(below)
    for part in parts(rows, adds=True):
        blocks = [one.block for one in part]
        assert is_node(blocks, count)
        left |= dict.fromkeys(blocks) | {blocks[0]: summed([below[block] for block in blocks])}
    plain, through = flat(totals), flat(left)
    assert plain is not None and through is not None
    assert through.values["w"].tobytes() == plain.values["w"].tobytes() and through.clients == count
    for lost in [one for one in rows if one.id in {f"{root:032x}" for root in roots.values()}][:1]:
        with_it = {one.id for one in rows if (one.outcome or {}).get("in") == lost.id}
        assert {one.id for one in broken([one for one in rows if one.id != lost.id])} == with_it


@given(count=st.integers(1, 64), data=st.data())
def test_nodes_are_what_they_say(count: int, data: Any) -> None:
    """Every block once; each node is one; and no two of them could be one."""
    blocks = data.draw(st.sets(st.integers(0, count - 1)))
    found = nodes(blocks, count)
    assert [block for node in found for block in node] == sorted(blocks)
    assert all(is_node(list(node), count) for node in found)
    assert not any(is_node([*one, *other], count) for one, other in pairwise(found))
    assert not is_node([], count) and not is_node([0, 0], count) and not is_node([count], count)
