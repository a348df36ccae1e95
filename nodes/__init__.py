"""The processes: Trio actors, disk, sockets, command line, launcher, fault injection."""
