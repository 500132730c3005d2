from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "request")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    request: bytes
    def __init__(self, protocol: _Optional[int] = ..., request: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("certificate", "authority")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    authority: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., authority: _Optional[bytes] = ...) -> None: ...

class NextRequest(_message.Message):
    __slots__ = ("protocol", "working", "behind", "held")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    working: _containers.RepeatedScalarFieldContainer[str]
    behind: _containers.RepeatedCompositeFieldContainer[Behind]
    held: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol: _Optional[int] = ..., working: _Optional[_Iterable[str]] = ..., behind: _Optional[_Iterable[_Union[Behind, _Mapping]]] = ..., held: _Optional[_Iterable[str]] = ...) -> None: ...

class Behind(_message.Message):
    __slots__ = ("name", "silent")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    silent: float
    def __init__(self, name: _Optional[str] = ..., silent: _Optional[float] = ...) -> None: ...

class NextReply(_message.Message):
    __slots__ = ("tasks", "wanted", "idle", "strange")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    STRANGE_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedCompositeFieldContainer[Task]
    wanted: _containers.RepeatedScalarFieldContainer[str]
    idle: bool
    strange: _containers.RepeatedCompositeFieldContainer[Strange]
    def __init__(self, tasks: _Optional[_Iterable[_Union[Task, _Mapping]]] = ..., wanted: _Optional[_Iterable[str]] = ..., idle: bool = ..., strange: _Optional[_Iterable[_Union[Strange, _Mapping]]] = ...) -> None: ...

class Strange(_message.Message):
    __slots__ = ("name", "why")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    name: str
    why: str
    def __init__(self, name: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "run", "job", "call", "position", "population", "client", "block", "blocks")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    id: str
    run: str
    job: Blob
    call: Blob
    position: int
    population: int
    client: str
    block: int
    blocks: int
    def __init__(self, id: _Optional[str] = ..., run: _Optional[str] = ..., job: _Optional[_Union[Blob, _Mapping]] = ..., call: _Optional[_Union[Blob, _Mapping]] = ..., position: _Optional[int] = ..., population: _Optional[int] = ..., client: _Optional[str] = ..., block: _Optional[int] = ..., blocks: _Optional[int] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("digest", "size")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("protocol", "task", "result", "failure", "refusal", "also", "content")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    ALSO_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    task: str
    result: Blob
    failure: Failure
    refusal: Refusal
    also: _containers.RepeatedScalarFieldContainer[str]
    content: bytes
    def __init__(self, protocol: _Optional[int] = ..., task: _Optional[str] = ..., result: _Optional[_Union[Blob, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., also: _Optional[_Iterable[str]] = ..., content: _Optional[bytes] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "message", "traceback", "bad_input")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    BAD_INPUT_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    traceback: str
    bad_input: bool
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., bad_input: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("rule", "message")
    RULE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    rule: str
    message: str
    def __init__(self, rule: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("used", "wanted")
    USED_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    used: bool
    wanted: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, used: bool = ..., wanted: _Optional[_Iterable[str]] = ...) -> None: ...

class PutBlobRequest(_message.Message):
    __slots__ = ("blob", "data")
    BLOB_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    blob: Blob
    data: bytes
    def __init__(self, blob: _Optional[_Union[Blob, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PutBlobReply(_message.Message):
    __slots__ = ("offset", "complete")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    complete: bool
    def __init__(self, offset: _Optional[int] = ..., complete: bool = ...) -> None: ...

class GetBlobRequest(_message.Message):
    __slots__ = ("digest", "offset")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    digest: str
    offset: int
    def __init__(self, digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("protocol", "job")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    job: str
    def __init__(self, protocol: _Optional[int] = ..., job: _Optional[str] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class RunsRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("id", "name", "status", "submitted_by", "submitted", "round", "rounds", "message", "clients")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_BY_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    status: str
    submitted_by: str
    submitted: float
    round: int
    rounds: int
    message: str
    clients: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., submitted_by: _Optional[str] = ..., submitted: _Optional[float] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., message: _Optional[str] = ..., clients: _Optional[_Iterable[str]] = ...) -> None: ...

class RunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("protocol", "run", "after")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: str
    after: int
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[str] = ..., after: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "time", "kind", "content")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    number: int
    time: float
    kind: str
    content: str
    def __init__(self, number: _Optional[int] = ..., time: _Optional[float] = ..., kind: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("protocol", "run")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    run: str
    def __init__(self, protocol: _Optional[int] = ..., run: _Optional[str] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("protocol", "name", "role", "hours")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    name: str
    role: str
    hours: float
    def __init__(self, protocol: _Optional[int] = ..., name: _Optional[str] = ..., role: _Optional[str] = ..., hours: _Optional[float] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("protocol", "name")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    name: str
    def __init__(self, protocol: _Optional[int] = ..., name: _Optional[str] = ...) -> None: ...

class RevokeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MembersRequest(_message.Message):
    __slots__ = ("protocol",)
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    def __init__(self, protocol: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "role", "joined", "expires", "revoked", "seen", "asked", "via")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    JOINED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: str
    joined: float
    expires: float
    revoked: float
    seen: float
    asked: float
    via: str
    def __init__(self, name: _Optional[str] = ..., role: _Optional[str] = ..., joined: _Optional[float] = ..., expires: _Optional[float] = ..., revoked: _Optional[float] = ..., seen: _Optional[float] = ..., asked: _Optional[float] = ..., via: _Optional[str] = ...) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("members",)
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...
