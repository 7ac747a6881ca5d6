"""Shipped helpers for the tests of stages and queues."""
