"""`admission demo`: the example chat server with a real model, a minute of traffic, and a table to watch it.

Nothing here schedules. The server is `examples/chat_server.py` as a user would copy it; this package starts
it, is its client (`traffic`), shows what happens and checks that both sides counted the same (`report`).
"""

from admission.demo.run import run_demo

__all__ = ["run_demo"]
