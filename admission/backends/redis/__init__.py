"""One pool for many processes, kept in Redis or Valkey.

    step.lua     the rules, once more: one script, whose every call is a batch of operations and ends in a pump
    script       operations to arguments, replies to decisions
    commit       group commit: what is asked for while a call is under way goes out with the next
    link         the connections: calls with a deadline, a circuit breaker, pushed messages
    lease        the thread that keeps this process's lease
    backend      the `Backend`: what this process asked for, and what became of it
    outage       what happens while the server cannot be reached
    embedded     a private server for one machine, and keeper, the process that ends it with its last user
    fitness      whether a server fits, in sentences (findings)

Nothing here is imported but `RedisPool`, until a pool is opened.
"""

from admission.backends.redis.site import RedisPool

__all__ = ["RedisPool"]
