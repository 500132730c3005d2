"""A log that was tampered with is found out, and one that a crash has cut goes on."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hansa.core.errors import InputError, RunFailed
from hansa.federation.audit import START, Audit, verify

ENTRIES = 7
found_out = settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, tuple[int, str]]:
    """The content of a log of some entries, and its head."""
    path = tmp_path_factory.mktemp("log") / "audit.jsonl"
    with Audit.open(path) as audit:
        for number in range(ENTRIES):
            audit.write("hospital-é", "reported", role="client", run="run-1", round=number, loss=0.1 * number, of=["a", 1, None])
        head = audit.head()
    return path.read_bytes(), head


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(content)
    return path


def test_entries_are_plain_json_that_others_can_check(log: tuple[bytes, tuple[int, str]], tmp_path: Path) -> None:
    content, head = log
    previous = START
    for number, line in enumerate(content.splitlines(), 1):
        entry = json.loads(line)
        told = entry.pop("hash")
        assert told == hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        assert set(entry) == {"number", "time", "who", "role", "action", "details", "previous"}
        assert (entry["number"], entry["previous"], entry["who"], entry["role"]) == (number, previous, "hospital-é", "client")
        previous = told
    assert head == (ENTRIES, previous)
    assert verify(written(tmp_path, content)) == verify(written(tmp_path, content), head) == ENTRIES


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    heads = []
    for number in range(1, 4):
        with Audit.open(path) as audit:
            audit.write("a", "came")
            heads.append(audit.head())
        assert verify(path) == number
    assert all(verify(path, head) == 3 for head in [(0, START), *heads])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@found_out
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_is_found(log: tuple[bytes, tuple[int, str]], tmp_path: Path, place: int, byte: int) -> None:
    content, _ = log
    place %= len(content)
    changed = content[:place] + bytes([byte]) + content[place + 1 :]
    if changed != content:
        line = content[:place].count(b"\n") + 1
        with pytest.raises(InputError, match=f"line {line}: "):
            verify(written(tmp_path, changed))


@found_out
@given(place=st.integers(0, 10_000), count=st.integers(1, 600), byte=st.binary(min_size=1, max_size=2))
def test_bytes_that_were_removed_or_added_are_found(
    log: tuple[bytes, tuple[int, str]], tmp_path: Path, place: int, count: int, byte: bytes
) -> None:
    content, head = log
    place %= len(content)
    removed = content[:place] + content[place + count :]
    for changed in (removed, content[:place] + byte + content[place:]):
        with pytest.raises(InputError, match=f"audit log {tmp_path}"):
            verify(written(tmp_path, changed), head)
        whole = content.startswith(changed) and changed.endswith(b"\n")
        if not whole and changed:  # a log that ends after a whole line looks as it did when that line was the last
            with pytest.raises(InputError, match="line "):
                verify(written(tmp_path, changed))


@found_out
@given(order=st.lists(st.integers(0, ENTRIES - 1), max_size=ENTRIES + 2))
def test_lines_that_were_removed_doubled_or_moved_are_found(
    log: tuple[bytes, tuple[int, str]], tmp_path: Path, order: list[int]
) -> None:
    content, head = log
    lines = content.splitlines(keepends=True)
    path = written(tmp_path, b"".join(lines[index] for index in order))
    if order == list(range(ENTRIES)):
        assert verify(path, head) == ENTRIES
        return
    with pytest.raises(InputError, match=f"audit log {tmp_path}"):
        verify(path, head)
    same = next((at for at, index in enumerate(order) if at != index), len(order))
    if same == len(order):
        with pytest.raises(InputError, match=f"ends after line {same} and had {ENTRIES}"):
            verify(path, head)
        assert verify(path) == same  # cut at its end, which only the head shows
    else:
        with pytest.raises(InputError, match=f"line {same + 1}: is the entry {order[same] + 1}"):
            verify(path)


def test_a_log_that_was_written_anew_is_found_by_its_head(log: tuple[bytes, tuple[int, str]], tmp_path: Path) -> None:
    _, head = log
    path = tmp_path / "audit.jsonl"
    with Audit.open(path) as audit:
        for _ in range(ENTRIES + 1):
            audit.write("nobody", "did nothing")
    assert verify(path) == ENTRIES + 1
    with pytest.raises(InputError, match=rf"line {ENTRIES}: is not the one whose hash was noted"):
        verify(path, head)


def test_an_entry_whose_hash_was_made_to_fit_does_not_fit_the_next(log: tuple[bytes, tuple[int, str]], tmp_path: Path) -> None:
    lines = log[0].splitlines(keepends=True)
    entry = json.loads(lines[2])
    del entry["hash"]
    entry["who"] = "somebody else"
    plain = {"sort_keys": True, "separators": (",", ":")}
    entry["hash"] = hashlib.sha256(json.dumps(entry, **plain).encode()).hexdigest()  # type: ignore[arg-type]  # options of several types
    forged = json.dumps(entry, **plain).encode() + b"\n"  # type: ignore[arg-type]  # as above
    with pytest.raises(InputError, match="line 4: does not follow the line before"):
        verify(written(tmp_path, b"".join([*lines[:2], forged, *lines[3:]])))


@pytest.mark.parametrize("content", [b"\n", b"null\n", b"[]\n", b"{}\n", b'{"hash":1}\n', b"[" * 50_000 + b"\n", b"x" * 70_000])
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match=r"line 1: (is|was changed)"):
        verify(written(tmp_path, content))
    if content.endswith(b"\n"):
        with pytest.raises(InputError, match=r"its last line (is not an entry|was changed)"):
            Audit.open(tmp_path / "audit.jsonl")


def test_a_last_line_that_was_changed_is_not_gone_on_from(log: tuple[bytes, tuple[int, str]], tmp_path: Path) -> None:
    changed = log[0][:-300].rpartition(b"\n")[0] + b"\n" + log[0].splitlines()[-1].replace(b"client", b"admin!") + b"\n"
    with pytest.raises(InputError, match="its last line was changed"):
        Audit.open(written(tmp_path, changed))
    assert (tmp_path / "audit.jsonl").read_bytes() == changed


def test_there_is_no_log_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="name the file of a log"):
        verify(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be opened"):
        Audit.open(tmp_path / "none" / "audit.jsonl")


# Crashes


def test_a_torn_line_is_cut_off_and_that_is_told(log: tuple[bytes, tuple[int, str]], tmp_path: Path) -> None:
    content, _ = log
    last = content[:-1].rindex(b"\n") + 1
    for cut in range(last + 1, len(content), 7):
        path = written(tmp_path, content[:cut])
        with pytest.raises(InputError, match=f"line {ENTRIES}: is not finished"):
            verify(path)
        with Audit.open(path) as audit:
            audit.write("a", "came after")
        assert verify(path) == ENTRIES + 1
        assert path.read_bytes().startswith(content[:last])
        told = json.loads(path.read_bytes().splitlines()[ENTRIES - 1])
        assert told["action"] == "cut off an unfinished entry"
        assert told["details"] == {"bytes": cut - last, "sha256": hashlib.sha256(content[last:cut]).hexdigest()}


def test_a_first_line_may_be_torn_too(tmp_path: Path) -> None:
    path = written(tmp_path, b'{"action":"st')
    with Audit.open(path):
        assert verify(path) == 1


WRITER = """
import sys
from pathlib import Path
from hansa.federation.audit import Audit
audit = Audit.open(Path(sys.argv[1]))
number = 0
while True:
    number += 1
    audit.write("client", "reported", number=number, text="x" * 900)
    print(number, flush=True)
"""


def test_a_writer_that_is_killed_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    path, sure, restarts = tmp_path / "audit.jsonl", 0, 4
    for more in range(restarts):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        try:
            assert writer.stdout is not None
            for _ in range(5 + 3 * more):
                assert writer.stdout.readline()
            if more == 0:
                with pytest.raises(InputError, match="another process writes it"):
                    Audit.open(path)
        finally:
            writer.send_signal(signal.SIGKILL)
            rest = writer.communicate()[0]
        sure += 5 + 3 * more + len(rest.splitlines())
    with Audit.open(path) as audit:
        audit.write("admin", "looked")
        head = audit.head()
    actions = [json.loads(line)["action"] for line in path.read_bytes().splitlines()]
    assert verify(path, head) == len(actions)
    # Of each killed writer one entry more may be there: it was on the disk, and its writer had no time to say so.
    assert sure <= actions.count("reported") <= sure + restarts


def _lives_on(path: str, ready: Any) -> None:
    audit = Audit.open(Path(path))
    audit.write("parent", "forks")
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    ready.send(child)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_child_of_a_killed_writer_does_not_keep_the_log(tmp_path: Path) -> None:
    context = get_context("spawn")
    here, there = context.Pipe()
    parent = context.Process(target=_lives_on, args=(str(tmp_path / "audit.jsonl"), there))
    parent.start()
    child = here.recv()
    try:
        parent.join()
        with Audit.open(tmp_path / "audit.jsonl") as audit:
            assert audit.head()[0] == 1
        os.kill(child, 0)  # it is alive, and has let go
    finally:
        os.kill(child, signal.SIGKILL)
        here.close()
        there.close()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A place whose files cannot grow over 1,000 bytes in this process."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, before[1]))
    yield tmp_path / "audit.jsonl"
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_told_and_nothing_is_written_behind_it(full: Path) -> None:
    audit = Audit.open(full)
    for _ in range(2):
        audit.write("a", "came")
    for _ in range(2):
        with pytest.raises(RunFailed, match="make room on its disk"):
            audit.write("a", "came", text="x" * 600)
    audit.close()
    assert full.stat().st_size == 1_000
    with pytest.raises(InputError, match="line 3: is not finished"):
        verify(full)


# Entries


def test_threads_share_a_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Audit.open(path) as audit, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: audit.write("a", "came", number=number), range(100)))
        assert verify(path, audit.head()) == 100  # while it is open for writing
    assert {json.loads(line)["details"]["number"] for line in path.read_bytes().splitlines()} == set(range(100))


def test_a_log_that_is_closed_takes_nothing(tmp_path: Path) -> None:
    audit = Audit.open(tmp_path / "audit.jsonl")
    audit.close()
    audit.close()
    with pytest.raises(RunFailed, match="is closed"):
        audit.write("a", "came")
    assert verify(tmp_path / "audit.jsonl") == 0


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(who=st.text(), details=st.dictionaries(st.text(max_size=10), plain | st.lists(plain, max_size=5), max_size=5))
def test_whatever_others_say_is_taken_and_told_again(tmp_path: Path, who: str, details: dict[str, Any]) -> None:
    details.pop("role", None)
    path = tmp_path / "audit.jsonl"
    path.unlink(missing_ok=True)
    with Audit.open(path) as audit:
        audit.write(who, "said", **details)
    assert verify(path) == 1
    entry = json.loads(path.read_bytes())
    assert entry["who"] == who
    assert entry["details"].keys() == details.keys()
    for name, value in details.items():
        if isinstance(value, (str, bool)) or value is None or (isinstance(value, float) and abs(value) < 1e300):
            assert entry["details"][name] == value


def test_details_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with Audit.open(path) as audit:
        audit.write("a" * 5_000, "said", text="x" * 1_000_000, many=list(range(1_000)), nan=float("nan"), big=10**40)
        long: dict[str, Any] = {str(number): ["é" * 1_000] * 100 for number in range(32)}
        audit.write("a", "said", **long)
        with pytest.raises(InputError, match="33 details"):
            audit.write("a", "said", **long, one_more=0)
        with pytest.raises(InputError, match="the detail model is a bytes"):
            audit.write("a", "said", model=b"...")
        with pytest.raises(InputError, match="the detail nested is a dict"):
            audit.write("a", "said", nested=[{}])
    first, second = (json.loads(line) for line in path.read_bytes().splitlines())
    assert first["who"] == "a" * 1_000 + "... (5,000 characters)"
    assert first["details"]["text"] == "x" * 1_000 + "... (1,000,000 characters)"
    assert first["details"]["many"] == [*range(100), "... (1,000 in all)"]
    assert (first["details"]["nan"], first["details"]["big"]) == ("nan", str(10**40))
    assert list(second["details"]) == ["withheld"]
    assert verify(path) == 2


def test_keys_and_tokens_do_not_get_into_a_log(tmp_path: Path) -> None:
    from hansa.federation.authority import Authority

    authority = Authority.create(tmp_path / "ca", "North")
    token, _ = authority.invite("hospital-a")
    key = authority.member("hospital-a", "client").key.decode()
    path = tmp_path / "audit.jsonl"
    with Audit.open(path) as audit:
        audit.write("a", f"used {token}", error=f"no member: {token}", key=key, both=[token, key], name="hansa-server")
    content = path.read_text()
    assert token[6:70] not in content and key.splitlines()[1] not in content
    assert json.loads(content)["details"]["name"] == "hansa-server"
