"""Faults on purpose: processes killed, sockets dropped, servers restarted, readers that stall."""
