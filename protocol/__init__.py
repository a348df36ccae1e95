"""The wire, sans-IO: bytes in, events out; messages in, bytes out."""
