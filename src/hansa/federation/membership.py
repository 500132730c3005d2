"""What the database knows of members: their tokens, their certificates, when they were heard of, and for whom relays speak."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update

from hansa.core.errors import InputError
from hansa.federation.database import Database
from hansa.federation.schema import certificates, members, tokens


class Membership(Database):
    """See the module."""

    def invite(self, id: str, name: str, role: str, expires: float) -> None:
        """Keep a join token. InputError where the name belongs to a member already, unless that one was revoked."""
        with self._write() as connection:
            found = connection.execute(select(members.c.revoked, members.c.role).where(members.c.name == name)).first()
            if found is not None and found.revoked is None and found.role != role:
                raise InputError(f"token for {name!r}: there is a member of that name, a {found.role}; choose another name")
            connection.execute(insert(tokens).values(id=id, name=name, role=role, expires=expires))

    def join(self, token: str, key: str, serial: str, expires: float) -> tuple[str, str] | None:
        """Spend a token for a public key and admit its member with a certificate; the same key may do so again.

        Returns (name, role), None for a token that is unknown, expired, or spent for another key.
        """
        now = time.time()
        with self._write() as connection:
            query = select(tokens).where(tokens.c.id == token)
            row = connection.execute(query if self._writing else query.with_for_update()).first()
            if row is None or row.expires < now or (row.spent is not None and row.key != key):
                return None
            connection.execute(update(tokens).where(tokens.c.id == token).values(spent=row.spent or now, key=key))
            self._admit(connection, row.name, row.role, serial, expires, now)
            return row.name, row.role

    def admit(self, name: str, role: str, serial: str, expires: float) -> None:
        """Note a certificate that was given to a member: one made on the server's own machine, or one that replaces an older one."""
        with self._write() as connection:
            self._admit(connection, name, role, serial, expires, time.time())

    def replace(self, old: str, name: str, role: str, serial: str, expires: float) -> bool:
        """Note the certificate that replaces another one; False, and nothing is noted, where the old one was revoked meanwhile."""
        with self._write() as connection:
            mine = (certificates.c.serial == old) & (certificates.c.member == name) & certificates.c.revoked.is_(None)
            query = select(certificates.c.serial).where(mine)
            if connection.execute(query if self._writing else query.with_for_update()).first() is None:
                return False
            self._admit(connection, name, role, serial, expires, time.time())
            return True

    def _admit(self, connection: Connection, name: str, role: str, serial: str, expires: float, now: float) -> None:
        if connection.execute(select(members.c.name).where(members.c.name == name)).first() is None:
            connection.execute(insert(members).values(name=name, role=role, joined=now))
        else:
            connection.execute(update(members).where(members.c.name == name).values(role=role, revoked=None, via=None))
        if connection.execute(select(certificates.c.serial).where(certificates.c.serial == serial)).first() is None:
            connection.execute(insert(certificates).values(serial=serial, member=name, expires=expires))

    def revoke(self, name: str) -> None:
        """Take all certificates from a member, at once. InputError where there is no such member."""
        now = time.time()
        with self._write() as connection:
            changed = connection.execute(update(members).where(members.c.name == name).values(revoked=now))
            if not changed.rowcount:
                raise InputError(f"{name!r}: there is no such member (`hansa members` lists them)")
            mine = (certificates.c.member == name) & certificates.c.revoked.is_(None)
            connection.execute(update(certificates).where(mine).values(revoked=now))
            # Also one that was spent: who kept the key that it was spent for could be let in by it once more.
            connection.execute(update(tokens).where(tokens.c.name == name, tokens.c.expires > now).values(expires=now))

    def serials(self) -> tuple[dict[str, str], set[str]]:
        """serial -> member of every certificate that may be used; and the serials of those that were revoked."""
        query = select(certificates.c.serial, certificates.c.member, certificates.c.expires, certificates.c.revoked)
        with self._read() as connection:
            rows = connection.execute(query).all()
        now = time.time()
        good = {serial: member for serial, member, expires, revoked in rows if revoked is None and expires > now}
        return good, {serial for serial, _, _, revoked in rows if revoked is not None}

    def members(self) -> list[Row[Any]]:
        """Rows of ``members`` with ``expires`` of the newest certificate, by name."""
        newest = select(certificates.c.member, func.max(certificates.c.expires).label("expires")).group_by(certificates.c.member)
        last = newest.subquery()
        query = select(members, last.c.expires).outerjoin(last, last.c.member == members.c.name).order_by(members.c.name)
        with self._read() as connection:
            return list(connection.execute(query))

    def saw(self, when: Mapping[str, float]) -> None:
        """Note when members were last heard of."""
        moment: Any = bindparam("moment")
        older = or_(members.c.seen.is_(None), members.c.seen < moment)
        note = update(members).where(members.c.name == bindparam("who"), older).values(seen=moment)
        # In the order of every other server process, so that none waits in a circle.
        rows = [{"who": name, "moment": when[name]} for name in sorted(when)]
        if rows:
            with self._write() as connection:
                connection.execute(note, rows)

    def seen(self, names: Iterable[str]) -> dict[str, float]:
        """When each of these members was last heard of; 0 for never."""
        wanted = list(names)
        with self._read() as connection:
            rows = connection.execute(select(members.c.name, members.c.seen)).all()
        known = dict(map(tuple, rows))
        return {name: known.get(name) or 0.0 for name in wanted}

    def clients(self) -> list[str]:
        """Names of the clients that are not revoked, ascending."""
        relays = select(members.c.name).where(members.c.role == "relay", members.c.revoked.is_(None))
        reached = or_(members.c.via.is_(None), members.c.via.in_(relays))
        valid = (members.c.role == "client") & members.c.revoked.is_(None) & reached
        with self._read() as connection:
            return [row.name for row in connection.execute(select(members.c.name).where(valid).order_by(members.c.name))]

    def behind(self, relay: str, names: Iterable[str]) -> dict[str, str]:
        """Let a relay speak for clients of these names; returns those for whom it may not, and why.

        A relay that was revoked speaks for nobody any more, and another one may in its place.
        """
        now, strange = time.time(), dict[str, str]()
        with self._write() as connection:
            for name in names:
                found = connection.execute(select(members).where(members.c.name == name)).first()
                if found is None:
                    connection.execute(insert(members).values(name=name, role="client", joined=now, via=relay))
                elif found.via is None:
                    strange[name] = f"there is a member of that name, a {found.role}"
                elif found.revoked is not None:
                    strange[name] = "it was shut out here"
                elif found.via != relay:
                    other = connection.execute(select(members.c.revoked).where(members.c.name == found.via)).scalar_one()
                    if other is None:
                        strange[name] = f"the relay {found.via} speaks for a client of that name"
                    else:
                        connection.execute(update(members).where(members.c.name == name).values(via=relay))
        return strange

    def via(self) -> dict[str, str]:
        """Client -> the relay that speaks for it, of all that are not revoked."""
        query = select(members.c.name, members.c.via).where(members.c.via.is_not(None), members.c.revoked.is_(None))
        with self._read() as connection:
            return {row.name: row.via for row in connection.execute(query)}
