"""One contender on uvicorn, with uvloop and httptools, in a process of its own.

`python -m tests.benchmarks.server NAME` says `{"port": …}` on its standard output, or `{"absent": …}` when the
contender cannot be imported here. Then it answers each line on its standard input, `cpu` with the CPU time it has used,
`worked` with the work it has done, both in seconds, `pieces` with how many pieces that were, and ends when that is
closed: so it never outlives whoever started it.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import threading
import time

import uvicorn

from tests.benchmarks.apps import APPS, instant, pieces_done, work_done, working


def main() -> None:
    """Serve until standard input is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=APPS)
    parser.add_argument("--work", action="store_true")
    parser.add_argument("--limit", type=int, required=True)
    parser.add_argument("--queue", type=int, required=True)
    options = parser.parse_args()
    try:
        app = APPS[options.name](working if options.work else instant, options.limit, options.queue)
        import httptools  # noqa: F401
        import uvloop  # noqa: F401
    except ImportError as error:
        say({"absent": f"cannot be imported here ({error})"})
        return
    refuses = options.name == "uvicorn --limit-concurrency"
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        interface="asgi3",
        lifespan="off",
        access_log=False,
        log_level="error",
        # A backlog that takes all connections at once: they are opened together.
        backlog=2048,
        limit_concurrency=options.limit if refuses else None,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        threading.Thread(target=obey, args=(server,), daemon=True).start()
        say({"port": listener.getsockname()[1]})
        server.run(sockets=[listener])


def say(message: object) -> None:
    """One line of JSON."""
    print(json.dumps(message), flush=True)


def obey(server: uvicorn.Server) -> None:
    """Answer the parent until it is gone."""
    answers = {"cpu": time.process_time, "worked": work_done, "pieces": pieces_done}
    for line in sys.stdin:
        say(answers[line.strip()]())
    server.should_exit = True


if __name__ == "__main__":
    main()
