"""The queue that should stand in front of every model server."""
