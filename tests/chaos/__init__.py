"""Server processes that share a pool, real HTTP load, and one fault after another: `./dev chaos`."""
