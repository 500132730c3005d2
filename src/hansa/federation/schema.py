"""The tables of a server's database. A change here needs a migration beside it (`hansa.federation.migrations`)."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, String, Table, Text

metadata = MetaData()

members = Table(
    "members",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("joined", Float, nullable=False),
    Column("seen", Float),
    Column("revoked", Float),
    Column("via", String(64)),
)
"""Who has joined. Times are Unix seconds, here and everywhere. via: the relay that speaks for a client without a certificate of its own."""

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(64), primary_key=True),
    Column("member", String(64), ForeignKey("members.name"), nullable=False),
    Column("expires", Float, nullable=False),
    Column("revoked", Float),
)
"""Every certificate that was given out; one that is not here is nobody's."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("expires", Float, nullable=False),
    Column("spent", Float),
    Column("key", String(64)),
)
"""Join tokens. key: digest of the public key that it was spent for, so that the same request may be made again after a lost reply."""

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("job", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("message", Text, nullable=False, default=""),
    Column("submitted_by", String(64), nullable=False),
    Column("submitted", Float, nullable=False),
    Column("stop", Boolean, nullable=False, default=False),
    Column("clients", Text),
    Column("round", Integer, nullable=False, default=0),
    Column("state", String(64)),
    Column("owner", String(64)),
    Column("leased", Float, nullable=False, default=0.0),
)
"""status: waiting, running, finished, failed, stopped. clients: JSON list of the names that take part, once that is settled. state: digest
of the blob with the run's whole state after ``round``. owner, leased: the server process that plays it, and until when."""

records = Table(
    "records",
    metadata,
    Column("run", String(64), ForeignKey("runs.id"), primary_key=True),
    Column("round", Integer, primary_key=True),
    Column("record", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("run", String(64), ForeignKey("runs.id"), nullable=False),
    Column("call", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("client", String(64), nullable=False),
    Column("position", Integer, nullable=False),
    Column("population", Integer, nullable=False),
    Column("status", String(16), nullable=False),
    Column("opened", Float, nullable=False),
    Column("result", String(64)),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("outcome", Text),
    Column("block", Integer, nullable=False, default=0),
    Column("blocks", Integer, nullable=False, default=0),
    Column("held", Boolean, nullable=False, default=False),
    Index("tasks_open", "client", "status"),
    Index("tasks_of", "run", "call"),
)
"""What clients are asked to do. call: digest of the blob that says it. status: open, reported, closed; at a relay also passed, when the
server has it. outcome: JSON, of a failure or a refusal, why it was closed, or the task in whose result this one's is. block, blocks:
the number of the task in its exchange, and how many there are. held: it was answered, and a relay keeps the answer for a sum."""

events = Table(
    "events",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("run", String(64), nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("content", Text, nullable=False),
)
"""What `hansa watch` shows."""
