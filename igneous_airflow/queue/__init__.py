"""Text bodies in, leases out: queues know nothing of stages."""
