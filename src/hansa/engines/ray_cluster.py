"""A Ray as the engine uses it: begun here, connected to, or found in this process; asked what it can do, within seconds.

A process is in one Ray at a time. Where it is in one already, that one is used, whatever the address, and left as it is.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from typing import Any
from urllib.parse import urlsplit

from hansa.core.errors import InputError, RunFailed, missing_extra
from hansa.engines.machine import environment

PORT = 6379
"""Of a Ray head that was given no other."""

CLIENT_PORT = 10001
"""Of a Ray head's server for ``ray://`` addresses that was given no other."""

TIMEOUT = 5.0
"""Seconds that whatever listens at an address has to show that it may be a Ray."""

CLIENT = "ray://"

_SETTINGS = b"\4"
"""The kind of the frame with which both sides of a gRPC connection begin."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"

_NEWS = "worker died or was killed|so the task will be retried|[Rr]aylet is terminated|node with node id|has been marked dead"
"""What Ray would print in this process about losses, which the engine makes good or reports itself."""

_STILLBORN = "Starting Ray client server failed"
"""What Ray's proxy for ``ray://`` says when the process that it forked for a client died in the fork: the next one may live."""

_ATTEMPTS = 4
"""To connect, where the proxy's process died."""

_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass
class _Stay:
    """engines: how many of this process are in the Ray that one of them began or connected to; that one is left with the last."""

    engines: int = 0
    handler: Any = None


_stay = _Stay()


def enter(address: str, workers: int) -> Any:
    """Be in a Ray: the one this process is in, the one at ``address``, or one that is begun on this machine. Returns the package.

    workers: CPU slots of a Ray that is begun here, 0 for one per core.

    Raises InputError within seconds where ray is not installed, or there is no Ray of the same version at the address; RunFailed
    where none can be begun. Every call needs one of :func:`leave`, also where it joined what was there.
    """
    ray = import_ray()
    if ray.is_initialized():
        _stay.engines += bool(_stay.engines)
        return ray
    main = threading.current_thread() is threading.main_thread()
    _stay.handler = signal.getsignal(signal.SIGTERM) if main else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of a failure is said here
            _connect(ray, probed(address)) if address else _begin(ray, workers)
    except BaseException:
        ray.shutdown()  # a client that could not connect stands in the way of the next Ray
        _give_back_handler()
        raise
    _stay.engines = 1
    return ray


def _connect(ray: Any, address: str) -> None:
    for attempt in range(_ATTEMPTS):
        try:
            ray.init(address=address, **_QUIET)
            return
        except Exception as error:
            if _STILLBORN in str(error) and attempt + 1 < _ATTEMPTS:
                ray.shutdown()
                time.sleep(2.0**attempt)
                continue
            raise InputError(
                f"engine.address = {address!r}: no Ray can be used there ({_line(error)}); start one with `ray start --head`, of Ray "
                f"{ray.__version__} and the same Python as here"
            ) from error


def _begin(ray: Any, workers: int) -> None:
    try:
        # GPUs stay visible to workers that reserve none, as they are to this process.
        with environment(_unless_set("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
            ray.init(address="local", num_cpus=workers or None, include_dashboard=False, **_QUIET)
    except Exception as error:
        raise RunFailed(
            f"engine ray: Ray cannot be started on this machine ({_line(error)}); see the logs that Ray keeps of its session"
        ) from error


def _give_back_handler() -> None:
    """Of SIGTERM, where Ray puts its own."""
    if _stay.handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stay.handler)


def leave() -> None:
    """Undo one :func:`enter`. What was begun or connected to here is left when nobody needs it any more."""
    if not _stay.engines:
        return
    _stay.engines -= 1
    if not _stay.engines:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_ray().shutdown()
        _give_back_handler()


def refuse_ended() -> None:
    """RunFailed where the Ray that was begun here has lost a process that it cannot be without: soon Ray would end this process too,
    without a word."""
    node = import_ray()._private.worker._global_node
    for kind, process in () if node is None else node.dead_processes():
        if kind in ("raylet", "gcs_server"):
            code = process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            raise RunFailed(f"engine ray: the {kind} of the Ray on this machine {how}; the run can be resumed with another Ray")


def hear_out(answers: Sequence[Any]) -> None:
    """Take what nobody waits for any more: Ray prints an error that was never asked for."""
    ray = import_ray()
    for answer in ray.wait(list(answers), num_returns=len(answers), timeout=TIMEOUT)[0] if answers else ():
        with suppress(ray.exceptions.RayError):
            ray.get(answer)


def slots() -> list[str]:
    """Node ids, one for each CPU that the living nodes offer, taken in turn from all nodes."""
    nodes = sorted(nodes_alive(), key=lambda node: str(node["NodeID"]))
    each = [[str(node["NodeID"])] * cpus(node) for node in nodes]
    return [id for turn in zip_longest(*each) for id in turn if id is not None]


def nodes_alive() -> list[Mapping[str, Any]]:
    return [node for node in import_ray().nodes() if node["Alive"]]


def cpus(node: Mapping[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))


def own_host(address: str) -> str:
    """This machine, by the number under which the cluster's nodes can dial it."""
    ray = import_ray()
    if address.startswith(CLIENT) and ray.util.client.ray.is_connected():
        host, port = _place(address)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((host, port))  # sends nothing, and says which of this machine's numbers leads there
            return str(way.getsockname()[0])
    own = str(ray.util.get_node_ip_address())
    return "127.0.0.1" if all(node["NodeManagerAddress"] == own for node in nodes_alive()) else own


def import_ray() -> Any:
    """Ray, told to keep its news about lost workers to itself where this process has not imported it before."""
    try:
        with environment(_unless_set("RAY_DEDUP_LOGS_SKIP_REGEX", _NEWS)):
            import ray
    except ImportError as error:
        raise missing_extra("ray", "ray") from error
    return ray


def probed(address: str) -> str:
    """The address as Ray takes it. InputError where nothing listens there that may be a Ray: Ray itself asks for minutes."""
    if address == "auto":
        return _probed_found()
    host, port = _place(address)
    client = address.startswith(CLIENT)
    if port == (PORT if client else CLIENT_PORT):
        raise InputError(
            f"engine.address = {address!r}: port {PORT} is for a cluster's own nodes and port {CLIENT_PORT} for everyone else "
            f"(write '{host}:{PORT}' or '{CLIENT}{host}:{CLIENT_PORT}')"
        )
    if client and find_spec("grpc") is None:
        raise InputError(f"engine.address = {address!r}: grpcio is not installed; write: pip install 'ray[client]'")
    try:
        with socket.create_connection((host, port), TIMEOUT) as wire:
            wire.settimeout(TIMEOUT)
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
                _greet(wire)
    except OSError as error:
        raise InputError(
            f"engine.address = {address!r}: there is no Ray ({error}); start one with `ray start --head`, whose address is "
            f"'host:{PORT}' from its own nodes and '{CLIENT}host:{CLIENT_PORT}' from elsewhere"
        ) from error
    return address if client else f"{host}:{port}"


def _probed_found() -> str:
    """The address of the Ray that Ray itself finds, probed; where it finds none, "auto", of which it says so at once."""
    try:
        found: str = import_ray()._private.services.get_ray_address_from_environment("auto", None)
    except ConnectionError:
        return "auto"
    try:
        return probed(found)
    except InputError as error:
        why = str(error).partition(": ")[2]
        raise InputError(f"engine.address = 'auto': Ray finds {found!r}, and {why}") from error


def _greet(wire: socket.socket) -> None:
    """OSError where the other side does not speak gRPC."""
    wire.sendall(_PREFACE)
    answer = b""
    while len(answer) < 4:
        more = wire.recv(4 - len(answer))
        if not more:
            break
        answer += more
    if answer[3:] != _SETTINGS:
        raise OSError("what listens there speaks another protocol")


def _place(address: str) -> tuple[str, int]:
    """Host and port. InputError for what is no address of a Ray."""
    scheme, client, rest = address.rpartition("://")
    try:
        parts = urlsplit("//" + rest)
        host, port = parts.hostname, parts.port or (CLIENT_PORT if client else PORT)
    except ValueError:
        host, port = None, 0
    if not host or scheme not in ("", "ray"):
        raise InputError(
            f"engine.address = {address!r}: is not the address of a Ray (write 'auto', 'host:{PORT}' or '{CLIENT}host:{CLIENT_PORT}')"
        )
    return host, port


def _unless_set(name: str, value: str) -> dict[str, str]:
    return {name: os.environ.get(name, value)}


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:400]}"
