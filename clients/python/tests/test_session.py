"""A connection of the worker's: what it does when it is cut, mute, or given up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import unittest
from collections.abc import Awaitable
from typing import Any

import psycopg
from psycopg import errors as pg

from .support import PATIENCE, URL

from openqueue._session import ConnectionFailed, Session, connector

SLEEP = "select pg_sleep($1::float8)"


class Sessions(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self) -> None:
        self.woken = asyncio.Event()
        self.lost = asyncio.Event()
        self.session = Session(connector(URL, 5), "s", True, self.woken.set, self.lost.set)
        self.db = await psycopg.AsyncConnection.connect(URL, autocommit=True)

    async def asyncTearDown(self) -> None:
        self.session.drop()
        await self.db.close()

    async def pid(self) -> int:
        return int((await self.session.call("select pg_backend_pid()", [], 5))[0][0] or 0)

    async def asleep(self, pid: int) -> None:
        """Until the session's backend sleeps in a call."""
        sql = "select state = 'active' and wait_event = 'PgSleep' from pg_stat_activity where pid = %s"
        async with asyncio.timeout(PATIENCE):
            while await (await self.db.execute(sql, [pid])).fetchone() != (True,):
                await asyncio.sleep(0.005)

    async def test_rows(self) -> None:
        rows = await self.session.call(
            "select $1::text, $2::int, $3::text, '' from generate_series(1, 2)", ["é", 7, None], 5
        )
        self.assertEqual(rows, [["é".encode(), b"7", None, b""]] * 2)

    async def test_refusal_keeps_the_connection(self) -> None:
        pid = await self.pid()
        with self.assertRaises(pg.DivisionByZero):
            await self.session.call("select 1 / $1::int", [0], 5)
        self.assertEqual(await self.pid(), pid)

    async def test_prepared_statements_of_another(self) -> None:
        """A name stands for one text; where it is not what was left, the connection is another's."""
        await self.session.call("select 1", [], 5)
        await self.session.call("select 2", [], 5)
        names = "select string_agg(name, ' ' order by statement) from pg_prepared_statements"
        before = (await self.session.call(names, [], 5))[0][0]
        self.session.drop()
        await self.session.call("select 2", [], 5)
        await self.session.call("select 1", [], 5)
        self.assertEqual((await self.session.call(names, [], 5))[0][0], before)
        pid = await self.pid()
        await self.session.call("deallocate all", [], 5)
        with self.assertRaises(pg.InvalidSqlStatementName):
            await self.session.call("select 1", [], 5)
        self.assertNotEqual(await self.pid(), pid)
        pid = await self.pid()
        self.session._prepared.clear()
        with self.assertRaises(pg.DuplicatePreparedStatement):
            await self.pid()
        self.assertNotEqual(await self.pid(), pid)

    async def test_killed_in_a_call(self) -> None:
        """The server's last words come at once, not after the time-out; the next call connects."""
        pid = await self.pid()
        call = asyncio.ensure_future(self.session.call(SLEEP, ["30"], 60))
        await self.asleep(pid)
        await self.db.execute("select pg_terminate_backend(%s)", [pid])
        with self.assertRaises(pg.AdminShutdown):
            await asyncio.wait_for(call, PATIENCE / 3)
        self.assertTrue(self.lost.is_set())
        self.assertNotEqual(await self.pid(), pid)

    async def test_killed_while_idle(self) -> None:
        pid = await self.pid()
        await self.db.execute("select pg_terminate_backend(%s)", [pid])
        await asyncio.wait_for(self.lost.wait(), PATIENCE)
        self.assertFalse(self.session.connected)
        self.assertNotEqual(await self.pid(), pid)

    async def test_timeout_closes_the_connection(self) -> None:
        pid = await self.pid()
        began = time.monotonic()
        with self.assertRaises(ConnectionFailed):
            await self.session.call(SLEEP, ["30"], 0.1)
        self.assertLess(time.monotonic() - began, 10)
        self.assertFalse(self.session.connected)
        await self.db.execute("select pg_terminate_backend(%s)", [pid])
        self.assertNotEqual(await self.pid(), pid)

    async def test_time_to_connect_is_no_time_of_the_call(self) -> None:
        """Else the server's time, which begins with the call, would end after ours."""
        connect = self.session._connect

        async def slowly(within: float) -> psycopg.AsyncConnection[Any]:
            await asyncio.sleep(2)
            return await connect(within)

        self.session._connect = slowly
        await self.session.call(SLEEP, ["2"], 3)

    async def test_cancel_with_the_answer(self) -> None:
        """A cancel that comes in the same moment as the answer is not swallowed."""
        await self.session.call("select 1", [], 5)  # Prepared: the next answer is the last.
        call = asyncio.ensure_future(self.session.call("select 1", [], 5))
        go_on = self.session._go_on
        cancelled = False

        def answer() -> None:
            nonlocal cancelled
            go_on()
            if not cancelled:
                cancelled = True
                call.cancel()

        self.session._go_on = answer
        with self.assertRaises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(call), PATIENCE)
        self.assertTrue(cancelled)
        self.assertTrue(call.cancelled())
        self.assertFalse(self.session.connected)

    async def test_a_number_of_another_socket(self) -> None:
        """When the connection breaks, its socket's number is given up before another gets it."""
        pid = await self.pid()
        call = asyncio.ensure_future(self.session.call(SLEEP, ["30"], 60))
        await self.asleep(pid)
        number, go_on = self.session._fd, self.session._go_on
        loop, heard = asyncio.get_running_loop(), asyncio.Event()
        pairs: list[tuple[socket.socket, socket.socket]] = []

        def closed() -> bool:
            try:
                os.fstat(number)
                return False
            except OSError:
                return True

        def at_once() -> None:
            # Before whoever waits for the answer goes on.
            go_on()
            while closed():
                pairs.append(socket.socketpair())
                if number in (one := [s.fileno() for s in pairs[-1]]):
                    loop.add_reader(number, heard.set)
                    pairs[-1][1 - one.index(number)].send(b"x")

        self.session._go_on = at_once
        await self.db.execute("select pg_terminate_backend(%s)", [pid])
        with self.assertRaises(psycopg.OperationalError):
            await asyncio.wait_for(call, PATIENCE)
        self.assertTrue(pairs)
        await asyncio.wait_for(heard.wait(), PATIENCE)
        loop.remove_reader(number)
        for pair in pairs:
            for s in pair:
                s.close()

    async def test_large_both_ways(self) -> None:
        """More than the socket's buffers hold, both ways."""
        text = "é" * 4_000_000
        rows = await self.session.call("select $1::text", [text], PATIENCE)
        self.assertEqual((rows[0][0] or b"").decode(), text)

    async def test_notifications(self) -> None:
        """While it rests, and while it waits for an answer."""
        await self.session.call("listen heard", [], 5)
        await self.db.execute("notify heard")
        await asyncio.wait_for(self.woken.wait(), PATIENCE)
        self.woken.clear()
        pid = await self.pid()
        call = asyncio.ensure_future(self.session.call(SLEEP, ["60"], 2 * PATIENCE))
        await self.asleep(pid)
        await self.db.execute("notify heard")
        await self.db.execute("select pg_cancel_backend(%s)", [pid])
        with self.assertRaises(pg.QueryCanceled):
            await asyncio.wait_for(call, PATIENCE)
        await asyncio.wait_for(self.woken.wait(), PATIENCE)


class Connectors(unittest.IsolatedAsyncioTestCase):
    async def connects(self, db: Any) -> str:
        session = Session(connector(db, 5), "s", False)
        try:
            rows = await session.call("select current_setting('application_name')", [], 5)
            return (rows[0][0] or b"").decode()
        finally:
            session.drop()

    async def test_like_what_is_given(self) -> None:
        from psycopg_pool import ConnectionPool

        url = psycopg.conninfo.make_conninfo(URL, application_name="mine")
        self.assertEqual(await self.connects(url), "mine")
        with psycopg.connect(url) as conn:
            self.assertEqual(await self.connects(conn), "mine")
        pool = ConnectionPool(
            URL, min_size=1, open=False, kwargs={"application_name": "mine", "autocommit": True}
        )
        self.assertEqual(await self.connects(pool), "mine")

        def connect() -> Awaitable[psycopg.AsyncConnection[Any]]:
            return psycopg.AsyncConnection.connect(url)  # Without autocommit.

        self.assertEqual(await self.connects(connect), "mine")

    async def test_the_time_to_connect(self) -> None:
        """What the conninfo says of it holds, and not how long a call may take."""
        mute = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(mute.close)
        port = mute.getsockname()[1]
        began = time.monotonic()
        with self.assertRaises(psycopg.OperationalError):
            await connector(f"postgresql://x@127.0.0.1:{port}/x?connect_timeout=2", 60)()
        self.assertLess(time.monotonic() - began, 30)

    async def test_several_hosts(self) -> None:
        """One that is mute, as a primary that is gone, keeps nobody from the next."""
        mute = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(mute.close)
        server = psycopg.conninfo.conninfo_to_dict(URL)
        url = psycopg.conninfo.make_conninfo(
            URL,
            host=f"127.0.0.1,{server['host']}",
            port=f"{mute.getsockname()[1]},{server['port']}",
            application_name="mine",
        )
        self.assertEqual(await self.connects(url), "mine")

    async def test_nothing_to_connect_by(self) -> None:
        with self.assertRaises(TypeError):
            connector(5, 5)
        with self.assertRaisesRegex(TypeError, "awaitable"):
            await self.connects(lambda: None)

    async def test_a_function_that_fails(self) -> None:
        """Whatever it raises, the connection has failed, and will be tried again."""

        async def connect() -> psycopg.AsyncConnection[Any]:
            raise KeyError("no password today")

        with self.assertRaisesRegex(ConnectionFailed, "no password today"):
            await self.connects(connect)

    async def test_another_encoding(self) -> None:
        url = psycopg.conninfo.make_conninfo(URL, client_encoding="latin1")
        session = Session(connector(url, 5), "s", True)
        try:
            self.assertEqual(await session.call("select $1::text", ["日"], 5), [["日".encode()]])
        finally:
            session.drop()
