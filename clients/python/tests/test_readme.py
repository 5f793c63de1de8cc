"""Every snippet of README.md: programs print what it says, fragments run."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tempfile
import threading
import types
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from . import support
from .support import PATIENCE, URL

import openqueue
from openqueue._worker import BaseWorker

# What the fragments have around them, for mypy.
AROUND = """
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
import openqueue, psycopg
from psycopg_pool import ConnectionPool

@dataclass
class Mail:
    to: str

def send(job: openqueue.Job[Mail]) -> None: ...
def report(job: openqueue.Job[Any]) -> None: ...
url = ""
pool = ConnectionPool(url)
"""

HERE = Path(__file__).parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", re.M | re.S)


@dataclass
class Mail:
    to: str


class OpenTelemetry(types.ModuleType):
    """As much of its API as the snippet uses."""

    def __init__(self) -> None:
        super().__init__("opentelemetry")
        self.attached: list[Any] = []
        self.context = types.SimpleNamespace(attach=self.attach, detach=self.attached.remove)
        self.propagate = types.SimpleNamespace(
            inject=lambda carrier: carrier.update(traceparent="00-otel"),
            extract=lambda carrier: carrier.get("traceparent"),
        )

    def attach(self, context: Any) -> Any:
        self.attached.append(context)
        return context


class Readme(support.Case):
    def setUp(self) -> None:
        super().setUp()
        self.blocks = BLOCK.findall((HERE / "README.md").read_text())
        self.said = io.StringIO()

    def fragment(self, words: str, **names: Any) -> dict[str, Any]:
        """Runs the one fragment that has the words, and gives what it made."""
        sources = [source for source, _ in self.blocks if words in source]
        self.assertEqual(len(sources), 1, words)
        self.blocks = [b for b in self.blocks if b[0] != sources[0]]
        names |= {"openqueue": openqueue, "psycopg": psycopg, "Mail": Mail, "timedelta": timedelta}
        names |= {"url": URL, "Any": Any}
        with contextlib.redirect_stdout(self.said):
            exec(compile(sources[0], "README.md", "exec", dont_inherit=True), names)
        return names

    def send(self, job: openqueue.Job[Mail]) -> None:
        assert job.payload == Mail("you@example.com")

    def stop_after(self, queue: str, jobs: int) -> threading.Thread:
        """Stops the worker that runs in this thread when so many jobs of the queue are completed."""
        workers: list[Any] = []
        run = BaseWorker._run

        async def watched(worker: BaseWorker[Any], signals: Any) -> None:
            workers.append(worker)
            await run(worker, signals)

        def wait() -> None:
            sql = "select count(*) from oq_jobs where queue_name = %s and state = 'completed'"
            try:
                with psycopg.connect(URL, autocommit=True) as conn:
                    self.until("done", lambda: conn.execute(sql, [queue]).fetchone() == (jobs,))
            finally:
                for worker in workers:
                    worker.stop()
                BaseWorker._run = run

        BaseWorker._run = watched
        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def test_all(self) -> None:
        ran = 0
        for source, output in list(self.blocks):
            if not output:
                continue
            with tempfile.TemporaryDirectory() as folder:
                program = Path(folder, "program.py")
                program.write_text(source)
                done = subprocess.run(
                    [sys.executable, "-B", "-W", "error", program],
                    env={"DATABASE_URL": URL, "PYTHONPATH": str(HERE)},
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE,
                )
            self.assertEqual((done.stdout, done.stderr), (output, ""), source)
            self.assertLessEqual(sum(1 for line in source.splitlines() if line), 15, source)
            self.blocks.remove((source, output))
            ran += 1
        self.assertEqual(ran, 2)

        self.db.execute("create table orders (id int)")
        self.db.execute("create table sent (mail text)")
        with ConnectionPool(URL, min_size=1) as pool:
            openqueue.enqueue(self.db, "mail", unique_key="welcome 1", run_at=None, delay=3600)
            self.fragment("insert into orders", pool=pool)
            self.assertEqual(self.said.getvalue(), "OQ005\n")
            self.assertEqual(self.ask("select count(*) from orders"), 1)
            job = self.ask("select max(job_id) from oq_jobs where state = 'scheduled' and priority = 5")
            self.fragment("oq_batch", pool=pool)
            self.assertEqual(self.ask("select queue_name from oq_schedules where schedule_name = 'nightly'"), "reports")
            for token in range(3):
                token = self.ask("select lease_token from oq_lease('pages')")
                self.ask("select oq_ack(job_id, %s) from oq_jobs where state = 'leased'", token)
            self.assertEqual(self.ask("select payload from oq_jobs where queue_name = 'reports'"), {"of": "pages"})
            self.ask("select oq_cancel(job_id) from oq_jobs where queue_name = 'reports'")

            self.ask("select oq_update(%s, '{\"run_at\": null}')", job)
            self.said = io.StringIO()
            stopper = self.stop_after("mail", 3)
            self.fragment("concurrency=20", pool=pool, send=self.send)
            stopper.join()
            self.assertEqual(self.said.getvalue(), "one more\nacked\n")
            self.assertEqual(self.state(job), "completed")

            send = self.fragment("insert into sent", pool=pool)["send"]
            mail = openqueue.enqueue(self.db, "mail", Mail("you@example.com"))
            openqueue.enqueue(self.db, "reports")
            stopper = self.stop_after("reports", 1)
            self.fragment(
                '"reports"', send=send, report=lambda job: self.until_state(mail, "completed")
            )
            stopper.join()
            self.assertEqual(self.ask("select mail from sent"), "you@example.com")

            otel = OpenTelemetry()
            sys.modules["opentelemetry"] = otel
            self.addCleanup(sys.modules.pop, "opentelemetry")
            self.addCleanup(openqueue.trace_with, None)
            traced = self.fragment("opentelemetry")["traced"]
            job = openqueue.enqueue(self.db, self.queue)
            seen: list[Any] = []
            with openqueue.Worker(
                URL, self.queue, lambda job: seen.extend(otel.attached), middleware=[traced]
            ):
                self.until_state(job, "completed")
            self.assertEqual((seen, otel.attached), (["00-otel"], []))

            self.assertTrue(self.ask("select bool_and(oq_cancel(job_id)) from oq_jobs where state = 'scheduled'"))
            self.fragment("testing.drain", send=self.send)
            self.assertEqual(self.ask("select count(*) from oq_jobs where queue_name = 'mail' and state = 'ready'"), 0)
        self.assertEqual(self.blocks, [])

    def test_types(self) -> None:
        """A strict mypy takes what is shown."""
        with tempfile.TemporaryDirectory() as folder:
            for n, (source, output) in enumerate(self.blocks):
                before = "" if output else AROUND
                if "def send(" in source:
                    before = before.replace("def send(job: openqueue.Job[Mail]) -> None: ...\n", "")
                Path(folder, f"snippet{n}.py").write_text(before + source)
            done = subprocess.run(
                ["/usr/bin/mypy", "--config-file", HERE / "pyproject.toml", "--cache-dir", folder]
                + ["--allow-untyped-globals", "--disable-error-code", "import", folder],
                env={"MYPYPATH": str(HERE)},
                capture_output=True,
                text=True,
            )
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
