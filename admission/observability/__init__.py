"""Ways to watch a pool: Prometheus metrics, structured logs, traces and the event loop's lag.

Each module needs its own optional package and is imported only by whoever uses it:
`prometheus` and `exposition` (extra `metrics`), `tracing` (extra `otel`); `logging` and `lag` need nothing.
Nothing here stands on the hot path: metrics are read from `snapshot()` at scrape time.
"""
