"""The domain: what is decided about journals, cursors, batches, modes and limits.

Nothing here opens a socket or a file, reads a clock or draws a random number; they are arguments.
"""
